"""The digits canvas (section 11 of the specification): real digits at known places in noise, small enough for minutes.

Each of scikit-learn's 1,797 digits (8x8, scaled to [0, 1]) is pasted at a random even offset into a 16x16 canvas of
Gaussian noise, so that the object lies on whole tokens of a network with patch 2 and the place of its ink is known.
"""

import hashlib
import math

from common.errors import InputError
from common.imagesets import ArraySet
from common.randomness import integers, uniform

import numpy as np
import torch
from torch import Tensor

SIDE, DIGIT, STEP = 16, 8, 2  # pixels of the canvas and of a digit; offsets are multiples of STEP
NOISE_MEAN, NOISE_STD = 0.1, 0.08
STATISTICS = ((0.3,), (1 / 3,))  # what the network sees is (v - 0.3) * 3
TRAIN = 1200
ROW, COLUMN, NOISE = 64, 65, 1024  # slots; NOISE takes one for each pixel
EPOCH = 0  # the data set is drawn once: a digit keeps its canvas in every epoch


class CanvasSet(ArraySet):
    """Digits on canvases, drawn in batch on their device whenever they are fetched.

    digits: uint8 [N, 8, 8] of 0..16 as scikit-learn has them. first: number of the first among all 1,797, since a
    canvas depends on (seed, number) alone.
    """

    def __init__(self, digits: np.ndarray, labels: np.ndarray, *, seed: int, first: int = 0):
        repeated = np.asarray(digits, dtype=np.uint8)[..., None].repeat(3, axis=-1)
        super().__init__(repeated, labels, [str(c) for c in range(10)], STATISTICS, seed=seed)
        self.first = first

    def offset(self, index: Tensor) -> Tensor:
        """Where the digits' top left corners lie, int64 [B, 2] in pixels (row, column)."""
        steps = (SIDE - DIGIT) // STEP + 1
        slots = torch.tensor([ROW, COLUMN], device=index.device)
        return integers(self.seed, EPOCH, (index + self.first)[:, None], slots, steps) * STEP

    def ink(self, index: Tensor) -> Tensor:
        """The digits' own ink on an empty canvas, float32 [B, 16, 16] in [0, 1]."""
        return self._paste(index, torch.zeros(len(index), SIDE, SIDE, device=index.device))

    def fetch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Images [B, 1, 16, 16] as the network sees them and labels [B] of int64 positions [B], in any epoch."""
        images = self._paste(index, NOISE_MEAN + NOISE_STD * self._noise(index))
        (mean,), (std,) = self.statistics
        return images.sub_(mean).div_(std)[:, None], self.labels[index]

    def fingerprint(self) -> str:
        """sha256 of what the canvases are made from."""
        made_from = (self.seed, self.first, SIDE, STEP, NOISE_MEAN, NOISE_STD)
        return hashlib.sha256(f"{super().fingerprint()} {made_from}".encode()).hexdigest()

    def _paste(self, index: Tensor, canvas: Tensor) -> Tensor:
        """The canvases [B, 16, 16] with the digits in place of what was there; writes into them."""
        digits = self.storage[index, :, :, 0].float() / 16
        side = torch.arange(DIGIT, device=index.device)
        row, column = (start[:, None] + side for start in self.offset(index).unbind(1))  # [B, 8]
        place = (row[:, :, None] * SIDE + column[:, None, :]).flatten(1)  # [B, 64]
        return canvas.flatten(1).scatter_(1, place, digits.flatten(1)).view_as(canvas)

    def _noise(self, index: Tensor) -> Tensor:
        """Standard normal numbers [B, 16, 16] by Box and Muller: two from each pair of uniform ones."""
        slots = torch.arange(NOISE, NOISE + SIDE * SIDE, device=index.device)
        u, angle = uniform(self.seed, EPOCH, (index + self.first)[:, None], slots).chunk(2, dim=1)
        radius = (-2 * torch.log1p(-u)).sqrt()  # 1 - u lies in (0, 1]
        angle = 2 * math.pi * angle
        return torch.cat([radius * angle.cos(), radius * angle.sin()], 1).view(-1, SIDE, SIDE)


def load(settings, seed: int) -> tuple[CanvasSet, CanvasSet]:
    """The first 1,200 digits and the other 597, each cut to settings.limit where it is not 0.

    Errors: InputError without scikit-learn, which brings the digits.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the digits come with scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    parts = []
    for first, last in ((0, TRAIN), (TRAIN, len(digits.target))):
        last = min(last, first + (settings.limit or last))
        parts.append(CanvasSet(digits.images[first:last], digits.target[first:last], seed=seed, first=first))
    return tuple(parts)
