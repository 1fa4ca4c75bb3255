"""What Winograd layers cost on an input: trainables, columns, multiply-adds, predicted and measured time, error."""

import copy
from dataclasses import asdict, dataclass
from typing import NamedTuple

from common.cost import interleaved
from common.errors import InputError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from winograd3d.api import layer_inputs, packed
from winograd3d.convolution import WinogradConv3d
from winograd3d.functional import Triple, winograd_conv3d
from winograd3d.masks import winograd_layers
from winograd3d.method import column_mask, kept_columns, output_size, product_macs, tile_counts


@dataclass(frozen=True)
class LayerReport:
    """What one Winograd layer costs on one input."""

    name: str
    channels: str
    size: str
    tile: str
    trainables: int
    """trained numbers of the weight: P and Q, Ŵ or K"""
    stored: int
    """numbers that the packed layer keeps"""
    columns: int
    kept: int
    """of the columns, counted over C_i x n"""
    sparsity: float
    """share of columns removed"""
    macs: int
    """multiply-adds of the product stage, tiles at the border counted whole"""
    macs_direct: int
    reduction: float
    """direct / kept multiply-adds"""
    predicted_ms: float
    """of the packed layer, from this machine's matrix product and copy rates"""
    packed_ms: float
    dense_ms: float
    """the same layer with all columns"""
    direct_ms: float
    """torch's conv3d"""
    error: float
    """max |packed - the same in float64| / max |float64|"""

    def row(self) -> dict:
        """For `common.cost.table`."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


class Rates(NamedTuple):
    """What this machine does in a second: multiply-adds of fp32 matrix products, and fp32 numbers copied."""

    macs: float
    numbers: float


def machine_rates(device: torch.device | str = "cpu", side: int = 512) -> Rates:
    """Measured once with a product of two side x side matrices and a copy of 8 M numbers, on torch's threads."""
    a, big = torch.randn(side, side, device=device), torch.randn(1 << 23, device=device)
    seconds = interleaved({"product": lambda: a @ a, "copy": big.clone}, rounds=5, warmup=2)
    return Rates(side**3 / min(seconds["product"]), big.numel() / min(seconds["copy"]))


def predicted_seconds(kept: int, layer: WinogradConv3d, size: Triple, samples: int, rates: Rates) -> float:
    """Products at the rate of matrix products, plus every number that has to be moved at the rate of a copy.

    Moved: the input, its kept transformed columns, the products, the output, and the weights. A model of the unblocked
    path, without cache effects; compare it with what was measured.
    """
    tiles = samples * volume(tile_counts(size, layer.padding, layer.tile))
    spots = int(column_mask(layer.mask).view(-1, layer.positions).any(0).sum())
    outside = layer.in_channels * volume(size) + layer.out_channels * volume(output_size(size, layer.padding))
    moved = samples * outside + tiles * (kept + spots * layer.out_channels) + kept * layer.out_channels
    return product_macs(kept, layer.out_channels, tiles) / rates.macs + moved / rates.numbers


@torch.no_grad()
def report(model: nn.Module, example: Tensor, rounds: int = 5, rates: Rates | None = None) -> list[LayerReport]:
    """What every Winograd layer costs on the input that it gets from `example`, with measured times.

    rounds: interleaved calls of packed, dense Winograd and direct convolution, of which the median counts.
    Errors: InputError for a model without Winograd layers (pack it afterwards) or a mask that empties one.
    """
    layers = winograd_layers(model)
    if not layers:
        raise InputError("the model has no Winograd layer; convert it first, and report before packing")
    rates = rates or machine_rates(example.device)
    inputs = layer_inputs(model, example, WinogradConv3d)
    return [_report(name, layer, inputs[layer], rounds, rates) for name, layer in layers.items()]


def _report(name: str, layer: WinogradConv3d, x: Tensor, rounds: int, rates: Rates) -> LayerReport:
    sparse, dense, size = packed(layer), packed(layer, dense=True), tuple(x.shape[2:])
    kernel = torch.randn(layer.out_channels, layer.in_channels, 3, 3, 3, dtype=x.dtype, device=x.device)
    bias = None if layer.bias is None else layer.bias.detach()
    calls = {
        "packed": lambda: sparse(x),
        "dense": lambda: dense(x),
        "direct": lambda: F.conv3d(x, kernel, bias, padding=layer.padding),
    }
    times = {key: 1e3 * sorted(values)[len(values) // 2] for key, values in interleaved(calls, rounds, 1).items()}
    kept = kept_columns(layer.mask, layer.in_channels)
    tiles = len(x) * volume(tile_counts(size, layer.padding, layer.tile))
    macs = product_macs(kept, layer.out_channels, tiles)
    outputs = len(x) * volume(output_size(size, layer.padding))
    direct = 27 * layer.in_channels * layer.out_channels * outputs
    wide = copy.deepcopy(layer).double()
    exact = winograd_conv3d(x.double(), wide.effective_weight(), wide.bias, wide.tile, wide.padding, wide.axes)
    return LayerReport(
        name=name,
        channels=f"{layer.in_channels} -> {layer.out_channels}",
        size="x".join(map(str, size)),
        tile="x".join(map(str, layer.tile)),
        trainables=layer.trainables(),
        stored=kept * layer.out_channels + (0 if layer.bias is None else layer.out_channels),
        columns=layer.columns,
        kept=kept,
        sparsity=1 - kept / layer.columns,
        macs=macs,
        macs_direct=direct,
        reduction=direct / macs,
        predicted_ms=1e3 * predicted_seconds(kept, layer, size, len(x), rates),
        packed_ms=times["packed"],
        dense_ms=times["dense"],
        direct_ms=times["direct"],
        error=float((sparse(x) - exact).abs().max() / exact.abs().max().clamp(min=1e-30)),
    )


def volume(values: Triple) -> int:
    """Samples of a block."""
    return values[0] * values[1] * values[2]
