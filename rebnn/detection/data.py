"""Sets of images with boxes, and how an epoch of them is fed to a detector."""

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common import distributed
from common.errors import InputError
from common.images import read_image
from common.randomness import permutation, uniform

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rebnn.detection import augment
from rebnn.detection.composed import compose
from rebnn.detection.config import Config, Data
from rebnn.detection.records import Scene
from rebnn.detection.sources import COCO_CLASSES, VOC_CLASSES, checked, read_coco, read_voc

CLASSES = {"voc": len(VOC_CLASSES), "coco": COCO_CLASSES}
FLIP, SCALE, SSD = 64, 65, 80
"""slots of the draws of an image"""


class Batch(NamedTuple):
    """Images float32 [3, H, W] as the detector sees them, targets {boxes in their pixels, labels, size of the picture},
    (position, pass) of each image, and the weight of the mean loss."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    index: list[tuple[int, int]]
    weight: float


class Scenes:
    """Images with boxes. train: augmented by (seed, epoch, position); ssd: the form that SSD300 takes."""

    def __init__(self, scenes: list[Scene], classes: list[str], config: Config, train: bool, counts: Counter):
        self.scenes, self.classes, self.settings, self.train = scenes, classes, config.data, train
        self.seed, self.ssd, self.counts = config.seed, config.detector.name == "ssd", counts

    def __len__(self) -> int:
        return len(self.scenes)

    def pixels(self, i: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Errors: InputError for an image that is missing or damaged."""
        image = self.scenes[i].image
        return read_image(image) if isinstance(image, Path) else image

    def fetch(self, i: int, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """An image as the detector sees it [3, H, W]; its boxes there without the difficult ones, and its own size."""
        scene, image = self.scenes[i], self.pixels(i)
        size = torch.tensor(image.shape[:2])
        easy = ~scene.difficult
        boxes, labels = scene.boxes[easy], scene.labels[easy]
        draw = lambda slots: uniform(self.seed, epoch, i, slots).double().numpy()
        if self.ssd and self.train:
            draws = draw(torch.arange(SSD, SSD + augment.DRAWS))
            image, boxes, labels = augment.ssd_train(
                image, boxes, labels, draws, self.settings.crop_iou_test, self.settings.flip
            )
        elif self.ssd:
            boxes = boxes * np.float32([augment.SSD_SIZE / image.shape[1], augment.SSD_SIZE / image.shape[0]] * 2)
            image = augment.ssd_test(image)
        else:
            image, boxes = augment.resize(image, boxes, self.size(image.shape[:2], float(draw(SCALE))))
            if self.train and draw(FLIP) < self.settings.flip:
                image, boxes = augment.mirror(image, boxes)
            image = augment.normalise(image)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        boxes = torch.from_numpy(boxes.astype(np.float32))
        return tensor, {"boxes": boxes, "labels": torch.from_numpy(labels), "size": size}

    def first(self, count: int) -> "Scenes":
        """The first so many scenes."""
        few = copy.copy(self)
        few.scenes = self.scenes[:count]
        return few

    def size(self, size: tuple[int, int], draw: float) -> tuple[int, int]:
        """The size that an image is given: one of the training sizes, or that of evaluation."""
        if not self.train:
            return augment.fitted(size, self.settings.test_long, self.settings.test_short)
        sides = [*zip(self.settings.long_sides, self.settings.short_sides)]
        return augment.fitted(size, *sides[int(draw * len(sides))])

    def fingerprint(self) -> str:
        """sha256 over names, boxes and labels, and over the pixels of images in memory."""
        digest = hashlib.sha256()
        for scene in self.scenes:
            digest.update(Path(scene.image).name.encode() if isinstance(scene.image, Path) else scene.image.tobytes())
            digest.update(scene.boxes.tobytes() + scene.labels.tobytes() + scene.difficult.tobytes())
        return digest.hexdigest()


def class_count(settings: Data) -> int:
    """How many classes a set has."""
    return CLASSES.get(settings.name, settings.digits)


def load(config: Config) -> tuple[Scenes, Scenes]:
    """Training and test set. Errors: InputError (missing, unfit or damaged data, sizes that do not pair)."""
    settings = config.data
    if len(settings.long_sides) != len(settings.short_sides) or not settings.long_sides:
        raise InputError(
            f"data.long_sides {[*settings.long_sides]} and data.short_sides {[*settings.short_sides]} are pairs; "
            "give as many of one as of the other"
        )
    sets = {part: _read(settings, part) for part in ("train", "test")}
    if sets["train"][1] != sets["test"][1]:
        raise InputError(f"{settings.root}: training and test set have different classes")
    train, test = (Scenes(*sets[part][:2], config, part == "train", sets[part][2]) for part in ("train", "test"))
    if len(train) * settings.repeat < settings.batch_size:
        raise InputError(f"the training set has {len(train)} images, fewer than data.batch_size {settings.batch_size}")
    if not len(test):
        raise InputError(f"{settings.root}: the test set has no image")
    return train, test


def _read(settings: Data, part: str) -> tuple[list[Scene], list[str], Counter]:
    counts = Counter(boxes=0, clipped=0, dropped=0)
    check = partial(checked, classes=class_count(settings), degenerate=settings.degenerate, counts=counts)
    root, limit = Path(settings.root), settings.limit
    if settings.name == "composed":
        count = settings.train_images if part == "train" else settings.test_images
        scenes = compose(part, min(count, limit) if limit else count, settings.size, settings.digits)
        scenes, classes = (
            [check(scene, scene.image.shape[:2]) for scene in scenes],
            [str(d) for d in range(settings.digits)],
        )
    elif settings.name == "voc":
        scenes, classes = read_voc(root, part, check, limit), [*VOC_CLASSES]
    else:
        scenes, classes = read_coco(root, part, check, limit)
    counts["images"] = len(scenes)
    counts["background"] = sum(not (~scene.difficult).any() for scene in scenes)
    return scenes, classes, counts


def describe(settings: Data, train: Scenes) -> dict:
    """What env.json and checkpoints say of the data."""
    return {"name": settings.name, "images": len(train), "sha256": train.fingerprint()}


def steps_of(train: Scenes) -> int:
    """Steps of an epoch; a last smaller batch is dropped."""
    return len(train) * train.settings.repeat // train.settings.batch_size


def batches(train: Scenes, epoch: int, device: torch.device, start: int, micro_batches: int) -> Iterator[list[Batch]]:
    """This rank's micro-batches of every step of an epoch from `start` on, as one list a step.

    The order of each pass over the images is that of (seed, pass); what is augmented and sampled depends on the pass,
    too, so that an epoch of several passes sees each image in several forms.
    """
    settings, passes = train.settings, train.settings.repeat
    first = (epoch - 1) * passes
    order = torch.cat([permutation(train.seed, first + p + 1, len(train)) for p in range(passes)])
    turn = torch.arange(passes).repeat_interleave(len(train)) + first + 1
    items = torch.stack([order, turn], 1)[: steps_of(train) * settings.batch_size]
    steps = [distributed.share(step, micro_batches) for step in items.split(settings.batch_size)[start:]]
    parts = [part for step in steps for part, _ in step]
    fetched = _fetched(train, parts, device)
    for step in steps:
        ready = []
        for part, weight in step:
            images, targets = zip(*next(fetched))
            images = [image.to(device, non_blocking=True) for image in images]
            targets = [{key: value.to(device, non_blocking=True) for key, value in one.items()} for one in targets]
            ready.append(Batch(images, targets, [*map(tuple, part.tolist())], weight))
        yield ready


def test_batches(test: Scenes, device: torch.device) -> Iterator[tuple[list[int], list[Tensor], list[Tensor]]]:
    """This rank's share of a set, unaugmented, in order: positions, images, and their own sizes (H, W)."""
    share = torch.arange(len(test)).tensor_split(distributed.world())[distributed.rank()]
    parts = [part for part in share.split(test.settings.test_batch_size) if len(part)]
    parts = [torch.stack([part, torch.zeros_like(part)], 1) for part in parts]
    for part, items in zip(parts, _fetched(test, parts, device)):
        images = [image.to(device, non_blocking=True) for image, _ in items]
        yield part[:, 0].tolist(), images, [target["size"] for _, target in items]


class _Fetch(torch.utils.data.Dataset):
    """A set whose items are whole batches, for loader workers."""

    def __init__(self, scenes: Scenes):
        self.scenes = scenes

    def __getitem__(self, part: Tensor) -> list:
        return [self.scenes.fetch(i, epoch) for i, epoch in part.tolist()]


def _fetched(scenes: Scenes, parts: list[Tensor], device: torch.device) -> Iterator[list]:
    """The items of each part in order; the loader has a generator of its own, or a resumed run would differ."""
    fetch = _Fetch(scenes)
    if not scenes.settings.workers:
        return (fetch[part] for part in parts)
    return iter(
        DataLoader(
            fetch,
            batch_size=None,
            sampler=parts,
            num_workers=scenes.settings.workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
            collate_fn=None,
        )
    )
