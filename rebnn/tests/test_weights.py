from functools import partial
from pathlib import Path

from common.errors import CheckpointError
from common.testing import assert_same, hostile

import pytest
import torch
import torchvision
from torch import nn

from rebnn.config import Config
from rebnn.method import BinaryConv2d
from rebnn.models import build, teacher
from rebnn.models.mobilenet import ReActNetA
from rebnn.tests.oracle_networks import filled
from rebnn.weights import export_official, load_student, load_teacher

LEVEL = 0.02


def digits(weights: str, salt: int = 0, classes: int = 10) -> nn.Module:
    return filled(build("digits", classes, weights), salt).eval()


def official(path: Path, network: nn.Module, **rename: str) -> Path:
    """A checkpoint as the release writes it; rename: last parts of names."""
    state = {}
    for key, value in network.state_dict().items():
        module, _, last = key.rpartition(".")
        state[f"module.{module}.{rename.get(last, last)}"] = value
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    torch.save({"epoch": 255, "state_dict": state, "best_top1_acc": torch.tensor(66.9), "optimizer": optimizer}, path)
    return path


def own(path: Path, network: nn.Module, binary: dict, stage: str = "step2") -> Path:
    """A checkpoint as train.py writes it."""
    content = {"format": 1, "project": "rebnn", "stage": stage, "config": {"binary": binary}}
    torch.save({**content, "state": {"model": network.state_dict()}}, path)
    return path


@torch.no_grad()
def same_function(one: nn.Module, two: nn.Module) -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one.eval()(x), two.eval()(x), rtol=1e-4, atol=1e-5)


def test_an_official_checkpoint_loads_as_it_is_into_the_released_form(tmp_path):
    source, target = digits("released", 1), digits("released", 2)
    assert load_student(target, official(tmp_path / "model_best.pth.tar", source)) == []
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


def test_an_official_checkpoint_computes_the_same_in_the_paper_s_form(tmp_path):
    source, target = digits("released", 1), digits("paper", 2)
    load_student(target, official(tmp_path / "model_best.pth.tar", source))
    factors = {k: v for k, v in target.state_dict().items() if k.endswith("scaling_factor")}
    for key, value in factors.items():
        torch.testing.assert_close(value, LEVEL * source.state_dict()[key])
    same_function(source, target)


def test_what_is_exported_loads_back_and_is_the_official_layout(tmp_path):
    source = digits("paper", 1)
    exported = export_official(source)
    assert all(key.startswith("module.") for key in exported["state_dict"])
    torch.save(exported, tmp_path / "exported.pth.tar")
    again, released = digits("paper", 2), digits("released", 3)
    load_student(again, tmp_path / "exported.pth.tar")
    load_student(released, tmp_path / "exported.pth.tar")
    same_function(source, again)
    same_function(source, released)


@pytest.mark.parametrize(
    "binary, form",
    [
        ({"binarizer": "auto", "gamma": "paper"}, "paper"),
        ({"binarizer": "auto", "gamma": "max"}, "paper"),
        ({"binarizer": "paper", "gamma": "constant"}, "paper"),
        ({"binarizer": "auto", "gamma": "released"}, "released"),
        ({"binarizer": "auto", "gamma": "released_intended"}, "released"),
        ({"binarizer": "released", "gamma": "constant"}, "released"),
    ],
)
def test_our_own_checkpoints_say_what_their_scales_mean(tmp_path, binary, form):
    assert {"binarizer", "gamma"} <= vars(Config().binary).keys()
    source = digits(form, 1)
    path = own(tmp_path / "last.pt", source, binary)
    for target in (digits("paper", 2), digits("released", 2)):
        assert load_student(target, path) == []
        same_function(source, target)


def test_rbonn_s_names_are_understood(tmp_path):
    source, target = digits("released", 1), digits("released", 2)
    path = official(tmp_path / "rbonn.pth.tar", source, scaling_factor="scale_factor")
    content = torch.load(path)
    content["state_dict"]["module.layer1.0.binary_conv.u"] = torch.ones(8, 1)
    torch.save(content, path)
    load_student(target, path)
    same_function(source, target)


