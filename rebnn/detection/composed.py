"""A set of real pictures with boxes that comes with the packages: handwritten digits on photographs.

Image i of a side is a function of (side, size, i) alone: a crop of one of scikit-image's photographs with none to
three of scikit-learn's digits. Training and test images share neither photographs nor writers.
"""

from common import photos
from common.errors import InputError
from common.labelled import Labelled
from common.labelled import load as load_labelled
from common.randomness import integers, uniform

import cv2
import numpy as np
import torch

from rebnn.detection.records import Scene

SEEDS = {"train": 2302, "test": 956}
"""of the draws; the number of the paper's preprint"""
MOST, TRIALS = 3, 8
"""digits of an image, and places that are tried for each"""
NUMBER, DIGIT, SIDE, ROW, COLUMN = 64, 80, 96, 128, 192
"""slots of the draws"""
SMALLEST, LARGEST = 0.25, 0.45
"""side of a digit's square as a share of the image's"""
INK = 96
"""level from which a pixel of the digit belongs to its box, of 255"""


def compose(side: str, count: int, size: int, digits: int = 10) -> list[Scene]:
    """The first `count` scenes of a side, `train` or `test`, with digits below `digits`.

    Errors: InputError for images that no digit fits in, and for more than ten digits.
    """
    if digits > 10:
        raise InputError(f"data.digits {digits}: there are ten; give at most 10")
    if size < 32:
        raise InputError(f"data.size {size}: digits would have less than 8 pixels; give at least 32")
    seed = SEEDS[side]
    backgrounds = photos.crops(photos.split()[side], size, count, seed)
    pixels, labels = glyphs(side, digits)
    index = torch.arange(count)
    numbers = integers(seed, 0, index, NUMBER, MOST + 1).tolist()
    slots = torch.arange(MOST)
    chosen = integers(seed, 0, index[:, None], DIGIT + slots, len(pixels)).tolist()
    sides = uniform(seed, 0, index[:, None], SIDE + slots).numpy() * (LARGEST - SMALLEST) + SMALLEST
    trials = torch.arange(MOST * TRIALS)
    places = [uniform(seed, 0, index[:, None], s + trials).view(count, MOST, TRIALS) for s in (ROW, COLUMN)]
    places = torch.stack(places, -1).numpy()
    scenes = []
    for i, image in enumerate(backgrounds):
        boxes, classes = [], []
        for digit, share, place in zip(chosen[i][: numbers[i]], sides[i], places[i]):
            edge = round(float(share) * size)
            corners = (place * (size - edge + 1)).astype(int)
            free = [c for c in corners if all(apart(c, edge, box) for box in boxes)]
            if free:
                boxes.append(paste(image, pixels[digit], *free[0], edge))
                classes.append(labels[digit])
        scenes.append(
            Scene(
                f"{side}{i:04d}",
                image,
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array(classes, np.int64),
                np.zeros(len(boxes), bool),
            )
        )
    return scenes


def glyphs(side: str, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits below `digits` of a side's writers, uint8 [N, 8, 8] of ink, and what they are, int64 [N]."""
    train, test = load_labelled(Labelled("digits", batch_size=1), 0)
    chosen = train if side == "train" else test
    wanted = chosen.labels < digits
    return chosen.pixels[wanted][..., 0].numpy(), chosen.labels[wanted].numpy()


def paste(image: np.ndarray, glyph: np.ndarray, row: int, column: int, edge: int) -> list[float]:
    """Blend a digit into a square of the image, in place, in black or white, whichever stands out; returns its box."""
    ink = cv2.resize(glyph, (edge, edge), interpolation=cv2.INTER_CUBIC)
    part = image[row : row + edge, column : column + edge]
    colour = 255.0 if part.mean() < 128 else 0.0
    share = ink[..., None] / 255
    part[:] = np.rint(part * (1 - share) + colour * share).astype(np.uint8)
    rows, columns = (np.flatnonzero((ink >= INK).any(axis)) for axis in (1, 0))
    return [column + columns[0], row + rows[0], column + columns[-1] + 1, row + rows[-1] + 1]


def apart(corner: np.ndarray, edge: int, box: list[float]) -> bool:
    """Whether a square at (row, column) leaves a box free."""
    row, column = corner
    return column + edge <= box[0] or column >= box[2] or row + edge <= box[1] or row >= box[3]
