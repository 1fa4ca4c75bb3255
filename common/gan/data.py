"""Images of two domains, paired or not: on disk as CycleGAN and pix2pix have them, or made of pictures in memory.

What is random about a sample depends on (seed, epoch, index) alone. Images are float32 [3, H, W] in [-1, 1].
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from common.config import Count, Index
from common.errors import InputError
from common.gan import pictures
from common.images import read_image
from common.randomness import integers, uniform

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FOLDERS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp")
PAIRED = ("aligned", "photos_paired", "folder_paired")
PARTNER, FIRST_CROP, SECOND_CROP = 64, 65, 68  # slots; a crop takes three
Preprocess = Literal["resize_and_crop", "scale_width", "none"]


@dataclass(frozen=True)
class Domains:
    """A data set of two domains A and B and how it is fed."""

    name: Literal["photos_paired", "photos_unpaired", "folder_paired", "classes", "aligned", "unaligned"] = "unaligned"
    """unaligned: root/{trainA,trainB,valA,valB}; aligned: root/{train,val} with A|B side by side; photos_…: embedded;
    folder_paired: edges and the photographs of root that they come from; classes: two classes of an .npz"""
    root: str = "data"
    """folder of the data set; for classes an .npz of encoded images (train_jpeg, train_offset, train_label, …)"""
    class_a: str = "horse"
    """the class that is domain A (classes)"""
    class_b: str = "dog"
    """the class that is domain B (classes)"""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """which domain is translated into which"""
    preprocess: Preprocess = "resize_and_crop"
    """resize_and_crop, scale_width (short for: width to load_size, height in proportion), none (to multiples of 4)"""
    load_size: Count = 286
    """side to which images are resized before the random crop, pixels"""
    crop_size: Count = 256
    """side of the images that networks see, pixels"""
    flip: bool = True
    """mirror half of the training images"""
    limit: Index = 0
    """use only the first so many images of each domain; 0 uses all"""
    legacy_drop_last_file: bool = False
    """leave out the last file of an unaligned folder, as the released code does"""
    batch_size: Count = 1
    """images of a step, over all processes"""
    test_batch_size: Count = 1
    """images of an evaluation step, over all processes"""
    workers: Index = 0
    """loader processes"""


class Place(NamedTuple):
    """Where a crop lies (x to the right, y down, pixels) and whether it is mirrored."""

    x: int
    y: int
    flip: bool


def draw_place(randint: Callable[[int, int], int], random: Callable[[], float], room: int) -> Place:
    """A place in 0..room each way, then the flip, in the order of the released code."""
    x, y = randint(0, room), randint(0, room)
    return Place(x, y, random() > 0.5)


def prepare(
    image: np.ndarray, preprocess: Preprocess, load_size: int, crop_size: int, place: Place | None = None
) -> Tensor:
    """uint8 [H, W, 3] or grey [H, W] -> float32 [C, h, w] in [-1, 1], bicubic as PIL has it.

    Without a place (evaluation) resize_and_crop and scale_width bring it to crop_size straight away.
    """
    picture = Image.fromarray(image)
    width, height = picture.size
    target = load_size if place else crop_size
    if preprocess == "none":
        size = tuple(max(4, round(side / 4) * 4) for side in (width, height))
    elif preprocess == "scale_width":
        size = (target, int(target * height / width))
    else:
        size = (target, target)
    if picture.size != size:
        picture = picture.resize(size, Image.BICUBIC)
    if place and preprocess != "none":
        picture = picture.crop((place.x, place.y, place.x + crop_size, place.y + crop_size))
    pixels = np.asarray(picture)
    pixels = pixels[:, ::-1] if place and place.flip else pixels
    return to_tensor(pixels[..., None] if pixels.ndim == 2 else pixels)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, C] -> float32 [C, H, W], (x / 255 - 1/2) / (1/2)."""
    scaled = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()
    return scaled.div_(255).sub_(0.5).div_(0.5)