@pytest.mark.parametrize("how", ["cam", "randn"])
def test_missing_scales_are_named_and_started(tmp_path, how):
    source, target = digits("real", 1), digits("paper", 2)
    lacking = load_student(
        target, own(tmp_path / "last.pt", source, {"binarizer": "auto", "gamma": "paper"}, "step1"), how
    )
    scales = {k: v for k, v in target.state_dict().items() if k.endswith("scaling_factor")}
    assert lacking == [*scales] and len(lacking) == 4
    assert {k: v for k, v in target.state_dict().items() if k not in scales}.keys() == source.state_dict().keys()
    means = {k: source.state_dict()[k.replace("scaling_factor", "weight")].abs().mean((1, 2, 3)) for k in scales}
    for key, value in scales.items():
        assert torch.allclose(value.flatten(), means[key]) == (how == "cam")


def test_reactnet_s_files_fit_both_steps_and_start_ours(tmp_path):
    source = digits("reactnet", 1)
    path = official(tmp_path / "reactnet.pth.tar", source)
    for kind in ("real", "reactnet"):
        target = digits(kind, 2)
        assert load_student(target, path) == []
        assert_same(dict(target.state_dict()), dict(source.state_dict()))
    ours = digits("paper", 3)
    load_student(ours, path)
    same_function(source, ours)  # the scale starts as the mean that ReActNet would take


def test_released_signs_need_no_scale(tmp_path):
    source = digits("reactnet", 1)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if "binary" in name:
                parameter.sign_()
    target = digits("paper", 2)
    load_student(target, official(tmp_path / "signs.pth.tar", source))
    same_function(source, target)


def test_the_columns_of_reactnet_a_are_reshaped(tmp_path):
    convolution = partial(BinaryConv2d, binarizer="reactnet")
    source, target = (filled(ReActNetA((4, 8, 16, 16), 10, convolution), salt) for salt in (1, 2))
    state = {
        key.replace("weight", "weights") if "binary" in key else key: value.reshape(-1, 1) if "binary" in key else value
        for key, value in source.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "reactnet_a.pth.tar")
    load_student(target, tmp_path / "reactnet_a.pth.tar")
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


def test_torchvision_s_teacher_fits(tmp_path):
    source, target = torchvision.models.resnet34(), teacher("resnet34_teacher", 1000)
    torch.save(source.state_dict(), tmp_path / "resnet34.pth")
    load_teacher(target, tmp_path / "resnet34.pth")
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_another_number_of_classes_is_refused_with_both_numbers(tmp_path, role):
    make = (lambda n: digits("paper", 1, n)) if role == "student" else (lambda n: teacher("digits_teacher", n))
    load = load_student if role == "student" else load_teacher
    target = make(10)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save(make(7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(CheckpointError, match="trained for 7 classes, but the data has 10"):
        load(target, tmp_path / "seven.pth")
    assert_same(dict(target.state_dict()), before)


def test_what_does_not_fit_leaves_the_network_as_it_was(tmp_path):
    target = digits("paper", 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = digits("paper", 1).state_dict()
    cases = {
        "lacks a convolution": {k: v for k, v in state.items() if k != "layer1.1.binary_conv.weight"},
        "has more": {**state, "extra.weight": torch.ones(1)},
        "another shape": {**state, "layer1.0.binary_conv.weight": torch.ones(8, 8, 1, 1)},
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="does not fit digits"):
            load_student(target, tmp_path / "other.pth")
        assert_same(dict(target.state_dict()), before, name)


def test_scales_are_refused_where_the_network_has_none(tmp_path):
    path = official(tmp_path / "rebnn.pth.tar", digits("released", 1))
    for kind in ("real", "reactnet"):
        with pytest.raises(CheckpointError, match="unexpected"):
            load_student(digits(kind, 2), path)


@pytest.mark.parametrize("load", [load_student, load_teacher])
def test_hostile_missing_and_damaged_files_are_refused(tmp_path, load):
    network = digits("paper") if load is load_student else teacher("digits_teacher", 10)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(network, hostile(tmp_path / "hostile.pth", tmp_path / "canary"))
    assert not (tmp_path / "canary").exists()
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04")
    for name in ("damaged.pth", "missing.pth"):
        with pytest.raises(CheckpointError, match=name):
            load(network, tmp_path / name)
