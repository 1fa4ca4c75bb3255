"""Labelled images: the digits canvas, CIFAR in memory, and class folders with the recipe's augmentation (section 5).

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from.
"""

import contextlib
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common import distributed, labelled, run
from common.errors import InputError
from common.imagesets import IMAGENET, FolderSet, normalise
from common.randomness import bits, permutation

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from smmix import canvas
from smmix.config import Config, Data

AUGMENT = 200  # slot of the seed of a sample's augmentation


class AugmentedFolder(FolderSet):
    """Class folders with timm's training transform: random resized crop, flip, RandAugment, erasing.

    A position p means image p % n, so that p and p + n are two augmented views of one image. What timm draws from the
    global generators is a function of (seed, epoch, position).
    """

    def __init__(self, root: Path, *, settings: Data, seed: int = 0, train: bool = True, limit: int = 0):
        super().__init__(root, seed=seed, train=train, limit=limit)
        self.transform = create_transform(
            settings.size or 224,
            is_training=True,
            color_jitter=0.4,  # only acts where RandAugment is off
            auto_augment=settings.randaugment,
            interpolation="bicubic",
            hflip=0.5 if settings.flip else 0.0,
            re_prob=settings.erasing,
            re_mode="pixel",
        )

    def fetch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented, normalised images [B, 3, S, S] and labels [B] of int64 positions [B]."""
        place = index % len(self)
        seeds = bits(self.seed, epoch, index, AUGMENT).tolist()
        images = []
        for sample, number in zip(place.tolist(), seeds):
            with _seeded(number):
                images.append(self.transform(Image.fromarray(self.read(sample))))
        return torch.stack(images), self.labels[place]


class EvaluationFolder(FolderSet):
    """Class folders with the paper's evaluation transform."""

    def __init__(self, root: Path, size: int = 224, limit: int = 0):
        super().__init__(root, limit=limit)
        self.size = size

    def fetch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, S, S] and labels [B] of int64 positions [B]."""
        images = [eval_transform(self.read(i), self.size) for i in index.tolist()]
        return torch.stack(images), self.labels[index]


@contextlib.contextmanager
def _seeded(number: int) -> Iterator[None]:
    """The three global generators begin at the number and are put back afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - timm draws from it
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def eval_transform(image: np.ndarray, size: int = 224) -> Tensor:
    """Short side to 256/224 of the size (bicubic, 8 bits), centre crop, normalised: uint8 [H, W, 3] -> [3, S, S]."""
    picture = Image.fromarray(image)
    if size > 32:
        short, wanted = min(picture.size), int(256 / 224 * size)
        width, height = (wanted if side == short else int(wanted * side / short) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in picture.size)
    pixels = np.array(picture.crop((left, top, left + size, top + size)))
    return normalise(torch.from_numpy(pixels)[None], IMAGENET)[0]


def load(config: Config) -> tuple:
    """Training set and test set of a config. Errors: InputError (missing, unfit or damaged data, or unfit batches)."""
    settings = config.data
    if settings.name == "imagenet":
        train, _ = labelled.load(settings, config.seed, folder=partial(AugmentedFolder, settings=settings))
        test = load_test(config)
    else:
        train, test = _in_memory(config)
    _require_batches(config, train)
    return train, test


def load_test(config: Config):
    """The test set alone: of class folders only val/ is looked at. Errors: InputError as `load`."""
    if config.data.name == "imagenet":
        return EvaluationFolder(Path(config.data.root) / "val", config.data.size or 224, config.data.limit)
    return _in_memory(config)[1]


def _in_memory(config: Config) -> tuple:
    """Training and test set of images that fit into memory."""
    load = canvas.load if config.data.name == "canvas" else labelled.load
    return load(config.data, config.seed)


def order_of(config: Config, train, epoch: int) -> Tensor:
    """The positions of an epoch (0-based), int64 [n], so that every process and micro-batch gets an even share."""
    settings = config.data
    if settings.repeats > 1:
        order = repeated_batches(len(train), settings.repeats, distributed.world(), settings.batch_size, epoch)
    else:
        order = permutation(config.seed, epoch, len(train))
    unit = settings.batch_size if settings.drop_last else quantum(config)
    return order[: len(order) // unit * unit]


def quantum(config: Config) -> int:
    """The number that a batch must be a multiple of: a pair for each micro-batch of each process, or one image each."""
    return (1 if config.mix.method == "none" else 2) * distributed.world() * config.run.micro_batches


def repeated_order(n: int, repeats: int, world: int, epoch: int) -> Tensor:
    """Repeated augmentation as DeiT's sampler deals it out: positions int64 [world, L], a row for each process.

    A random order from a torch generator seeded with the epoch, every image `repeats` times in a row, dealt in turn;
    of it only as much as an epoch without repeats, in multiples of 256. Position i + k·n is the k-th view of image i.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(epoch))
    views = (order[:, None] + n * torch.arange(repeats)).flatten()
    total = -(-n * repeats // world) * world
    views = torch.cat([views, views[: total - len(views)]])
    return views.view(-1, world).T[:, : n // 256 * 256 // world]


def repeated_batches(n: int, repeats: int, world: int, batch_size: int, epoch: int) -> Tensor:
    """`repeated_order` as one order whose total batches give each process its own row, int64."""
    rows = repeated_order(n, repeats, world, epoch)
    share = batch_size // world
    steps = rows.shape[1] // share
    return rows[:, : steps * share].reshape(world, steps, share).transpose(0, 1).flatten()


def _require_batches(config: Config, train) -> None:
    settings, unit = config.data, quantum(config)
    if settings.batch_size % unit:
        raise InputError(
            f"data.batch_size {settings.batch_size}: images are mixed in pairs, so {distributed.world()} processes "
            f"with {config.run.micro_batches} micro-batches each need a multiple of {unit}"
        )
    if settings.repeats > 1 and settings.name != "imagenet":
        raise InputError(
            f"data.repeats {settings.repeats}: views are repeated for class folders only (data.name imagenet)"
        )
    if not len(order_of(config, train, 0)):
        raise InputError(
            f"{len(train)} training images make no whole batch (data.batch_size {settings.batch_size}, data.repeats "
            f"{settings.repeats}); give a smaller batch, or data.repeats 1"
        )


def main(argv: list[str]) -> None:
    """Print what lies below --root."""
    labelled.report_sources(argv, __doc__)


if __name__ == "__main__":
    run.entry(main)
