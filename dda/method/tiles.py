"""Cutting an image into large tiles and putting it together again (sections 2.2 and 2.7)."""

import itertools

import torch
from torch import Tensor

__all__ = ["blend", "covering", "cut", "offsets", "ramp", "stitch"]

THRESHOLD = 96  # pixels that may be left over before another, overlapping tile is cut


def offsets(length: int, tile: int, stride: int | None = None, threshold: int = THRESHOLD) -> list[int]:
    """Where the release's tiles begin along one axis; a rest of at most `threshold` pixels is dropped.

    ValueError if no tile fits.
    """
    if not 0 < tile <= length:
        raise ValueError(f"a tile of {tile} pixels does not fit into {length}")
    starts = list(range(0, length - tile + 1, stride or tile))
    if length - (starts[-1] + tile) > threshold:
        starts.append(length - tile)
    return starts


def covering(length: int, tile: int, overlap: int = 0) -> list[int]:
    """Where tiles begin that leave no pixel out and share at least `overlap` pixels with their neighbours."""
    if length <= tile:
        return [0]
    gaps = -(-(length - tile) // (tile - overlap))
    return [round(i * (length - tile) / gaps) for i in range(gaps + 1)]


def cut(image: Tensor, rows: list[int], columns: list[int], height: int, width: int) -> Tensor:
    """The tiles of an image [3, H, W], row by row: [N, 3, height, width]."""
    return torch.stack([image[:, top : top + height, left : left + width] for top in rows for left in columns])


def stitch(tiles: Tensor, rows: list[int], columns: list[int], size: tuple[int, int]) -> Tensor:
    """Tiles [N, C, h, w] added into a canvas [C, H, W] of zeros, as the release does; overlaps add up."""
    canvas = tiles.new_zeros(tiles.shape[1], *size)
    places = [(top, left) for top in rows for left in columns]
    for tile, (top, left) in zip(tiles, places, strict=True):
        canvas[:, top : top + tile.shape[1], left : left + tile.shape[2]] += tile
    return canvas


def ramp(length: int, begins: int, ends: int, like: Tensor) -> Tensor:
    """A weight of 1 that falls to 0 over `begins` pixels at the start and `ends` at the end: [length]."""
    position = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
    rise = position / max(begins, 1) if begins else torch.ones_like(position)
    fall = (length - position) / max(ends, 1) if ends else torch.ones_like(position)
    return torch.minimum(rise, fall).clamp(max=1)


def blend(tiles: Tensor, rows: list[int], columns: list[int], size: tuple[int, int]) -> Tensor:
    """Tiles [N, C, h, w] as one image [C, H, W], each faded out linearly where it overlaps its neighbours."""
    height, width = tiles.shape[2:]
    canvas, total = tiles.new_zeros(tiles.shape[1], *size), tiles.new_zeros(1, *size)
    vertical, horizontal = _ramps(rows, height, tiles), _ramps(columns, width, tiles)
    places = [(y, x) for y in range(len(rows)) for x in range(len(columns))]
    for tile, (y, x) in zip(tiles, places, strict=True):
        weight = vertical[y][:, None] * horizontal[x][None]
        area = (slice(None), slice(rows[y], rows[y] + height), slice(columns[x], columns[x] + width))
        canvas[area] += tile * weight
        total[area] += weight
    return canvas.div_(total)


def _ramps(starts: list[int], length: int, like: Tensor) -> list[Tensor]:
    """The weight of each tile along one axis."""
    shared = [0, *(before + length - after for before, after in itertools.pairwise(starts)), 0]
    return [ramp(length, max(0, shared[i]), max(0, shared[i + 1]), like) for i in range(len(starts))]
