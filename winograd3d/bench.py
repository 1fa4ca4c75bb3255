"""What packed Winograd layers cost against torch's conv3d: batch 1, one thread, pure torch, m = 2.

    python bench.py [--rounds 7] [--layers conv4b,layer3]

`<layer>_<percent>`: a layer of C3D (conv2 … conv5) or R3D-18 (layer1 … layer4) with that share of its positions
removed at random, packed. Reference: torch's conv3d on the same layer. Input and output contiguous on both sides; the
column `channels_last` is the cost with channels-last input on both sides.
`<layer>_<percent>_balanced`: the same share of the channels removed at every position (columns `channel_balanced`).
`<layer>_<percent>_unstructured`: the same share of Ŵ set to zero anywhere. Every column then keeps something, nothing
can be left out, and the dense products run as before. Reference as above.
`<layer>_<percent>_gemm`: the product stage alone. Reference: the product stage with every position.
`unblocked_mib`: V and M of the layer as a whole; `memory`: the same over the bytes of its input and output;
`block_mib`: V and M that are held at a time.
"""

import argparse
from pathlib import Path

from common.cost import compare, interleaved, table, write_bench
from common.errors import InputError
from common.run import entry

import torch
import torch.nn.functional as F
from torch import Tensor

from winograd3d.method import positions, tensors, tile_counts, weight_transform
from winograd3d.packed import BLOCK_BYTES, PackedConv3d, Workspace, blocks

# C_i, C_o and the input (D, H, W) of the layers with stride 1 (section 3); conv5 and layer4 have one shape.
LAYERS = {
    "conv2": (64, 128, (16, 56, 56)),
    "conv3a": (128, 256, (8, 28, 28)),
    "conv3b": (256, 256, (8, 28, 28)),
    "conv4a": (256, 512, (4, 14, 14)),
    "conv4b": (512, 512, (4, 14, 14)),
    "conv5": (512, 512, (2, 7, 7)),
    "layer1": (64, 64, (16, 56, 56)),
    "layer2": (128, 128, (8, 28, 28)),
    "layer3": (256, 256, (4, 14, 14)),
    "layer4": (512, 512, (2, 7, 7)),
}
PERCENT = (0, 30, 50, 70, 90)
TILE, PADDING = (2, 2, 2), (1, 1, 1)
BOUND = 1e-5  # of the largest output: what a layer may be off before its time counts for nothing


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds a row (default: 7)")
    parser.add_argument("--layers", default=",".join(LAYERS), help="names with commas between (default: all)")
    given = parser.parse_args(argv)
    names = given.layers.split(",")
    if unknown := set(names) - set(LAYERS):
        raise InputError(f"--layers {', '.join(sorted(unknown))}: choose from {', '.join(LAYERS)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {}
    with torch.no_grad():
        for name in names:
            rows |= bench_layer(name, given.rounds)
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


def bench_layer(name: str, rounds: int) -> dict:
    """The rows of one layer."""
    c_in, c_out, size = LAYERS[name]
    x = torch.randn(1, c_in, *size)
    kernel = torch.randn(c_out, c_in, 3, 3, 3) * (2 / (27 * c_in)) ** 0.5
    weight = weight_transform(kernel.double(), tensors(TILE).G).float()
    layers = {}
    for percent in PERCENT:
        layers[f"{name}_{percent}"] = pack(weight, position_mask(percent))
        if percent:
            layers[f"{name}_{percent}_balanced"] = pack(weight, balanced_mask(c_in, percent))
            zeroed = weight * (torch.rand_like(weight) >= percent / 100)
            layers[f"{name}_{percent}_unstructured"] = pack(zeroed, position_mask(0))
    require_exact(layers[f"{name}_0"](x), F.conv3d(x, kernel, padding=PADDING), name)

    rows = {}
    contiguous = against_conv3d(layers, x, kernel, rounds)
    last = torch.channels_last_3d
    other = against_conv3d(layers, x.contiguous(memory_format=last), kernel.contiguous(memory_format=last), rounds)
    for row, layer in layers.items():
        tiles = tile_counts(size, PADDING, TILE)
        rows[row] = contiguous[row].row(
            layout="contiguous", channels_last=other[row].cost, **workspace(layer, tiles, x.numel())
        )
    products = {f"{name}_{percent}": product_stage(layers[f"{name}_{percent}"], size) for percent in PERCENT}
    timings = compare(interleaved(products, rounds, warmup=1), f"{name}_0")
    rows |= {f"{row}_gemm": timing.row(layout="[n, P, C]") for row, timing in timings.items() if row != f"{name}_0"}
    return rows


def against_conv3d(layers: dict[str, PackedConv3d], x: Tensor, kernel: Tensor, rounds: int) -> dict:
    """Timings of the layers, each paired with torch's conv3d of its round."""
    functions = {row: (lambda layer=layer: layer(x)) for row, layer in layers.items()}
    functions["conv3d"] = lambda: F.conv3d(x, kernel, padding=PADDING)
    return compare(interleaved(functions, rounds, warmup=1), "conv3d")


def position_mask(percent: int) -> Tensor:
    """[n], all but this share of the positions kept, at random."""
    n = torch.Size(positions(TILE)).numel()
    kept = round(n * (1 - percent / 100))
    return torch.rand(n).argsort().argsort() < kept


def balanced_mask(channels: int, percent: int) -> Tensor:
    """[C_i, n], all but this share of the channels kept at every position, at random."""
    kept = round(channels * (1 - percent / 100))
    return torch.rand(channels, torch.Size(positions(TILE)).numel()).argsort(0).argsort(0) < kept


def pack(weight: Tensor, mask: Tensor) -> PackedConv3d:
    return PackedConv3d(weight, mask, None, TILE, PADDING)


def require_exact(y: Tensor, expected: Tensor, name: str) -> None:
    """A fast wrong answer is no answer. Errors: ArithmeticError."""
    error = float((y - expected).abs().max() / expected.abs().max())
    if not error <= BOUND:
        raise ArithmeticError(f"{name}: off by {error:.1e} of the largest output, allowed {BOUND:.0e}")


def product_stage(layer: PackedConv3d, size: tuple[int, int, int]):
    """The products of a whole layer on random V, block after block as in use."""
    counts = tile_counts(size, PADDING, TILE)
    kept, channels = len(layer.positions), layer.in_channels
    row = 4 * kept * (channels + layer.out_channels)
    parts = [
        torch.randn(kept, (depth.stop - depth.start) * (height.stop - height.start) * counts[2], channels)
        for _, depth, height in blocks(1, counts, BLOCK_BYTES // row)
    ]
    memory = Workspace(parts[0])
    return lambda: [layer.multiply(part, memory) for part in parts]


def workspace(layer: PackedConv3d, counts: tuple[int, int, int], inputs: int) -> dict:
    """How much V and M need as a whole, in MiB and over input and output, and at a time, in MiB."""
    tile = 4 * len(layer.positions) * (layer.in_channels + layer.out_channels)
    tiles = torch.Size(counts).numel()
    outputs = layer.out_channels * inputs // layer.in_channels
    largest = max(
        (depth.stop - depth.start) * (height.stop - height.start) * counts[2]
        for _, depth, height in blocks(1, counts, BLOCK_BYTES // tile)
    )
    return {
        "unblocked_mib": tile * tiles / 2**20,
        "memory": tile * tiles / (4 * (inputs + outputs)),
        "block_mib": tile * largest / 2**20,
    }


if __name__ == "__main__":
    entry(main)
