"""Routed inference: tiles are scored, given a width each, restored in batches of one width, and put together again."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import InputError
from common.randomness import uniform

import torch
from torch import Tensor, nn

from dda import models
from dda.config import Prior, Routing
from dda.method import routing as routes
from dda.method.prior import moire_prior
from dda.method.tiles import blend, covering, cut, stitch

RANK, PAPER = Routing(), Prior()
RANDOM_ROUTE = 66  # slot of the draws of random routing
COLOURS = ((208, 64, 56), (230, 190, 60), (72, 160, 96))  # of the widest, the middle and the narrowest width


@dataclass(frozen=True)
class Grid:
    """Where the tiles of an image lie: offsets of rows and columns, size of a tile, and size of the padded image."""

    rows: list[int]
    columns: list[int]
    height: int
    width: int
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


class Result(NamedTuple):
    """image: float32 [3, H, W] in [0, 1]; choice: width index of each tile; scores: prior of each tile, or None."""

    image: Tensor
    grid: Grid
    choice: Tensor
    scores: Tensor | None
    macs: int
    seconds: float


def check_widths(widths: Sequence[float]) -> None:
    """Errors: InputError unless the widths lie in (0, 1] and fall (section 9, row 19)."""
    widths = list(widths)
    falling = all(a > b for a, b in itertools.pairwise(widths))
    if not widths or not all(0 < w <= 1 for w in widths) or not falling:
        raise InputError(
            f"the widths {widths} cannot be used: give falling numbers in (0, 1], the widest first, since class 1 "
            "holds the tiles with most moiré"
        )


def plan(size: tuple[int, int], tile: tuple[int, int], multiple: int, overlap: int = 0) -> Grid:
    """Tiles that cover an image of any size (height, width).

    A tile's sides must be multiples of what the network needs; an image shorter than a tile gets one tile of its own
    length, rounded up. Errors: InputError for a tile or an overlap that cannot be used.
    """
    sides, starts, padded = [], [], []
    for length, side in zip(size, tile):
        if side % multiple or side <= 0:
            raise InputError(f"a tile side of {side} pixels does not fit the network; give a multiple of {multiple}")
        if not 0 <= overlap < side:
            raise InputError(f"an overlap of {overlap} pixels does not fit a tile of {side}; give less than the tile")
        side = min(side, -(-length // multiple) * multiple)
        sides.append(side)
        starts.append(covering(max(length, side), side, min(overlap, side - 1)))
        padded.append(max(length, side))
    return Grid(*starts, *sides, tuple(padded))


def mirror(length: int, padded: int) -> Tensor:
    """Positions 0..length-1, then back and forth without repeating the ends, up to `padded`."""
    position = torch.arange(padded)
    if length == 1:
        return torch.zeros_like(position)
    period = 2 * (length - 1)
    position = position % period
    return torch.minimum(position, period - position)


class Demoirer:
    """A supernet's widths as plain networks, and the routes between them.

    network: of dda.models; widths: falling; tile: (height, width) in pixels; overlap: pixels that neighbouring tiles
    share at least and fade over. seed: of random routing. thresholds: falling, for routing.kind threshold. batch:
    tiles of one width that are restored at a time.
    """

    def __init__(
        self,
        network: nn.Module,
        widths: Sequence[float],
        *,
        tile: tuple[int, int] = (512, 512),
        routing: Routing = RANK,
        prior: Prior = PAPER,
        overlap: int = 0,
        seed: int = 0,
        thresholds: Sequence[float] = (),
        channels_last: bool = True,
        batch: int = 4,
        precision: str = "fp32",
    ):
        check_widths(widths)
        if routing.kind == "fixed" and routing.fixed >= len(widths):
            raise InputError(f"routing.fixed is {routing.fixed}, but there are only {len(widths)} widths, from 0 on")
        if routing.kind == "threshold" and len(thresholds) != len(widths) - 1:
            raise InputError(f"{len(widths)} widths need {len(widths) - 1} thresholds, got {len(thresholds)}")
        plan(tile, tile, network.multiple, overlap)  # refuses what no image could be cut into
        if routing.kind == "budget":
            self.costs(network, widths, tile, routing.budget)
        self.network, self.widths, self.tile = network, tuple(widths), tuple(tile)
        self.routing, self.prior, self.overlap, self.seed = routing, prior, overlap, seed
        self.thresholds, self.batch, self.precision = list(thresholds), batch, precision
        self.device = next(network.parameters()).device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.networks = [network.slice(width).eval().to(memory_format=self.layout) for width in widths]

    @torch.inference_mode()
    def __call__(self, image: Tensor, number: int = 0, hardness: Tensor | None = None) -> Result:
        """Restore uint8 RGB [3, H, W]; number of the image: for random routes; hardness [H, W]: for the oracle's."""
        began = time.perf_counter()
        height, width = image.shape[1:]
        grid = self.grid((height, width))
        tiles = self.cut(image.to(self.device), grid)
        choice, scores = self.choose(tiles, grid, number, hardness)
        restored = self.restore(tiles, choice)
        whole = self.join(restored, grid)[:, :height, :width]
        if whole.is_cuda:
            torch.cuda.synchronize(whole.device)
        return Result(whole, grid, choice.cpu(), scores, self.macs(choice, grid), time.perf_counter() - began)

    def grid(self, size: tuple[int, int]) -> Grid:
        """Where the tiles of an image (height, width) lie."""
        return plan(size, self.tile, self.network.multiple, self.overlap)

    def cut(self, image: Tensor, grid: Grid) -> Tensor:
        """The tiles uint8 [N, 3, h, w] of an image that is first continued by reflection."""
        for axis, padded in ((1, grid.size[0]), (2, grid.size[1])):
            if image.shape[axis] < padded:
                image = image.index_select(axis, mirror(image.shape[axis], padded).to(image.device))
        return cut(image, grid.rows, grid.columns, grid.height, grid.width)

    def choose(
        self, tiles: Tensor, grid: Grid, number: int = 0, hardness: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The width index of each tile [N], and the scores it rests on.

        Errors: InputError for a budget below the narrowest network, or oracle routing of an image without a truth.
        """
        kind, widths, count = self.routing.kind, len(self.widths), len(tiles)
        if kind == "fixed" or widths == 1:
            return torch.full((count,), self.routing.fixed if widths > 1 else 0), None
        if kind == "random":
            draws = uniform(self.seed, number, torch.arange(count), RANDOM_ROUTE)
            return routes.shuffled(draws, widths), None
        if kind == "oracle":
            if hardness is None:
                raise InputError("oracle routing needs the true strength of the moiré, which only synthetic data have")
            scores = self.cut(hardness[None].to(tiles.device), grid).float().mean((1, 2, 3))
            return routes.by_rank(scores, widths), scores
        scores = moire_prior(tiles, self.prior.mode, self.prior.relative_d0, torch.float32)
        if kind == "threshold":
            return routes.by_threshold(scores, self.thresholds), scores
        if kind == "budget":
            costs = self.costs(self.network, self.widths, (grid.height, grid.width), self.routing.budget)
            return routes.by_budget(scores, costs, self.routing.budget * count * costs[0]), scores
        function: Callable = {"rank": routes.by_rank, "released": routes.released, "inverse": routes.inverse}[kind]
        return function(scores, widths), scores

    @staticmethod
    def costs(network: nn.Module, widths: Sequence[float], tile: tuple[int, int], budget: float) -> list[int]:
        """Multiply-adds of a tile at each width. Errors: InputError for a budget that even the narrowest exceeds."""
        found = [models.macs(network, width, tuple(tile)) for width in widths]
        if budget * found[0] < found[-1]:
            raise InputError(
                f"a budget of {budget:.3g} of the widest network is below the narrowest one's "
                f"{found[-1] / found[0]:.3g}; give at least that"
            )
        return found

    def restore(self, tiles: Tensor, choice: Tensor) -> Tensor:
        """Tiles uint8 [N, 3, h, w] through the networks of their widths, those of one width together: float32."""
        restored = torch.empty(tiles.shape, device=tiles.device)
        for index, network in enumerate(self.networks):
            for part in (choice == index).nonzero()[:, 0].to(tiles.device).split(self.batch):
                given = tiles[part].float().div_(255).contiguous(memory_format=self.layout)
                with torch.autocast(given.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    restored[part] = network(given).float()
        return restored

    def join(self, tiles: Tensor, grid: Grid) -> Tensor:
        """The image [3, H, W] of restored tiles; where they overlap they fade into one another."""
        side_by_side = len(grid.rows) * grid.height == grid.size[0] and len(grid.columns) * grid.width == grid.size[1]
        return (stitch if side_by_side else blend)(tiles, grid.rows, grid.columns, grid.size)

    def macs(self, choice: Tensor, grid: Grid) -> int:
        """Multiply-adds of one image."""
        counts = torch.bincount(choice.cpu(), minlength=len(self.widths)).tolist()
        size = grid.height, grid.width
        return sum(n * models.macs(self.network, w, size) for n, w in zip(counts, self.widths) if n)


def overlay(image: Tensor, result: Result, widths: int = 3, strength: float = 0.35) -> Tensor:
    """The width map: uint8 [3, H, W] tinted red where a tile is wide, yellow where middle, green where narrow."""
    grid, size = result.grid, image.shape[1:]
    spread = [round(i * (len(COLOURS) - 1) / max(1, widths - 1)) for i in range(widths)]
    colours = torch.tensor([COLOURS[i] for i in spread], dtype=torch.float32, device=image.device)
    tint = colours[result.choice.to(image.device)][:, :, None, None].expand(-1, -1, grid.height, grid.width)
    tint = blend(tint, grid.rows, grid.columns, grid.size)[:, : size[0], : size[1]]
    return (image.float() * (1 - strength) + tint * strength).round().clamp(0, 255).to(torch.uint8)
