"""Training tiles scored, ranked and classed in memory, and the batches of crops that the training loop asks for."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from common import distributed
from common.errors import InputError
from common.randomness import integers, permutation

import torch
from torch import Tensor
from tqdm import tqdm

from dda.config import Config, Stage
from dda.method.prior import moire_prior
from dda.method.routing import class_membership
from dda.method.tiles import cut, offsets

ROW, COLUMN = 64, 65  # slots of the two draws of a crop


class Scored(NamedTuple):
    """Tiles of a data set: place int64 [N, 3] (image, top, left), score float32 [N], count of each image."""

    place: Tensor
    score: Tensor
    counts: list[int]


class Batch(NamedTuple):
    """moire and clean: uint8 [B, 3, patch, patch]; weight of the mean loss over this part of the total batch."""

    moire: Tensor
    clean: Tensor
    weight: float


def tile_scores(
    pairs, config: Config, device: torch.device, tile: tuple[int, int] | None = None, images: int | None = None
) -> Scored:
    """Every training tile's place and prior score.

    tile: its (height, width), by default tiles.train. images: only the first so many. Each process scores its share.
    Errors: InputError for images that are smaller than a tile.
    """
    height, width = tile or config.tiles.train
    places, counts = [], []
    total = min(len(pairs), images or len(pairs))
    for number in range(total):
        size = pairs.size(number)
        if size[0] < height or size[1] < width:
            raise InputError(
                f"{pairs.names[number]} is {size[0]} x {size[1]}, smaller than a tile of {height} x {width}; "
                "give smaller tiles"
            )
        found = [(number, top, left) for top in offsets(size[0], height) for left in offsets(size[1], width)]
        places += found
        counts.append(len(found))
    score = torch.zeros(len(places), device=device)
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    mine = range(distributed.rank(), total, distributed.world())
    for number in tqdm(mine, "scoring tiles", leave=False, disable=None if distributed.is_main() else True):
        own = places[starts[number] : starts[number + 1]]
        image = torch.from_numpy(pairs.read(number)[0]).permute(2, 0, 1).to(device)
        rows, columns = sorted({p[1] for p in own}), sorted({p[2] for p in own})
        tiles = cut(image, rows, columns, height, width)
        score[starts[number] : starts[number + 1]] = moire_prior(tiles, config.prior.mode, config.prior.relative_d0)
    return Scored(torch.tensor(places), distributed.sum_(score).cpu(), counts)


def split(scored: Scored, config: Config) -> list[Tensor]:
    """The tiles of each class, widest first, as places [n, 3]; with one width there is one class of all tiles."""
    if len(config.widths) == 1:
        return [scored.place]
    member = torch.cat([class_membership(s, config.tiles.class_overlap) for s in scored.score.split(scored.counts)])
    return [scored.place[member[:, number]] for number in range(member.shape[1])]


def classed(pairs, config: Config, device: torch.device) -> list[Tensor]:
    """The tiles of each class: scored and ranked here, or those of folders that were split before.

    Errors: InputError for ready tiles that are not of the size tiles.train.
    """
    if pairs.classes is None:
        return split(tile_scores(pairs, config, device), config)
    wrong = [number for number in range(len(pairs)) if tuple(pairs.size(number)) != tuple(config.tiles.train)]
    if wrong:
        size = pairs.size(wrong[0])
        raise InputError(
            f"{pairs.names[wrong[0]]} is a tile of {size[0]} x {size[1]}, but tiles.train is {config.tiles.train}; "
            "give the tiles' size"
        )
    number = torch.tensor(pairs.classes)
    place = torch.stack([torch.arange(len(pairs)), *torch.zeros(2, len(pairs), dtype=torch.int64)], 1)
    return [place] if len(config.widths) == 1 else [place[number == c] for c in range(len(config.widths))]


def steps_of_epoch(classes: list[Tensor], stage: Stage) -> int:
    """Every class gives as many batches as the first can fill (section 2.5). Errors: InputError if that is none."""
    if len(classes[0]) < stage.batch_size:
        raise InputError(
            f"the class of the widest network has {len(classes[0])} tiles, fewer than a batch of {stage.batch_size}; "
            "give more images, smaller tiles.train or a smaller batch_size"
        )
    if not all(map(len, classes)):
        raise InputError("a class has no tile, since images have fewer than three; give smaller tiles.train")
    return len(classes) * (len(classes[0]) // stage.batch_size)


def crops(pairs, tiles: Tensor, config: Config, stage: Stage, epoch: int, number: int, positions: Tensor):
    """moire, clean of a part of a step: random squares of the tiles at `positions` of a class's epoch.

    tiles: places [n, 3] of class `number`. A class shorter than the first begins again, with other crops.
    """
    classes = len(config.widths)
    order = permutation(config.seed, epoch * classes + number, len(tiles))
    image, top, left = tiles[order[positions % len(tiles)]].unbind(1)
    draw = positions * classes + number
    room = [side - stage.patch + 1 for side in config.tiles.train]
    top = top + integers(config.seed, epoch, draw, ROW, room[0])
    left = left + integers(config.seed, epoch, draw, COLUMN, room[1])
    return pairs.crops(image, top, left, stage.patch)


def batches(
    pairs, classes: list[Tensor], config: Config, stage: Stage, epoch: int, start: int, device: torch.device
) -> Iterator[tuple[int, list[Batch]]]:
    """(class, this process's micro-batches) of every step of an epoch from `start` on.

    A thread reads one step ahead, so that decoding and training overlap.
    """
    steps = []
    for step in range(start, steps_of_epoch(classes, stage)):
        turn, number = divmod(step, len(classes))
        positions = torch.arange(turn * stage.batch_size, (turn + 1) * stage.batch_size)
        steps.append((number, distributed.share(positions, config.run.micro_batches)))

    def fetch(number: int, shared: list[tuple[Tensor, float]]) -> list[Batch]:
        return [
            Batch(*crops(pairs, classes[number], config, stage, epoch, number, positions), weight)
            for positions, weight in shared
        ]

    if not steps:  # resumed at the end of an epoch, before its evaluation
        return
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(fetch, *steps[0])
        for i, (number, _) in enumerate(steps):
            ready = waiting.result()
            if i + 1 < len(steps):
                waiting = ahead.submit(fetch, *steps[i + 1])
            yield number, [Batch(b.moire.to(device), b.clean.to(device), b.weight) for b in ready]
