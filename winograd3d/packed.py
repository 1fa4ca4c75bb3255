"""Sparse inference: only kept columns are stored, transformed and multiplied (section 2.9), block by block of tiles.

Inside, channels come last: a transform then adds long contiguous rows, a product is [P, C_i] x [C_i, C_o] for every
position, and neither gathers. V and M of a block share BLOCK_BYTES, so that they stay in the last-level cache between
the three stages; a layer that fits as a whole is one block, and its weights are streamed once (section 12.4).
"""

import itertools
from collections.abc import Iterator

from common.errors import InputError

import torch
from torch import Tensor, nn

from winograd3d.method import crop, expand, input_transform, output_size, pad_to_tiles, tensors, tile_counts

BLOCK_BYTES = 32 * 2**20
Triple = tuple[int, int, int]


class PackedConv3d(nn.Module):
    """A merged Winograd layer for inference: stride 1, any size, padding, batch, tile and mask.

    weight: [C_o, C_i, n]; mask: [n] or [C_i, n], True = kept; bias: [C_o] or None. A position without kept columns
    contributes nothing, a channel without kept columns is never transformed. Input [N, C_i, D, H, W], output
    [N, C_o, D', H', W'] in the memory format and type of the input; computed in the type of the weight. Errors:
    InputError for a mask that keeps nothing and for an input that the layer does not fit.
    """

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        tile: Triple,
        padding: Triple,
        points: str = "lavin",
    ):
        super().__init__()
        self.out_channels, self.in_channels, positions = weight.shape
        self.tile, self.padding, self.points = tuple(tile), tuple(padding), points
        columns = expand(mask)[0].expand(self.in_channels, -1)  # C_i, n
        if not columns.any():
            raise InputError("the mask keeps no column, so the layer would be its bias alone; keep at least one")
        self.kept = int(columns.sum())
        self.positions = columns.any(0).nonzero()[:, 0].tolist()
        used = columns.any(1).nonzero()[:, 0]
        self.counts = columns.sum(0)[self.positions].tolist()  # k_p of every kept position
        at, channel = columns[used].T.nonzero().unbind(1)  # by position, then by channel: both ascending
        self.register_buffer("weight", weight[:, used].permute(2, 1, 0)[at, channel].contiguous())  # kept, C_o
        self.channel = self.used = self.bias = None  # plain where there is nothing: torch.export counts empty buffers
        if min(self.counts) < len(used):
            self._buffer("channel", channel)  # kept, among the used
        if len(used) < self.in_channels:
            self._buffer("used", used)
        if bias is not None:
            self._buffer("bias", bias)
        axes = tensors(self.tile, points, weight.dtype, weight.device)
        inverse = torch.einsum("ip,jq,kr->ijkpqr", *axes.AT).reshape(-1, positions)
        self.register_buffer("inverse", inverse[:, self.positions].contiguous())  # m³, kept positions
        self.rows = [matrix.tolist() for matrix in axes.BT]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        size = output_size(x.shape[2:], self.padding)
        if x.ndim != 5 or x.shape[1] != self.in_channels or min(size) < 1:
            raise InputError(
                f"the layer got an input {[*x.shape]}; it takes [N, {self.in_channels}, D, H, W] that with padding "
                f"{[*self.padding]} is no smaller than the kernel 3x3x3"
            )
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.functional(x)
        counts = tile_counts(x.shape[2:], self.padding, self.tile)
        padded = self._channels_last(x, counts)
        extent = [edge for pair in zip(counts, self.tile) for edge in pair]  # t_d, m_d, t_h, m_h, t_w, m_w
        last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
        if last:
            y = padded.new_empty(len(x), *extent, self.out_channels).movedim(-1, 1)
        else:
            y = padded.new_empty(len(x), self.out_channels, *extent)
        row_bytes = padded.element_size() * len(self.positions) * (padded.shape[-1] + self.out_channels)
        memory = Workspace(padded)
        for samples, depth, height in blocks(len(x), counts, BLOCK_BYTES // row_bytes):
            v = self.transform(_tiles_of(padded[samples], self.tile, depth, height), memory)
            outputs = memory.take("outputs", self.inverse.shape[0], v[0, ..., 0].numel() * self.out_channels)
            torch.mm(self.inverse, self.multiply(v.flatten(1, -2), memory).flatten(1), out=outputs)
            outputs = outputs.view(*self.tile, *v.shape[1:-1], self.out_channels)
            if self.bias is not None:
                outputs += self.bias
            y[samples, :, depth, :, height].copy_(outputs.permute(3, 7, 4, 0, 5, 1, 6, 2))
        y = y.reshape(len(x), self.out_channels, *(t * m for t, m in zip(counts, self.tile)))
        layout = torch.channels_last_3d if last else torch.contiguous_format
        return crop(y, size).to(x.dtype).contiguous(memory_format=layout)

    def transform(self, tiles: Tensor, memory: "Workspace") -> Tensor:
        """V of a block at the kept positions: [N, D, H, W, C] -> [|J|, N, t_d, t_h, t_w, C].

        One axis after the other, each only where a kept position needs it: (a), then (a, b), then (a, b, c).
        """
        made, before = tiles[None], [()]
        for axis, matrix in enumerate(self.rows):
            m, taps = self.tile[axis], len(matrix)
            count = (tiles.shape[1 + axis] - taps) // m + 1
            wanted = sorted({place[: axis + 1] for place in self._places()})
            slices = [made.narrow(2 + axis, i, m * (count - 1) + 1) for i in range(taps)]
            slices = [part[(slice(None),) * (2 + axis) + (slice(None, None, m),)] for part in slices]
            out = memory.take(f"axis {axis}", len(wanted), *slices[0].shape[1:])
            if len(wanted) == len(before) * taps:  # all of them: one operation for every row of Bᵀ
                for row, coefficients in enumerate(matrix):
                    combine(out.unflatten(0, (len(before), taps))[:, row], slices, coefficients)
            else:
                number = {place: i for i, place in enumerate(before)}
                for i, (*place, row) in enumerate(wanted):
                    combine(out[i], [part[number[tuple(place)]] for part in slices], matrix[row])
            made, before = out, wanted
        return made

    def multiply(self, v: Tensor, memory: "Workspace") -> Tensor:
        """The products M of a block: V [|J|, P, C] -> [|J|, P, C_o]; this stage is where removed columns save time."""
        products = memory.take("products", len(v), v.shape[1], self.out_channels)
        if self.channel is None:
            return torch.bmm(v, self.weight.view(len(v), -1, self.out_channels), out=products)
        parts = zip(v, self.weight.split(self.counts), self.channel.split(self.counts), products)
        for position, weight, channel, product in parts:
            torch.mm(position.index_select(1, channel), weight, out=product)
        return products

    def functional(self, x: Tensor) -> Tensor:
        """The same without views that are written to, blocks and workspace: for tracing and export."""
        counts, size = tile_counts(x.shape[2:], self.padding, self.tile), output_size(x.shape[2:], self.padding)
        chosen = (x if self.used is None else x[:, self.used]).to(self.weight.dtype)
        bt = tuple(torch.tensor(matrix, dtype=self.weight.dtype, device=x.device) for matrix in self.rows)
        v = input_transform(pad_to_tiles(chosen, self.padding, self.tile), bt, self.tile)[self.positions]
        if self.channel is None:
            products = self.weight.view(len(v), -1, self.out_channels).mT @ v
        else:
            parts = zip(v, self.weight.split(self.counts), self.channel.split(self.counts))
            products = torch.stack([weight.T @ position[channel] for position, weight, channel in parts])
        y = (self.inverse @ products.flatten(1)).view(*self.tile, self.out_channels, len(x), *counts)
        y = y.permute(4, 3, 5, 0, 6, 1, 7, 2).reshape(
            len(x), self.out_channels, *(t * m for t, m in zip(counts, self.tile))
        )
        y = crop(y, size)
        return (y if self.bias is None else y + self.bias[:, None, None, None]).to(x.dtype)

    def _channels_last(self, x: Tensor, counts: Triple) -> Tensor:
        """The input with zeros around it, its used channels last: [N, t_d·m_d + 2, t_h·m_h + 2, t_w·m_w + 2, C]."""
        if self.used is not None:
            x = x.index_select(1, self.used)
        sides = [t * m + 2 for t, m in zip(counts, self.tile)]
        padded = self.weight.new_zeros(len(x), *sides, x.shape[1])
        inside = [slice(p, p + s) for p, s in zip(self.padding, x.shape[2:])]
        padded[(slice(None), *inside)] = x.movedim(1, -1)
        return padded

    def _buffer(self, name: str, value: Tensor) -> None:
        """Put a buffer in the place of an attribute."""
        delattr(self, name)
        self.register_buffer(name, value)

    def _places(self) -> list[Triple]:
        """(a, b, c) of every kept position, ascending."""
        _, t_h, t_w = (len(matrix) for matrix in self.rows)
        return [(p // (t_h * t_w), p // t_w % t_h, p % t_w) for p in self.positions]


class Workspace:
    """Memory of a call by name, taken again by every block, so that pages are touched for the first time only once."""

    def __init__(self, like: Tensor):
        self.like, self.held = like, {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape; what the name held before is overwritten."""
        count = torch.Size(shape).numel()
        if name not in self.held or self.held[name].numel() < count:
            self.held[name] = self.like.new_empty(count)
        return self.held[name][:count].view(shape)


def combine(out: Tensor, slices: list[Tensor], coefficients: list[float]) -> None:
    """out = Σ_i coefficients[i]·slices[i], in as few passes as the zeros and ones of a row of Bᵀ allow."""
    terms = sorted(((c, part) for c, part in zip(coefficients, slices) if c), key=lambda term: term[0] != 1)
    (scale, first), *rest = terms
    if scale == 1 and rest:
        (other, second), *rest = rest
        torch.add(first, second, alpha=other, out=out)
    else:
        torch.mul(first, scale, out=out)
    for other, part in rest:
        out.add_(part, alpha=other)


def blocks(samples: int, counts: Triple, most: int) -> Iterator[tuple[slice, slice, slice]]:
    """Ranges of samples, depth tiles and rows of tiles, nearly equal: at most `most` tiles each, but at least a row."""
    depth, height, width = counts
    if most >= depth * height * width:
        steps = (most // (depth * height * width), depth, height)
    elif most >= height * width:
        steps = (1, most // (height * width), height)
    else:
        steps = (1, 1, max(1, most // width))
    return itertools.product(*(_parts(total, step) for total, step in zip((samples, depth, height), steps)))


def _parts(total: int, step: int) -> list[slice]:
    """0..total in equal ranges of at most `step`, the last one shorter."""
    even = -(-total // -(-total // step))
    return [slice(start, min(start + even, total)) for start in range(0, total, even)]


def _tiles_of(padded: Tensor, tile: Triple, depth: slice, height: slice) -> Tensor:
    """The samples [N, D, H, W, C] that the tiles of a range cover, with their overlap."""
    bounds = [slice(part.start * m, part.stop * m + 2) for part, m in zip((depth, height), tile)]
    return padded[:, bounds[0], bounds[1]]
