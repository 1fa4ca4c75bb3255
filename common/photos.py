"""The colour photographs inside scikit-image: real pictures for training and testing without any download.

Licence and author are what scikit-image's own documentation of each picture states (skimage.data).
"""

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.images import list_images, read_image
from common.randomness import integers

import numpy as np
import torch

PHOTO, ROW, COLUMN = 13, 14, 15  # slots of the three draws of a crop
HELD_OUT, FIRST_HELD_OUT = 5, 2  # of one's own folder


class Photo(NamedTuple):
    """One photograph: its file in skimage/data, what is known about it, and its side of the fixed split."""

    file: str
    subject: str
    licence: str
    source: str
    split: str


# The test photographs are textured all over: on the dark borders of `retina` or `hubble_deep_field` any method
# restores well. The stereo pair shows one scene, so both of its pictures are on one side.
PHOTOS = {
    "astronaut": Photo("astronaut.png", "Eileen Collins", "public domain", "NASA Great Images", "train"),
    "hubble_deep_field": Photo("hubble_deep_field.jpg", "far galaxies", "public domain", "NASA, HubbleSite", "train"),
    "immunohistochemistry": Photo(
        "ihc.png",
        "stained colonic glands",
        "no known copyright restrictions",
        "Center for Microscopy And Molecular Imaging",
        "train",
    ),
    "motorcycle_left": Photo(
        "motorcycle_left.png", "left view of a stereo pair", "unstated", "Middlebury 2014 stereo benchmark", "train"
    ),
    "motorcycle_right": Photo(
        "motorcycle_right.png", "right view of a stereo pair", "unstated", "Middlebury 2014 stereo benchmark", "train"
    ),
    "retina": Photo("retina.jpg", "human retina", "CC0 1.0", "Mikael Häggström, Wikimedia", "train"),
    "rocket": Photo("rocket.jpg", "launch of a Falcon 9", "public domain", "SpaceX Photos", "train"),
    "chelsea": Photo("chelsea.png", "a cat", "CC0", "Stefan van der Walt", "test"),
    "coffee": Photo("coffee.png", "a cup of coffee", "CC0", "Rachel Michetti, Pikolo Espresso Bar", "test"),
}


def split() -> dict[str, tuple[str, ...]]:
    """The names of the training and of the test photographs, {"train": (...), "test": (...)}."""
    return {side: tuple(name for name, photo in PHOTOS.items() if photo.split == side) for side in ("train", "test")}


@functools.cache
def _pixels(name: str) -> np.ndarray:
    if name not in PHOTOS:
        raise InputError(f"there is no photograph {name!r}; choose from {', '.join(PHOTOS)}")
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise InputError("the photographs are part of scikit-image, which is missing; pip install scikit-image")
    pixels = read_image(Path(package.submodule_search_locations[0]) / "data" / PHOTOS[name].file)
    pixels.setflags(write=False)
    return pixels


def load(name: str) -> np.ndarray:
    """The photograph as uint8 RGB [H, W, 3], the caller's own copy."""
    return _pixels(name).copy()


def folder_split(root: str | Path, train: bool) -> list[Path]:
    """The photographs of one's own folder on one side: every fifth, from the third by name on, is for testing.

    Errors: InputError for a folder with fewer than three, which leave nothing to test on.
    """
    paths = list_images(root)
    if len(paths) <= FIRST_HELD_OUT:
        raise InputError(f"{root} holds {len(paths)} photographs; at least three are needed, the third is for testing")
    return [path for i, path in enumerate(paths) if (i % HELD_OUT != FIRST_HELD_OUT) == train]


def fingerprint(names: Iterable[str] = PHOTOS) -> str:
    """sha256 over names, shapes and pixels; three are JPEG files, whose pixels depend on the decoder's version."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name} {_pixels(name).shape}\n".encode())
        digest.update(_pixels(name).tobytes())
    return digest.hexdigest()


def crops(names: Iterable[str], size: int, count: int, seed: int) -> np.ndarray:
    """Random squares as uint8 [count, size, size, 3]: each photograph equally likely, each place in it too.

    Crop i depends on (names, size, seed, i) alone, so a longer set begins with a shorter one.
    """
    names = list(names)
    sizes = torch.tensor([_pixels(name).shape[:2] for name in names]).view(-1, 2)
    if not names or size < 1 or count < 0 or int(sizes.min()) < size:
        raise InputError(
            f"cannot cut {count} crops of {size} pixels from {dict(zip(names, sizes.tolist()))}; "
            "name photographs at least as large as the crop"
        )
    index = torch.arange(count)
    photo = integers(seed, 0, index, PHOTO, len(names))
    room = sizes[photo] - size + 1
    top, left = (integers(seed, 0, index, slot, room[:, axis]).numpy() for axis, slot in enumerate((ROW, COLUMN)))
    cut = np.empty((count, size, size, 3), np.uint8)
    along = np.arange(size)
    for number, name in enumerate(names):
        own = (photo == number).numpy()
        rows, columns = (start[own, None] + along for start in (top, left))
        cut[own] = _pixels(name)[rows[:, :, None], columns[:, None, :]]
    return cut
