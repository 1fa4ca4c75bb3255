"""What net_*.npz hold: outputs of narrow and of full-size networks, in evaluation mode and float64."""

import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from rebnn.method import BinaryConv2d
from rebnn.models import build
from rebnn.models.resnet import BinaryResNet

TOLERANCE = 1e-5
"""of the largest absolute value of an array"""
NETWORKS = {
    "net_rebnn18": ("resnet18", "released"),
    "net_rebnn34": ("resnet34", "released"),
    "net_reactnet18_step1": ("resnet18", "real"),
    "net_reactnet18_step2": ("resnet18", "reactnet"),
}
"""network and kind of weights of each full-size file"""
INFORMATION = {"out_sign_margin", "out_logits_float32_run"}
"""keys that say how the numbers came about and are no result in float64"""


def rule(key: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    """The value of a state entry, float32: a function of its name and the salt (section 13)."""
    z = np.random.default_rng(zlib.crc32(key.encode()) + salt).standard_normal(shape).astype(np.float32)
    parts, f = key.split("."), np.float32
    if parts[-1] == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if parts[-1] == "running_mean":
        return f(0.1) * z
    if parts[-1] == "running_var":
        return f(0.5) * np.abs(z) + f(0.5)
    if parts[-1] in ("scaling_factor", "scale") and len(shape) == 4:
        return z
    if any(part.startswith("move") for part in parts):
        return f(0.1) * z
    if any(part.startswith("prelu") for part in parts):
        return f(0.25) + f(0.05) * z
    if parts[-1] == "bias":
        return f(0.1) * z
    if parts[-1] == "weight" and len(shape) == 1:
        return f(1) + f(0.1) * z
    return f(0.05) * z


def filled(network: nn.Module, salt: int) -> nn.Module:
    """The network with every parameter and buffer of an official state dict as the rule gives it."""
    state = network.state_dict()
    network.load_state_dict({key: torch.from_numpy(rule(key, tuple(v.shape), salt)) for key, v in state.items()})
    return network


def near(name: str, found: torch.Tensor, wanted: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """Equal shapes, and differences within the tolerance times the largest wanted value."""
    assert tuple(found.shape) == wanted.shape, f"{name}: {tuple(found.shape)}, wanted {wanted.shape}"
    error = np.abs(found.detach().numpy() - wanted).max()
    assert error <= tolerance * (np.abs(wanted).max() or 1), f"{name} differs by {error:.1e}"


def check_outputs(arrays: dict[str, np.ndarray], outputs: dict[str, torch.Tensor]) -> None:
    """Every out_ key of the file: an output, or its mean or mean absolute value per channel."""
    wanted = {key.removeprefix("out_"): value for key, value in arrays.items() if key.startswith("out_")}
    assert "logits" in wanted, "the file holds no logits"
    for name in wanted.keys() - {key.removeprefix("out_") for key in INFORMATION}:
        base, _, statistic = name.rpartition("_")
        if statistic == "mean":
            near(name, outputs[base].mean((0, 2, 3)), wanted[name])
        elif statistic == "absmean":
            near(name, outputs[base].abs().mean((0, 2, 3)), wanted[name])
        else:
            near(name, outputs[name], wanted[name])


@torch.no_grad()
def outputs_of(network: BinaryResNet, images: np.ndarray) -> dict[str, torch.Tensor]:
    """The logits and maps of a network in evaluation mode, by the names that the files use."""
    network = network.double().eval()
    x = torch.from_numpy(images).double()
    maps = network.features(x)
    names = ["maxpool", *(f"layer{i}" for i in range(1, len(maps)))]
    return {"logits": network(x), **dict(zip(names, maps))}


def check_narrow(arrays: dict[str, np.ndarray]) -> None:
    """net_narrow: a network of the file's widths and depths with the file's state."""
    state = {key.removeprefix("param_"): torch.from_numpy(v) for key, v in arrays.items() if key.startswith("param_")}
    layers, channels = arrays["hp_layers"].tolist(), arrays["hp_channels"].tolist()
    network = BinaryResNet(layers, channels, len(state["fc.bias"]), partial(BinaryConv2d, binarizer="released"))
    network.load_state_dict(state)
    check_outputs(arrays, outputs_of(network, arrays["in_x"]))


def check_full(kind: str) -> Callable[[dict[str, np.ndarray]], None]:
    """The check of a full-size kind: parameters counted, state by the rule."""
    name, weights = NETWORKS[kind]

    def check(arrays: dict[str, np.ndarray]) -> None:
        network = filled(build(name, arrays["out_logits"].shape[1], weights), int(arrays["hp_rule_salt"]))
        assert sum(p.numel() for p in network.parameters()) == int(arrays["hp_num_parameters"])
        check_outputs(arrays, outputs_of(network, arrays["in_x"]))

    return check


CHECKS = {"net_narrow": check_narrow, **{kind: check_full(kind) for kind in NETWORKS}}
