"""Sparse inference against the masked dense layer: any tile, mask, padding, size, batch, block, memory format."""

from common.errors import InputError

import pytest
import torch
import torch.nn.functional as F

from winograd3d import packed
from winograd3d.convolution import winograd_conv3d
from winograd3d.method import tensors, weight_transform
from winograd3d.packed import PackedConv3d, Workspace, blocks, combine

C_IN, C_OUT = 4, 5
TILES = [(2, 2, 2), (4, 4, 4), (2, 4, 4), (1, 2, 2), (1, 4, 4), (4, 1, 2)]
MASKS = ["dense", "position", "ragged", "balanced", "one position", "one column", "channel gone"]


def weight(tile: tuple[int, int, int]) -> torch.Tensor:
    """Winograd-domain weights off the range of G₃, so that no position is redundant."""
    torch.manual_seed(0)
    kernel = torch.randn(C_OUT, C_IN, 3, 3, 3, dtype=torch.float64)
    exact = weight_transform(kernel, tensors(tile).G)
    return exact + 0.1 * torch.randn_like(exact)


def mask(kind: str, n: int) -> torch.Tensor:
    """A mask [n] or [C_i, n], True = kept."""
    torch.manual_seed(1)
    single = torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor([n // 2]), True)
    return {
        "dense": torch.ones(n, dtype=torch.bool),
        "position": torch.rand(n) < 0.4,
        "ragged": torch.rand(C_IN, n) < 0.3,  # some positions keep nothing
        "balanced": torch.rand(C_IN, n).argsort(0) < 2,
        "one position": single,
        "one column": single & (torch.arange(C_IN) == 1)[:, None],
        "channel gone": (torch.rand(C_IN, n) < 0.7) & (torch.arange(C_IN) != 2)[:, None],
    }[kind]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("tile", TILES)
def test_packed_is_the_masked_dense_layer(tile, kind, monkeypatch):
    u = weight(tile)
    kept, bias = mask(kind, u.shape[2]), torch.randn(C_OUT, dtype=torch.float64)
    first, last = torch.contiguous_format, torch.channels_last_3d
    cases = [
        ((1, 1, 1), (5, 7, 9), 3000, first),
        ((1, 1, 1), (5, 7, 9), 2**25, last),
        ((0, 2, 1), (6, 3, 8), 2**25, first),
        ((3, 0, 0), (1, 4, 5), 1, last),
    ]
    for padding, size, memory, layout in cases:
        monkeypatch.setattr(packed, "BLOCK_BYTES", memory)
        x = torch.randn(2, C_IN, *size, dtype=torch.float64).contiguous(memory_format=layout)
        expected = winograd_conv3d(x, u * kept.view(1, -1, u.shape[2]), bias, tile, padding)
        layer = PackedConv3d(u, kept, bias, tile, padding)
        for y in (layer(x), layer.functional(x)):
            assert y.shape == expected.shape and y.dtype == x.dtype
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("points", ["lavin", "half"])
def test_all_columns_are_the_direct_convolution(points):
    kernel = torch.randn(C_OUT, C_IN, 3, 3, 3)
    u = weight_transform(kernel.double(), tensors((2, 4, 4), points).G).float()
    x = torch.randn(2, C_IN, 4, 9, 8)
    y = PackedConv3d(u, mask("dense", u.shape[2]), None, (2, 4, 4), (1, 1, 1), points)(x)
    expected = F.conv3d(x, kernel, padding=1)
    assert (y - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_only_kept_columns_are_stored():
    u = weight((2, 2, 2))
    for kind in MASKS:
        kept = mask(kind, 64)
        columns = int(kept.expand(C_IN, 64).sum())
        layer = PackedConv3d(u, kept, None, (2, 2, 2), (1, 1, 1))
        assert layer.kept == len(layer.weight) == columns and layer.weight.shape[1] == C_OUT, kind
        assert (layer.channel is None) == (kept.ndim == 1 or kind == "one column"), kind


def test_what_no_kept_position_needs_is_not_computed(monkeypatch):
    """One position reads two slices an axis; a removed channel is never looked at, whatever it holds."""
    rows = []
    monkeypatch.setattr(packed, "combine", lambda out, *rest: rows.append(len(out)) or combine(out, *rest))
    u = weight((2, 2, 2))
    x = torch.randn(1, C_IN, 4, 4, 4, dtype=torch.float64)
    PackedConv3d(u, mask("one position", 64), None, (2, 2, 2), (1, 1, 1))(x)
    assert len(rows) == 3
    rows.clear()
    PackedConv3d(u, mask("dense", 64), None, (2, 2, 2), (1, 1, 1))(x)
    assert len(rows) == 12  # four rows an axis, each over all that is there
    gone = mask("channel gone", 64)
    expected = PackedConv3d(u, gone, None, (2, 2, 2), (1, 1, 1))(x)
    x[:, 2] = torch.nan
    assert torch.equal(PackedConv3d(u, gone, None, (2, 2, 2), (1, 1, 1))(x), expected)


def test_uninitialised_memory_is_never_read(monkeypatch):
    take = Workspace.take
    monkeypatch.setattr(Workspace, "take", lambda *given: take(*given).fill_(torch.nan))
    u = weight((2, 2, 2))
    x = torch.randn(2, C_IN, 5, 4, 7, dtype=torch.float64)
    for kind in MASKS:
        assert PackedConv3d(u, mask(kind, 64), None, (2, 2, 2), (1, 1, 1))(x).isfinite().all(), kind


def test_memory_format_and_type_are_those_of_the_input():
    u = weight((2, 2, 2)).float()
    layer = PackedConv3d(u, mask("position", 64), torch.zeros(C_OUT), (2, 2, 2), (1, 1, 1))
    x = torch.randn(2, C_IN, 4, 5, 8)  # a part of the last tiles is cut off
    last = torch.channels_last_3d
    assert layer(x).is_contiguous() and not layer(x).is_contiguous(memory_format=last)
    assert layer(x.contiguous(memory_format=last)).is_contiguous(memory_format=last)
    low = layer(x.bfloat16())  # transforms and sums stay in the type of the weights
    assert low.dtype == torch.bfloat16 and torch.equal(low, layer(x.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("most", [1, 5, 6, 24, 30, 48, 100])
def test_blocks_cover_every_tile_once_and_stay_small(most):
    samples, counts = 3, (4, 3, 2)
    seen = torch.zeros(samples, *counts[:2])
    for block in blocks(samples, counts, most):
        seen[block] += 1
        assert seen[block].numel() * counts[2] <= max(most, counts[2])
    assert torch.equal(seen, torch.ones_like(seen))


@pytest.mark.parametrize("row", [[1, 0, -1, 0], [0, -1, 1, 0], [0, 0, 1], [4, 0, -5, 0, 1, 0], [0.5, 2, 3], [-1, 0, 0]])
def test_a_row_of_the_transform_is_its_linear_combination(row):
    # What has no part in the sum is not even read.
    slices = [torch.randn(3, dtype=torch.float64) if c else torch.full((3,), torch.nan) for c in row]
    out = torch.full((3,), torch.nan, dtype=torch.float64)
    combine(out, slices, row)
    torch.testing.assert_close(out, sum(c * part for c, part in zip(row, slices) if c))


@pytest.mark.parametrize("kind", ["position", "ragged"])
def test_it_can_be_exported(kind):
    u = weight((2, 2, 2)).float()
    layer = PackedConv3d(u, mask(kind, 64), torch.randn(C_OUT), (2, 2, 2), (1, 1, 1)).eval()
    x = torch.randn(1, C_IN, 4, 5, 6)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x), rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused():
    u = weight((2, 2, 2))
    layer = PackedConv3d(u, mask("position", 64), None, (2, 2, 2), (0, 0, 0))
    for shape in ((1, 3, 4, 4, 4), (1, C_IN, 2, 4, 4), (C_IN, 4, 4, 4)):
        with pytest.raises(InputError, match=r"it takes \[N, 4, D, H, W\]"):
            layer(torch.zeros(shape, dtype=torch.float64))
    for empty in (torch.zeros(64, dtype=torch.bool), torch.zeros(C_IN, 64, dtype=torch.bool)):
        with pytest.raises(InputError, match="keeps no column"):
            PackedConv3d(u, empty, None, (2, 2, 2), (1, 1, 1))
