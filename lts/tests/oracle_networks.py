"""What networks and flops hold: logits and bounds of every network under a rule that fills its weights, and counts."""

import zlib

from common import cost

import numpy as np
import torch
from torch import Tensor, nn

from lts.accounting import layer_macs
from lts.method import initialise, quantise, quantised_layers, quantiser_parameters
from lts.models import build
from lts.tests.archive import Archive, assert_close

# The files' names of the networks; those not listed are ours too.
NAMES = {"mv1": "mobilenetv1", "mv2": "mobilenetv2"}
FLOAT, EIGHT_BITS, BOUNDS, CORRELATION = 1e-4, 5e-2, 1e-4, 0.85
EXACT_ROWS = 4  # layers before whose inputs no rounding can have flipped


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and buffer the values that the weight rule derives from its name (section 13)."""
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        r = np.random.default_rng((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(tuple(value.shape))
        if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            r = 0.8 + 0.2 * np.abs(r)
        elif value.ndim >= 2:
            r = r * np.sqrt(2 / np.prod(value.shape[1:]))
        else:
            r = 0.05 * r
        value.copy_(torch.from_numpy(r))
    return module


@torch.no_grad()
def check_networks(arrays: dict[str, np.ndarray]) -> None:
    """Logits in full precision and at every bit width of the file, and the bounds that initialisation finds."""
    file = Archive(arrays)
    seed = int(file["hp_seed"])
    for name in file.names(r"hp_(.+)_in_shape"):
        shape = file[f"hp_{name}_in_shape"].tolist()
        images = torch.from_numpy(np.random.default_rng(seed + 21).standard_normal(shape)).float()
        for bits in file.names(rf"out_{name}_b(\d+)"):
            reference = file[f"out_{name}_b{bits}"]
            network = fill(build(NAMES.get(name, name), reference.shape[-1]), seed)
            at = f"{name} at {bits} bits"
            if int(bits) == 32:
                assert_close(network.eval()(images), reference, FLOAT, at)
            else:
                check_quantised(network, int(bits), images, reference, file[f"param_{name}_b{bits}_bounds"], at)
    file.finish()


def check_quantised(network: nn.Module, bits: int, images: Tensor, logits: Tensor, bounds: Tensor, at: str) -> None:
    """Bounds (lW, uW, lA, uA) in module order, and logits: a rounding may flip with the order of a sum."""
    quantise(network, bits, bits)
    initialise(network, images)
    parts = [(x.weight_quantiser, x.activation_quantiser) for x in quantised_layers(network).values()]
    found = torch.tensor([[w.lower, w.upper, a.lower, a.upper] for w, a in parts])
    assert_close(found[:, :2], bounds[:, :2], BOUNDS, f"{at}: bounds of the weights")
    assert_close(found[:EXACT_ROWS], bounds[:EXACT_ROWS], BOUNDS, f"{at}: bounds")
    ours = network.eval()(images)
    if bits == 8:
        assert_close(ours, logits, EIGHT_BITS, at)
    else:
        correlation = torch.corrcoef(torch.stack([ours.flatten(), logits.flatten()]))[0, 1].item()
        assert correlation > CORRELATION, f"{at}: logits correlate by {correlation:.3f} only"


def check_flops(arrays: dict[str, np.ndarray]) -> None:
    """Multiply-adds and weights of every layer in the order of execution, and parameters: all exact."""
    file = Archive(arrays)
    for name in file.names(r"in_(.+)_shape"):
        want = {key: file[f"out_{name}_{key}"].tolist() for key in ("layer_macs", "layer_weights", "total_macs")}
        want |= {key: int(file[f"out_{name}_{key}"]) for key in ("total_params", "quant_params")}
        shape = file[f"in_{name}_shape"].tolist()
        with torch.device("meta"):
            network = build(NAMES.get(name, name), 1)
            last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
            network = quantise(build(NAMES.get(name, name), want["layer_weights"][-1] // last.in_features))
            macs = layer_macs(network, torch.empty(shape))
        layers = quantised_layers(network)
        assert [*macs] == [*layers], f"{name}: the order of execution is not that of the modules"
        found = {
            "layer_macs": [*macs.values()],
            "layer_weights": [layer.weight.numel() for layer in layers.values()],
            "total_macs": sum(macs.values()),
            "total_params": cost.parameters(network).trainable,
            "quant_params": sum(p.numel() for p in quantiser_parameters(network)),
        }
        for key in want:
            assert found[key] == want[key], f"{name}: {key} {found[key]}, reference {want[key]}"
    file.finish()
