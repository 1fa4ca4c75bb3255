import copy
import json
from pathlib import Path

from common.errors import CheckpointError, InputError
from common.labelled import Labelled
from common.testing import hostile

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from lts import data, export, integer, train
from lts.config import Config
from lts.experiment import optimisers
from lts.method import Schedule, Scratcher, initialise, quantise
from lts.models import build

PROJECT = Path(__file__).parents[1]
FORMS = {
    "2 bits": {},
    "8 bits": {"weight_bits": 8, "activation_bits": 8},
    "1 bit": {"weight_bits": 1, "activation_bits": 1},
    "lsq": {"weight_bits": 3, "activation_bits": 5, "quantiser": "lsq"},
    "dorefa": {"weight_bits": 2, "activation_bits": 4, "quantiser": "dorefa"},
    "ends in full precision": {"first_last": "fp"},
    "float weights": {"weight_bits": 32, "activation_bits": 4},
    "float inputs": {"weight_bits": 4, "activation_bits": 32},
}


@pytest.fixture(scope="module")
def digits():
    """Training images, and the whole test split of the digits."""
    train, test = data.load(Config(data=Labelled(name="digits", batch_size=64, crop_padding=0, flip=False)))
    return train.fetch(torch.arange(len(train)), 1), test.fetch(torch.arange(len(test)), 0)


