"""mIoU of generated Cityscapes photographs: what a segmentation network still recognises in them (section 6)."""

from collections.abc import Callable, Iterable
from pathlib import Path

from common.errors import InputError
from common.gan.data import TwoDomains
from common.gan.evaluation import generated
from common.gan.frechet import to_uint8
from common.images import read_image

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dcd.config import Config
from dcd.drn import load_drn

CLASSES, IGNORED = 19, 255
SIZE = (2048, 1024)
"""width and height of Cityscapes' label maps"""
MEAN, STD = (0.29010095, 0.32808144, 0.28696394), (0.18295405, 0.18656561, 0.18447509)
TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Cityscapes' ids of the train ids 0 … 18"""
COLOURS = {
    5: (111, 74, 0),
    6: (81, 0, 81),
    7: (128, 64, 128),
    8: (244, 35, 232),
    9: (250, 170, 160),
    10: (230, 150, 140),
    11: (70, 70, 70),
    12: (102, 102, 156),
    13: (190, 153, 153),
    14: (180, 165, 180),
    15: (150, 100, 100),
    16: (150, 120, 90),
    17: (153, 153, 153),
    18: (153, 153, 153),
    19: (250, 170, 30),
    20: (220, 220, 0),
    21: (107, 142, 35),
    22: (152, 251, 152),
    23: (70, 130, 180),
    24: (220, 20, 60),
    25: (255, 0, 0),
    26: (0, 0, 142),
    27: (0, 0, 70),
    28: (0, 60, 100),
    29: (0, 0, 90),
    30: (0, 0, 110),
    31: (0, 80, 100),
    32: (0, 0, 230),
    33: (119, 11, 32),
    34: (0, 0, 142),
}
"""colours of ids that are not black; the 35th is the licence plate"""


def train_ids(ids: np.ndarray) -> np.ndarray:
    """Cityscapes ids 0 … 33 to train ids 0 … 18, everything else to 255; int32."""
    table = np.full(256, IGNORED, np.int32)
    table[list(TRAINED)] = np.arange(CLASSES)
    return table[np.asarray(ids, np.uint8)]


def colours(count: int) -> np.ndarray:
    """A palette uint8 [count, 3]: Cityscapes' for 35, PASCAL's bit-interleaved map for any other number."""
    if count == 35:
        return np.array([COLOURS.get(i, (0, 0, 0)) for i in range(35)], np.uint8)
    index, palette = np.arange(1, count + 1), np.zeros((count, 3), np.int64)
    for place in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * place + channel)) & 1) << (7 - place)
    return palette.astype(np.uint8)


def normalise(images: Tensor) -> Tensor:
    """Images [..., 3, H, W] in [0, 1] as the segmentation network was trained."""
    mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (MEAN, STD))
    return (images - mean) / std


def resize_scores(scores: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Every channel of [..., h, w] as a float image, bilinearly as PIL has it, to (width, height)."""
    flat = np.asarray(scores, np.float32).reshape(-1, *scores.shape[-2:])
    resized = [np.asarray(Image.fromarray(channel).resize(size, Image.BILINEAR)) for channel in flat]
    return np.stack(resized).reshape(*scores.shape[:-2], size[1], size[0])


def confusion(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """int64 [19, 19], rows true, columns predicted; labels outside 0 … 18 do not count."""
    known = (label >= 0) & (label < CLASSES)
    pairs = CLASSES * label[known].astype(np.int64) + prediction[known]
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def intersection_over_union(matrix: np.ndarray) -> np.ndarray:
    """Percent per class; NaN for a class that neither occurs nor is predicted."""
    hits = matrix.diagonal().astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return hits / (matrix.sum(0) + matrix.sum(1) - hits) * 100


def mean_iou(matrix: np.ndarray) -> float:
    """Mean over the classes that occur, percent, rounded to two decimals."""
    return round(float(np.nanmean(intersection_over_union(matrix))), 2)


def read_table(path: str | Path) -> list[tuple[str, Path, str]]:
    """Rows (index, label map, photograph) of a text file; relative label maps lie beside it. Errors: InputError."""
    path = Path(path)
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the table of label maps cannot be read ({error})") from error
    if not lines or any(len(words) != 3 for words in lines):
        raise InputError(f"{path}: each line must be `index trainIds-path photo-path`")
    return [(index, path.parent / label, photo) for index, label, photo in lines]


def label_of(name: str, table: list[tuple[str, Path, str]]) -> Path:
    """The label map of the image called `name`, without suffix, as its index or its photograph. Errors: InputError."""
    for wanted in (lambda index, photo: index == name, lambda index, photo: Path(photo).stem == name):
        for index, label, photo in table:
            if wanted(index, photo):
                return label
    raise InputError(f"{name}: the table of label maps has no such index or photograph")


@torch.inference_mode()
def miou(network: nn.Module, images: Iterable[tuple[str, Tensor]], table: list[tuple[str, Path, str]]) -> float:
    """mIoU of named generated images [1, 3, H, W] in [-1, 1] against full-resolution maps of train ids."""
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for name, image in images:
        label = read_image(label_of(name, table))[..., 0]
        pixels = to_uint8(image).permute(0, 3, 1, 2).float() / 255
        scores = network(normalise(pixels))[0].cpu().numpy()
        matrix += confusion(label, resize_scores(scores, label.shape[::-1]).argmax(0))
    return mean_iou(matrix)


def segmentation(config: Config, test: TwoDomains, device: torch.device) -> Callable[[nn.Module], float] | None:
    """From a generator to the mIoU of its photographs of the whole test set; None where the config names no files.

    Errors: InputError where one file is missing or the images are no photographs of Cityscapes' colour maps.
    """
    files = config.segmentation
    if not files.weights and not files.table:
        return None
    if not (files.weights and files.table) or config.data.direction != "BtoA" or config.data.name != "aligned":
        raise InputError(
            "segmentation: the mIoU is of photographs made from colour maps; give segmentation.weights and "
            "segmentation.table with data.name aligned and data.direction BtoA"
        )
    network, table = load_drn(files.weights).to(device), read_table(files.table)
    names = [test.source_name(i) for i in range(len(test))]
    for name in names:
        if not (label := label_of(name, table)).is_file():
            raise InputError(f"{files.table}: the label map {label} of {name} does not exist")

    def measure(generator: nn.Module) -> float:
        sources = (test.fetch(torch.tensor([i]), 0)[0] for i in range(len(test)))
        return miou(network, zip(names, generated(generator, sources, device)), table)

    return measure
