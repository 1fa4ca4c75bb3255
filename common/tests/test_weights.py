"""Reading weights: every usual form of file, and nothing of a damaged, hostile or foreign one."""

import argparse
import pickle
from pathlib import Path

from common import testing
from common.errors import CheckpointError
from common.weights import load_weights, read_weights

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn


class Network(nn.Module):
    """A convolution with BatchNorm and a classifier."""

    def __init__(self, classes: int = 10, extra: bool = False):
        super().__init__()
        self.architecture = "small"
        self.conv1, self.bn1, self.fc = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, classes)
        if extra:
            self.head = nn.Linear(8, 2)


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Other values in every parameter and buffer."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network


@pytest.fixture
def model():
    return fill(Network(), 5)


@pytest.fixture
def weights():
    return fill(Network(), 6).state_dict()


def save(content, path: Path) -> Path:
    (safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def test_every_released_form_of_checkpoint_loads(model, weights, tmp_path):
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    options = argparse.Namespace(model_s="resnet8", lr=0.05, lr_decay_epochs=[150, 180, 210], trial="1")
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9).state_dict()
    forms = {
        "bare.pth": weights,
        "teacher.pth": {"epoch": 240, "model": weights, "accuracy": torch.tensor(75.6), "optimizer": sgd},
        "state_dict.pth": {"epoch": 3, "state_dict": weights},
        "best.pth": {"epoch": 7, "model": prefixed, "best_acc": np.float64(75.6)},
        "last.pth": {"opt": options, "model": weights},
        "prefixed.pth": prefixed,
        "weights.safetensors": weights,
        "no_counters.pth": {k: v for k, v in weights.items() if "num_batches_tracked" not in k},  # before torch 0.4.1
    }
    for name, content in forms.items():
        fill(model, 5)
        load_weights(model, save(content, tmp_path / name))
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items()), name
    torch.save(forms["last.pth"], tmp_path / "2019.pth", _use_new_zipfile_serialization=False)
    load_weights(fill(model, 5), tmp_path / "2019.pth")
    assert torch.equal(model.fc.weight, weights["fc.weight"])


def damaged(kind: str, weights: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / ("bad.safetensors" if "safetensors" in kind else "bad.pth")
    whole = save(weights, path).read_bytes()
    if kind.startswith("truncated"):
        path.write_bytes(whole[: len(whole) // 2])
    elif kind.startswith("empty"):
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("404: Not Found\n")
    elif kind == "malicious":
        save({"model": weights, "opt": testing.Payload(folder / "canary")}, path)
    elif kind == "malicious pickle":
        testing.hostile(path, folder / "canary")
    elif kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "no weights":
        save({"model": {"lr": 0.1}}, path)
    elif kind == "list":
        save(list(weights.values()), path)
    elif kind == "no storage":
        save({key: value.to("meta") for key, value in weights.items()}, path)
    return path


KINDS = ["truncated", "truncated safetensors", "empty", "empty safetensors", "text", "malicious", "malicious pickle",
         "missing", "folder", "no weights", "list", "no storage"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_or_hostile_file_is_refused_and_changes_nothing(kind, model, weights, tmp_path):
    path = damaged(kind, weights, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=path.name):
        load_weights(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not (tmp_path / "canary").exists()
    if kind.startswith("malicious"):  # the payload is a live one
        (pickle.loads(path.read_bytes()) if "pickle" in kind else torch.load(path, weights_only=False))
        assert (tmp_path / "canary").exists()


def test_weights_of_another_network_are_refused_by_name_and_shape(model, weights, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    more = Network(extra=True).state_dict()
    less = {key: value for key, value in weights.items() if key != "fc.bias"}
    cases = {
        "more": (more, r"does not fit small: unexpected \(2\): head\.bias, head\.weight;"),
        "less": (less, r"does not fit small: missing \(1\): fc\.bias;"),
        "classes": (
            Network(100).state_dict(),
            r"of another shape \(2\): fc\.weight \[100, 8\] for \[10, 8\], fc\.bias",
        ),
    }
    for name, (content, message) in cases.items():
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, save(content, tmp_path / f"{name}.pth"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_named_entry_of_a_file_is_read(weights, tmp_path):
    path = save({"G": weights, "model": {"other": torch.zeros(1)}}, tmp_path / "gan.pth")
    assert read_weights(path, "G").keys() == weights.keys()
    assert list(read_weights(path)) == ["other"]
    with pytest.raises(CheckpointError, match="under 'D'"):
        read_weights(path, "D")