def split_pair(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The halves A and B of an image [H, W, 3], cut at W // 2."""
    middle = image.shape[1] // 2
    return image[:, :middle], image[:, middle:]


class TwoDomains:
    """Positions to pairs of images: `fetch(index, epoch)` gives A and B, each [B, 3, H, W], of the direction asked for.

    names: of the images of A and of B. read: from a side (0 or 1) and a number to its uint8 image. paired: both have
    the same number and share crop and flip; otherwise B is drawn anew for each A. train: random crops and flips.
    """

    def __init__(
        self,
        settings: Domains,
        names: tuple[list[str], list[str]],
        read,
        paired: bool,
        train: bool,
        seed: int,
        sha: str,
    ):
        self.settings, self.names, self.read = settings, names, read
        self.counts = tuple(len(side) for side in names)
        self.paired, self.train, self.seed, self.sha = paired, train, seed, sha

    def __len__(self) -> int:
        """Of the larger domain; an evaluation without pairs runs over the source domain alone."""
        return max(self.counts) if self.train or self.paired else self.counts[self.settings.direction == "BtoA"]

    def fetch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Source and target images of int64 positions [B] on the CPU."""
        pairs = [self._pair(int(i), epoch) for i in index]
        a, b = (torch.stack(side) for side in zip(*pairs))
        return (b, a) if self.settings.direction == "BtoA" else (a, b)

    def source_name(self, i: int) -> str:
        """The file name, without its suffix, of the i-th source image."""
        names = self.names[self.settings.direction == "BtoA"]
        return names[i % len(names)]

    def fingerprint(self) -> str:
        """sha256 that tells one data set from another."""
        return self.sha

    def _pair(self, i: int, epoch: int) -> tuple[Tensor, Tensor]:
        s = self.settings
        room = s.load_size - s.crop_size
        one = self._place(i, epoch, FIRST_CROP, room)
        if self.paired:
            two, numbers = one, (i, i)
        elif self.train:
            two = self._place(i, epoch, SECOND_CROP, room)
            numbers = (i % self.counts[0], int(integers(self.seed, epoch, i, PARTNER, self.counts[1])))
        else:
            two, numbers = None, (i % self.counts[0], i % self.counts[1])
        return tuple(
            prepare(self.read(side, number), s.preprocess, s.load_size, s.crop_size, place)
            for side, (number, place) in enumerate(zip(numbers, (one, two)))
        )

    def _place(self, i: int, epoch: int, slot: int, room: int) -> Place | None:
        if not self.train:
            return None
        slots = iter(range(slot, slot + 3))
        place = draw_place(
            lambda low, high: low + int(integers(self.seed, epoch, i, next(slots), high - low + 1)),
            lambda: float(uniform(self.seed, epoch, i, next(slots))),
            room,
        )
        return place if self.settings.flip else place._replace(flip=False)


def load(settings: Domains, seed: int) -> tuple[TwoDomains, TwoDomains]:
    """The training and the evaluation set of a config.

    Errors: InputError for a folder that is missing or empty, and for sizes that contradict each other.
    """
    if settings.load_size < settings.crop_size:
        raise InputError(
            f"data.load_size {settings.load_size} is below data.crop_size {settings.crop_size}; crops must fit"
        )
    sets = []
    for train in (True, False):
        names, read, sha = _on_disk(settings, train) if "aligned" in settings.name else _in_memory(settings, train)
        sets.append(TwoDomains(settings, names, read, settings.name in PAIRED, train, seed, sha))
    if len(sets[0]) < settings.batch_size:
        raise InputError(
            f"the training set has {len(sets[0])} images, fewer than data.batch_size {settings.batch_size}"
        )
    return tuple(sets)


# -- on disk ---------------------------------------------------------------------------------------------------------


def listing(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, sorted. Errors: InputError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FOLDERS and path.is_file())
    if not found:
        raise InputError(f"{folder} {'holds no image' if folder.is_dir() else 'does not exist'}; see `python data.py`")
    return found


def _on_disk(settings: Domains, train: bool) -> tuple:
    root, part = Path(settings.root), "train" if train else "val"
    if settings.name == "aligned":
        paths = listing(root / part)[: settings.limit or None]
        read = lambda side, number: split_pair(read_image(paths[number]))[side]
        return ([path.stem for path in paths],) * 2, read, _names_sha(paths)
    domains = [listing(root / f"{part}{side}") for side in "AB"]
    if settings.legacy_drop_last_file:
        domains = [paths[:-1] for paths in domains]
    domains = [paths[: settings.limit or None] for paths in domains]
    read = lambda side, number: read_image(domains[side][number])
    names = tuple([path.stem for path in paths] for paths in domains)
    return names, read, _names_sha([*domains[0], *domains[1]])


def _names_sha(paths: list[Path]) -> str:
    names = [f"{path.parent.name}/{path.name}:{path.stat().st_size}" for path in paths]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


# -- in memory -------------------------------------------------------------------------------------------------------


def _in_memory(settings: Domains, train: bool) -> tuple:
    if settings.name == "classes":
        domains = pictures.classes(settings.root, (settings.class_a, settings.class_b), train, settings.limit)
    elif settings.name == "folder_paired":
        domains = pictures.folder(settings.root, settings.load_size, train, settings.limit)
    else:
        domains = pictures.embedded(settings.name == "photos_paired", settings.load_size, train, settings.limit)
    sha = hashlib.sha256(domains[0].tobytes() + domains[1].tobytes()).hexdigest()
    names = tuple([str(i) for i in range(len(side))] for side in domains)
    return names, lambda side, number: domains[side][number], sha
