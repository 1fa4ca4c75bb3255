"""The networks of the paper's tables as supernets: `network(x, width)` gives the outputs, coarse first.

`network.slice(width)` cuts a sub-network out, `network.multiple` is what height and width must be divisible by.
"""

import functools
from os import PathLike

from common.cost import macs as count_macs
from common.cost import parameters
from common.errors import InputError
from common.weights import read_weights

import torch
from torch import nn

from dda.models.dmcnn import DMCNN
from dda.models.mbcnn import MBCNN
from dda.models.weights import detect, load_weights, size_of, stored_options

__all__ = ["DMCNN", "MBCNN", "NETWORKS", "build", "detect", "load_weights", "macs", "parameters", "restore"]
__all__ += ["stored_options"]

NETWORKS = ("mbcnn", "dmcnn")
HEADS = ("sigmoid", "linear", "residual")
STARTS = ("torch", "he")


def build(
    name: str,
    *,
    channels: int | None = None,
    lbf: str = "official",
    head: str = "sigmoid",
    fix_conv5_cat: bool = False,
    start: str = "torch",
) -> nn.Module:
    """The network of a name; channels: nFilters of MBCNN (64), finest branch of DMCNN (32). Errors: InputError."""
    if name not in NETWORKS:
        raise InputError(f"there is no network {name!r}; choose from {', '.join(NETWORKS)}")
    if head not in HEADS or lbf not in ("official", "idct"):
        raise InputError(f"head {head!r} and lbf {lbf!r}: choose from {', '.join(HEADS)} and from official, idct")
    if start not in STARTS or (name == "mbcnn" and start != "torch"):
        raise InputError(f"start {start!r}: choose from {', '.join(STARTS)}; he is for dmcnn only")
    if name == "dmcnn" and (lbf != "official" or fix_conv5_cat):
        raise InputError("lbf and fix_conv5_cat are parts of mbcnn; leave them out for dmcnn")
    mbcnn = name == "mbcnn"
    network = MBCNN(channels or 64, lbf, head, fix_conv5_cat) if mbcnn else DMCNN(channels or 32, head, start)
    network.options = {"lbf": lbf, "head": head, "fix_conv5_cat": fix_conv5_cat}
    return network


def restore(path: str | PathLike, **options) -> nn.Module:
    """The network whose weights a file holds, of the kind and size that its keys and shapes tell; in eval mode.

    options: those of `build` that leave no trace in the weights (lbf, head, fix_conv5_cat). Errors: CheckpointError.
    """
    state = read_weights(path)
    network = build(detect(state, path), channels=size_of(state, path), **options)
    load_weights(network, path, state)
    return network.eval()


def macs(network: nn.Module, width: float, size: tuple[int, int]) -> int:
    """Multiply-adds of one image [height, width] at a width: convolutions and linear layers, also the 1x1 filter.

    Counted on the meta device, so it costs no arithmetic; height and width as the network takes them.
    """
    return _macs(network.architecture.lower(), network.channels, round(width, 6), *size)


@functools.cache
def _macs(name: str, channels: int, width: float, height: int, width_px: int) -> int:
    return count_macs(_outline(name, channels), torch.empty(1, 3, height, width_px, device="meta"), width)


@functools.cache
def _outline(name: str, channels: int) -> nn.Module:
    # Kept for later calls, and routed inference may be the first to ask: an inference tensor could not be counted.
    with torch.inference_mode(False), torch.device("meta"):
        return build(name, channels=channels)
