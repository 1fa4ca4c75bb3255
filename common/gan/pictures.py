"""Two domains out of pictures that are at hand: scikit-image's photographs, a folder of one's own, classes of an .npz.

Each source gives the domains A and B as uint8 [N, H, W, 3]; the same place of paired ones holds one picture.
"""

from pathlib import Path

from common import photos
from common.errors import InputError
from common.images import read_image
from common.labelled import archive
from common.randomness import integers

import numpy as np
import torch
from PIL import Image

# The left 65 % of each embedded photograph is for training, the right 35 % for evaluation.
TRAIN_SHARE = 0.65
COUNTS = {True: 512, False: 128}
TEXTURES, SCENES = ("immunohistochemistry", "retina"), ("astronaut", "chelsea", "coffee")
CROPS_OF_EACH, CROPS_ACROSS = 64, 4  # of one's own photographs

Pictures = tuple[np.ndarray, np.ndarray]


def edges(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> the magnitude of its grey Sobel gradient, dark on white, uint8 [H, W, 3]."""
    from skimage.color import rgb2gray
    from skimage.filters import sobel

    strength = np.clip(1 - 4 * sobel(rgb2gray(pixels)), 0, 1)
    return np.rint(strength * 255).astype(np.uint8)[..., None].repeat(3, 2)


def cut(parts: dict[str, np.ndarray], size: int, count: int, train: bool, slot: int) -> np.ndarray:
    """Fixed random squares of pictures {name: uint8 [H, W, 3]}, uint8 [count, size, size, 3].

    Errors: InputError for a picture that is smaller than a square.
    """
    for name, part in parts.items():
        if min(part.shape[:2]) < size:
            room = min(part.shape[:2])
            raise InputError(f"data.load_size {size} is larger than {name} ({room} pixels); give at most {room}")
    stock = list(parts.values())
    which = integers(0, int(train), torch.arange(count), slot, len(stock)).tolist()
    crops = np.empty((count, size, size, 3), np.uint8)
    for i, number in enumerate(which):
        height, width, _ = stock[number].shape
        top = int(integers(0, int(train), i, slot + 1, height - size + 1))
        left = int(integers(0, int(train), i, slot + 2, width - size + 1))
        crops[i] = stock[number][top : top + size, left : left + size]
    return crops


def with_edges(crops: np.ndarray) -> Pictures:
    """Edges (A) and the crops that they come from (B)."""
    return np.stack([edges(crop) for crop in crops]), crops


def embedded(paired: bool, size: int, train: bool, limit: int) -> Pictures:
    """Edges and the photographs they come from, or crops of stained tissue and retina against everyday scenes."""
    count = min(COUNTS[train], limit or COUNTS[train])
    scenes = cut(_sides(SCENES, train), size, count, train, 80)
    return with_edges(scenes) if paired else (cut(_sides(TEXTURES, train), size, count, train, 84), scenes)


def _sides(names: tuple[str, ...], train: bool) -> dict[str, np.ndarray]:
    whole = {f"a part of the photograph {name}": photos.load(name) for name in names}
    border = {name: int(pixels.shape[1] * TRAIN_SHARE) for name, pixels in whole.items()}
    return {name: p[:, : border[name]] if train else p[:, border[name] :] for name, p in whole.items()}


def folder(root: str, size: int, train: bool, limit: int) -> Pictures:
    """Edges and crops of one's own photographs, 64 of each, a short side being four crops long at most.

    They are held in memory, 2 x 64 x size^2 x 3 bytes for a photograph. Errors: InputError for a folder with fewer than
    three photographs, and for one that cannot be read or is smaller than a crop.
    """
    chosen = photos.folder_split(root, train)
    parts = {str(path): _shrunk(read_image(path), CROPS_ACROSS * size) for path in chosen}
    count = CROPS_OF_EACH * len(chosen)
    return with_edges(cut(parts, size, min(count, limit or count), train, 88))


def _shrunk(pixels: np.ndarray, short: int) -> np.ndarray:
    """uint8 [H, W, 3] with a short side of at most so many pixels."""
    scale = short / min(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (round(side * scale) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.LANCZOS))


def classes(root: str, names: tuple[str, str], train: bool, limit: int) -> Pictures:
    """The images of two classes of an .npz of encoded images. Errors: InputError as `common.labelled.archive`."""
    ((pixels, labels),), known = archive(Path(root), ("train" if train else "test",), names)
    return tuple(pixels[labels == known.index(name)][: limit or None] for name in names)
