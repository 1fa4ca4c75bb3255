"""Where triplets come from: files of a set, or lit photographs on which shadows are cast.

A source has a length, `name(i)`, `read(i, epoch)` -> Sample and `fingerprint()`; training pictures and test pictures
are two sources.
"""

import functools
import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

from common import photos
from common.errors import InputError
from common.images import read_image
from common.randomness import integers
from common.shadow.synthesis import draw
from common.shadow.triplets import Triplet, read

import cv2
import numpy as np
from PIL import Image

PHOTO, ROW, COLUMN = 130, 131, 132  # slots of a crop; the shadow cast on it draws from 90 on


class Sample(NamedTuple):
    """One triplet: uint8 images [H, W, 3] and mask levels uint8 [H, W]; free is None without ground truth."""

    shadow: np.ndarray
    mask: np.ndarray
    free: np.ndarray | None


class FileTriplets:
    """Triplets on disk; every file is opened once at the start, so that a bad one ends the run before it begins.

    resident: keep decoded pictures in memory. Errors: InputError for files that cannot be read or differ in size.
    """

    def __init__(self, found: list[Triplet], resident: bool = False):
        self.found = found
        problems = [problem for triplet in found if (problem := _problem(triplet))]
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise InputError("; ".join(problems[:5]) + more)
        if resident:
            self._load = functools.cache(self._load)

    def __len__(self) -> int:
        return len(self.found)

    def name(self, index: int) -> str:
        return self.found[index].name

    def read(self, index: int, epoch: int = 0) -> Sample:
        """The triplet as stored; the same in every epoch."""
        return self._load(index)

    def _load(self, index: int) -> Sample:
        return Sample(*read(self.found[index], threshold=None))

    def fingerprint(self) -> str:
        """sha256 over the names and sizes of the files."""
        files = [path for triplet in self.found for path in triplet[1:] if path]
        return hashlib.sha256("\n".join(f"{p.name}:{p.stat().st_size}" for p in files).encode()).hexdigest()


def _problem(triplet: Triplet) -> str:
    """What is wrong with the files of a triplet by their headers, or nothing."""
    sizes = {}
    for path in (path for path in triplet[1:] if path):
        try:
            with Image.open(path) as image:
                # A photograph that lies on its side in the file is turned when it is read.
                sizes[path] = tuple(sorted(image.size))
        except Exception as error:  # on broken bytes a decoder may raise nearly anything
            return f"{path} cannot be read as an image ({error})"
    if len(set(sizes.values())) > 1:
        return ", ".join(f"{path} is {size[1]}x{size[0]}" for path, size in sizes.items()) + ": sizes differ"
    return ""


class SyntheticTriplets:
    """Shadows cast on lit photographs (`synthesis.draw`): picture i is a crop of one of them, or the whole.

    size: side of the square crops, None for whole photographs in turn. fresh: crop and shadow change with the epoch;
    otherwise a triplet is always the same and kept in memory. All depends on (seed, epoch, index) alone.
    Errors: InputError for photographs smaller than the crop.
    """

    def __init__(
        self,
        photographs: dict[str, np.ndarray],
        size: int | None,
        count: int,
        seed: int = 0,
        fresh: bool = False,
        linear: bool = False,
    ):
        small = [name for name, pixels in photographs.items() if min(pixels.shape[:2]) < (size or 1)]
        if small or not photographs:
            raise InputError(f"cannot cut crops of {size} pixels from {', '.join(small) or 'no photograph'}")
        self.names, self.pictures = list(photographs), list(photographs.values())
        self.size, self.count, self.seed, self.fresh, self.linear = size, count, seed, fresh, linear
        if not fresh:
            self._make = functools.cache(self._make)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index:04d}" if self.size else f"{self.names[index % len(self.names)]}_{index // len(self.names):02d}"

    def read(self, index: int, epoch: int = 0) -> Sample:
        """Triplet `index` of an epoch."""
        return self._make(index, epoch if self.fresh else 0)

    def _make(self, index: int, epoch: int) -> Sample:
        if self.size:
            number = int(integers(self.seed, epoch, index, PHOTO, len(self.pictures)))
            picture = self.pictures[number]
            room = (side - self.size + 1 for side in picture.shape[:2])
            top, left = (int(integers(self.seed, epoch, index, slot, n)) for slot, n in zip((ROW, COLUMN), room))
            free = np.ascontiguousarray(picture[top : top + self.size, left : left + self.size])
        else:
            free = self.pictures[index % len(self.pictures)]
        shadow, mask = draw(self.seed, index, free.shape[:2], epoch).cast(free, self.linear)
        return Sample(shadow, mask, free)

    def fingerprint(self) -> str:
        """sha256 over the photographs and how triplets are drawn from them."""
        sha = hashlib.sha256(repr((self.size, self.count, self.seed, self.fresh, self.linear)).encode())
        for name, picture in zip(self.names, self.pictures):
            sha.update(f"{name} {picture.shape}\n".encode())
            sha.update(picture.tobytes())
        return sha.hexdigest()


def embedded(part: Literal["train", "test"]) -> dict[str, np.ndarray]:
    """scikit-image's photographs of one side of their fixed split, by name."""
    return {name: photos.load(name) for name in photos.split()[part]}


def folder(root: str | Path, part: Literal["train", "test"], longest: int) -> dict[str, np.ndarray]:
    """A folder's photographs of one side by stem, shrunk to at most `longest` pixels (`photos.folder_split`)."""
    return {path.stem: shrink(read_image(path), longest) for path in photos.folder_split(root, part == "train")}


def shrink(picture: np.ndarray, longest: int) -> np.ndarray:
    """The picture with a longer side of at most `longest` pixels, averaged over areas."""
    scale = longest / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