def learn(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int, lr: float) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr, 0.9)
    for step in range(steps):
        part = torch.arange(64) + 64 * (step % 15)
        loss = F.cross_entropy(model(images[part]), labels[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.fixture(scope="module")
def trained(digits):
    """A network that can read digits, in full precision."""
    torch.manual_seed(0)
    model = build("digits", 10)
    learn(model, *digits[0], steps=90, lr=0.1)
    return model


@pytest.fixture(scope="module")
def ticket(trained, digits):
    """The same at 2 bits, trained on for a while with weights freezing."""
    model = quantise(copy.deepcopy(trained))
    initialise(model, digits[0][0][:64])
    scratcher = Scratcher(model, Schedule("linear", 10, 1, 3), ema=0.5)
    trained_by = optimisers(model, 0.02, 1e-4, 0.9, 1e-4)
    for step in range(30):
        part = torch.arange(64) + 64 * (step % 15)
        model.zero_grad()
        F.cross_entropy(model(digits[0][0][part]), digits[0][1][part]).backward()
        scratcher.observe()
        with scratcher.held():
            for optimiser in trained_by:
                optimiser.step()
    assert scratcher.frozen_counts().sum() > 1000
    return model.eval()


@pytest.fixture(scope="module")
def onnx_file(ticket, digits, tmp_path_factory) -> Path:
    """The ONNX file of the ticket."""
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    export.to_onnx(integer.to_integer(ticket), digits[1][0][:2], path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_integers_are_the_simulated_network_on_the_whole_test_split(form, trained, digits):
    model = quantise(copy.deepcopy(trained), **FORMS[form])
    initialise(model, digits[0][0])
    model.eval()
    report = export.compare({"simulated": model, "integer": integer.to_integer(model)}, [digits[1]])
    assert report["integer_error"] < 1e-5 and report["integer_flipped"] < 0.1, report
    # In float64 nothing comes near enough to the middle between two codes to flip.
    assert export.float64_error(model, [digits[1]]) < 1e-12


@torch.no_grad()
def test_a_frozen_ticket_its_file_and_onnx_read_the_digits_alike(ticket, digits, onnx_file, tmp_path):
    exact = integer.to_integer(ticket)
    integer.save(exact, tmp_path / "m.safetensors", "digits", 10, None)
    again = integer.load(tmp_path / "m.safetensors")
    assert torch.equal(again(digits[1][0]), exact(digits[1][0]))
    forms = {"simulated": ticket, "integer": again, "onnx": export.onnx_session(onnx_file)}
    report = export.compare(forms, [(x, y) for x, y in zip(digits[1][0].split(500), digits[1][1].split(500))])
    assert report["simulated_top1"] > 60
    for name in ("integer", "onnx"):
        assert report[f"{name}_error"] < 1e-5 and report[f"{name}_flipped"] < 0.02
        assert report[f"{name}_same_class"] > 0.995


@torch.no_grad()
def test_an_onnx_file_holds_small_integers_and_no_path_of_this_machine(onnx_file):
    import onnx

    weights = [x for x in onnx.load(onnx_file).graph.initializer if len(x.dims) > 1]
    assert [x.data_type for x in weights] == [onnx.TensorProto.INT8] * 5
    assert {abs(int(v)) for x in weights for v in onnx.numpy_helper.to_array(x).flat} == {1, 3}
    assert b".py" not in onnx_file.read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "resnet50"])
def test_every_network_folds_shortcuts_and_depthwise_layers_included(name):
    torch.manual_seed(1)
    model, images = build(name, 10), torch.randn(2, 3, 32, 32)
    quantise(model, 8, 8)
    initialise(model, images)
    exact = integer.to_integer(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in exact.modules())
    assert export.float64_error(model.eval(), [(images, None)]) < 1e-11


@torch.no_grad()
def test_the_sums_are_those_of_integers(ticket):
    layer = integer.to_integer(ticket).get_submodule("conv2")
    x = torch.rand(3, 16, 8, 8) * 3 - 0.5
    out = layer(x)
    codes = ((x - layer.lower) / (layer.upper - layer.lower)).clamp(0, 1).mul(3).round().numpy().astype(np.int64)
    columns = F.unfold(torch.from_numpy(codes).double(), 3, padding=1, stride=2).long()
    sums = layer.weight.flatten(1).long() @ columns
    expected = sums.view(3, 32, 4, 4) * layer.multiplier.view(-1, 1, 1) + layer.shift.view(-1, 1, 1)
    assert torch.equal(out, expected)
    layer.integer_arithmetic = False
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_dense_and_reversible(bits):
    codes = (torch.arange(77) * 37 % 2**bits).to(torch.uint8).view(7, 11)
    packed = integer.pack(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-77 * bits // 8)
    assert torch.equal(integer.unpack(packed, bits, codes.shape), codes)


def test_the_highest_bit_comes_first():
    assert integer.pack(torch.tensor([1, 2, 3, 0, 1], dtype=torch.uint8), 2).tolist() == [0b01101100, 0b01000000]


@torch.no_grad()
def test_the_size_is_that_of_the_file_s_tensors(ticket, tmp_path):
    exact = integer.to_integer(ticket)
    integer.save(exact, tmp_path / "m.safetensors", "digits", 10, None)
    content = safetensors.torch.load_file(tmp_path / "m.safetensors")
    weights, channels = 432 + 16 * 32 * 9 + 2 * 32 * 32 * 9 + 320, 16 + 3 * 32 + 10
    assert integer.size(exact) == sum(t.nbytes for t in content.values()) == weights // 4 + 8 * channels + 5 * 8


def test_exporting_leaves_the_network_as_it_was(ticket):
    state = {key: value.clone() for key, value in ticket.state_dict().items()}
    ticket.train()
    integer.to_integer(ticket)
    assert ticket.training and all(torch.equal(value, state[key]) for key, value in ticket.state_dict().items())
    ticket.eval()


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(InputError, match="conv1: its quantiser has not been initialised"):
        integer.to_integer(quantise(build("digits", 10), quantiser="lsq"))
    loose = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    with pytest.raises(InputError, match="2 does not directly follow"):
        integer.to_integer(quantise(loose))
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not an integer model"):
        integer.load(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError):
        integer.load(hostile(tmp_path / "bad.safetensors", tmp_path / "canary"))
    assert not (tmp_path / "canary").exists()


def test_the_command_exports_a_run(tmp_path, capsys):
    words = ["--config", str(PROJECT / "cfg.yaml"), "--out", str(tmp_path), "--data.limit", "64"]
    words += ["--optim.epochs", "2", "--freeze.warmup", "1", "--float.epochs", "1", "--optim.milestones", "[]"]
    run = train.main([*words, "--float.milestones", "[]"])
    report = export.main(["--checkpoint", str(run / "quantised" / "last.pt"), "--data.limit", "64"])
    folder = run / "quantised"
    assert json.loads((folder / "export.json").read_text()) == report
    assert report["integer_bytes"] < report["float_bytes"] / 10 and report["float64_error"] < 1e-12
    assert (folder / "model.onnx").stat().st_size == report["onnx_file_bytes"]
    assert "integer_top1" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds no trained quantisers; give a checkpoint of stage quantised"):
        export.main(["--checkpoint", str(run / "float" / "last.pt")])


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(InputError, match="export needs onnxruntime: pip install onnxruntime"):
        export.main(["--checkpoint", str(tmp_path / "last.pt"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
