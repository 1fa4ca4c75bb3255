"""Weights in and out: official files, timm's and ours, for the same task and for another."""

import argparse

import common  # noqa: F401
from common.errors import CheckpointError, InputError
from common.testing import hostile

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

from smmix import export
from smmix.models import build, load_weights
from smmix.models.weights import load_for_finetuning, write_timm


def deit(classes: int = 5, size: int = 32):
    torch.manual_seed(classes + size)
    network = build("vit_cifar", classes, image_size=size)
    return network.eval()


def official(network, path, **more):
    """A file as the official code writes it: with options, optimiser state, and an untouched model_ema."""
    torch.manual_seed(99)
    untouched = {key: torch.randn_like(value) for key, value in network.state_dict().items()}
    content = {"model": network.state_dict(), "model_ema": untouched, "epoch": 299, "optimizer": {"state": {}}}
    torch.save({**content, "args": argparse.Namespace(lr=5e-4, model="x"), "scaler": {"scale": 65536.0}, **more}, path)
    return path


def same(one, two, without: str = "-") -> bool:
    a, b = one.state_dict(), two.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a if not key.startswith(without))


def test_an_official_checkpoint_is_loaded_and_its_mean_weights_are_not(tmp_path):
    trained, fresh = deit(), build("vit_cifar", 5)
    load_weights(fresh, official(trained, tmp_path / "checkpoint.pth"))
    assert same(trained, fresh)


def test_a_module_prefix_and_a_bare_dict(tmp_path):
    trained, fresh = deit(), build("vit_cifar", 5)
    torch.save({f"module.{key}": value for key, value in trained.state_dict().items()}, tmp_path / "bare.pth")
    load_weights(fresh, tmp_path / "bare.pth")
    assert same(trained, fresh)


def test_the_token_head_is_optional_on_either_side(tmp_path):
    trained = deit()
    path = write_timm(trained, tmp_path / "without.safetensors")
    fresh = build("vit_cifar", 5)
    before = fresh.token_head.weight.clone()
    load_weights(fresh, path)
    assert same(trained, fresh, "token_head") and torch.equal(fresh.token_head.weight, before)
    plain = build("vit_cifar", 5)
    del plain.token_head
    load_weights(plain, official(trained, tmp_path / "with.pth"))
    assert same(plain, trained)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "cait_xxs24_224"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_loads_what_we_write(name, suffix, tmp_path):
    torch.manual_seed(0)
    network = build(name, 7, image_size=64).eval()
    path = write_timm(network, tmp_path / f"weights{suffix}")
    theirs = timm.create_model(name, num_classes=7, img_size=64, checkpoint_path=str(path)).eval()
    assert theirs.state_dict().keys() == {key for key in network.state_dict() if not key.startswith("token_head.")}
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs(images), network(images))


def test_pvt_keeps_the_official_names(tmp_path):
    network = build("pvt_tiny", 3, image_size=32)
    path = write_timm(network, tmp_path / "pvt.safetensors")
    written = safetensors.torch.load_file(path)
    assert {"pos_embed4", "block1.0.attn.sr.weight", "block4.1.attn.kv.bias", "cls_token"} <= written.keys()
    again = build("pvt_tiny", 3, image_size=32)
    load_weights(again, path)
    assert same(network, again, "token_head")


def test_export_writes_a_checkpoint_of_ours_or_of_the_release(tmp_path, capsys):
    network = deit(10)
    config = tmp_path / "experiment.yaml"
    config.write_text("data: {name: cifar10}\nmodel: {name: vit_cifar}\n")
    given = ["--checkpoint", str(official(network, tmp_path / "c.pth")), "--config", str(config)]
    path = export.main([*given, "--out", str(tmp_path / "deep" / "out.safetensors")])
    written = safetensors.torch.load_file(path)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in written.items())
    assert "vit_cifar with 10 classes" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"out\.onnx.*\.safetensors or \.pth"):
        export.main([*given, "--out", str(tmp_path / "out.onnx")])
    with pytest.raises(CheckpointError, match="needs --config"):
        export.main([*given[:2], "--out", str(path)])


def test_fine_tuning_takes_other_classes_and_another_grid(tmp_path):
    trained = deit(5, 32)
    path = official(trained, tmp_path / "c.pth")
    fresh = build("vit_cifar", 8, image_size=(48, 64))
    heads = {key: value.clone() for key, value in fresh.state_dict().items() if "head" in key}
    assert sorted(load_for_finetuning(fresh, path)) == sorted(heads)
    state = fresh.state_dict()
    assert all(torch.equal(state[key], value) for key, value in heads.items())
    assert torch.equal(state["blocks.8.mlp.fc2.weight"], trained.state_dict()["blocks.8.mlp.fc2.weight"])
    old = trained.pos_embed
    assert state["pos_embed"].shape == (1, 1 + 12 * 16, 192) and torch.equal(state["pos_embed"][:, :1], old[:, :1])
    image = old[:, 1:].reshape(1, 8, 8, 192).permute(0, 3, 1, 2)
    expected = F.interpolate(image, (12, 16), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    assert torch.equal(state["pos_embed"][:, 1:], expected.reshape(1, -1, 192))


def test_fine_tuning_of_the_same_task_loads_everything(tmp_path):
    trained, fresh = deit(), build("vit_cifar", 5)
    assert load_for_finetuning(fresh, official(trained, tmp_path / "c.pth")) == [] and same(trained, fresh)


def test_fine_tuning_resizes_every_stage_of_a_pvt(tmp_path):
    trained, fresh = build("pvt_tiny", 3, image_size=64), build("pvt_tiny", 3, image_size=(96, 32))
    load_for_finetuning(fresh, write_timm(trained, tmp_path / "pvt.pth"))
    assert fresh.pos_embed1.shape[1] == 24 * 8 and torch.equal(fresh.pos_embed4[:, 0], trained.pos_embed4[:, 0])
    assert fresh(torch.randn(1, 3, 96, 32)).isfinite().all()


def test_what_does_not_fit_is_refused_and_leaves_the_network_alone(tmp_path):
    network = deit()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    wrong = {**network.state_dict(), "pos_embed": torch.zeros(1, 60, 192)}
    torch.save(wrong, tmp_path / "grid.pth")
    torch.save({k: v for k, v in before.items() if not k.startswith("blocks.3")}, tmp_path / "lacks.pth")
    for load, name, message in (
        (load_weights, "grid.pth", "pos_embed"),
        (load_weights, "lacks.pth", r"missing \(12\).*blocks\.3"),
        (load_for_finetuning, "lacks.pth", r"missing \(12\)"),
        (load_for_finetuning, "grid.pth", r"pos_embed of shape \[1, 60, 192\] cannot be resized.*square"),
        (load_weights, "none.pth", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(network, tmp_path / name)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_nothing_in_a_file_is_executed(tmp_path):
    canary = tmp_path / "executed"
    with pytest.raises(CheckpointError, match="never executed"):
        load_weights(deit(), hostile(tmp_path / "evil.pth", canary))
    assert not canary.exists()
