"""What networks.npz holds: counts, logits and features of every network under a rule that fills its weights."""

import re
import zlib

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kcd.models import build

# Of the reference's root mean square: of the logits, or of the feature that a statistic belongs to.
TOLERANCE = 1e-3
RMS = 2  # position among the statistics mean, mean absolute value, rms, first, last
COMMON = {"hp_seed", "hp_num_classes"}
COUNTS = ("hp_{}_params", "hp_{}_macs")
OUTPUTS = ("out_{}_logits", "out_{}_feat_shapes", "out_{}_feat_stats", "out_{}_preact_stats")


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and buffer the values that the weight rule derives from its name."""
    state = module.state_dict()
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng((zlib.crc32(key.encode()) + seed) % 2**32)
        r = rng.standard_normal(tuple(value.shape))
        if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            r = 0.8 + 0.2 * np.abs(r)
        elif value.ndim >= 2:
            r = r * np.sqrt(2 / np.prod(value.shape[1:]))
        else:
            r = 0.05 * r
        value.copy_(torch.from_numpy(r))
    return module


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def count_macs(model: nn.Module, images: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image; bias, BN and pooling are free."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // (2 * len(images))


def statistics(features: list[torch.Tensor]) -> np.ndarray:
    """[mean, mean absolute value, rms, first, last] of each feature, batch included."""
    flat = [f.flatten() for f in features]
    rows = [torch.stack([f.mean(), f.abs().mean(), f.square().mean().sqrt(), f[0], f[-1]]) for f in flat]
    return torch.stack(rows).numpy()


def check_networks(arrays: dict[str, np.ndarray]) -> None:
    """Every network named in a networks.npz: counts and shapes exact, the rest within TOLERANCE."""
    names = sorted(match[1] for match in map(re.compile("hp_(.+)_params").fullmatch, arrays) if match)
    read = COMMON | {key.format(name) for name in names for key in COUNTS + OUTPUTS}
    assert names, "the file names no network"
    assert arrays.keys() == read, f"keys missing or read by no check: {sorted(arrays.keys() ^ read)}"
    seed, classes = int(arrays["hp_seed"]), int(arrays["hp_num_classes"])
    image = torch.from_numpy(np.random.default_rng(seed + 31).standard_normal((2, 3, 32, 32))).float()
    for name in names:
        model = fill(build(name, classes), seed).eval()
        counts = [count_parameters(model), count_macs(model, image)]
        assert counts == [arrays[key.format(name)] for key in COUNTS], f"{name}: parameters, MACs {counts}"
        check_outputs(name, model, image, *(arrays[key.format(name)] for key in OUTPUTS))


@torch.no_grad()
def check_outputs(
    name: str,
    model: nn.Module,
    image: torch.Tensor,
    logits: np.ndarray,
    shapes: np.ndarray,
    feature_statistics: np.ndarray,
    preact_statistics: np.ndarray,
) -> None:
    """Logits, feature shapes [C, H, W] padded with 0, and statistics of features and pre-activations."""
    for preact, reference in ((False, feature_statistics), (True, preact_statistics)):
        features, output = model(image, is_feat=True, preact=preact)
        error = np.abs(output.numpy() - logits).max() / np.sqrt(np.mean(logits**2))
        assert error <= TOLERANCE, f"{name}: logits differ by {error:.1e} of their rms"
        found = [[*f.shape[1:], 0, 0][:3] for f in features]
        assert found == shapes.tolist(), f"{name}: feature shapes {found}"
        errors = np.abs(statistics(features) - reference).max(1)
        assert (errors <= TOLERANCE * reference[:, RMS]).all(), f"{name}, preact={preact}: off by {errors}"
    assert torch.equal(model(image), output), f"{name}: is_feat changes the logits"
