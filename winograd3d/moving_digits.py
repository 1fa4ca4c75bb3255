"""The embedded data set (section 11): scikit-learn's digits that move to the left or to the right."""

import functools
import hashlib

from common.errors import InputError
from common.randomness import integers, permutation, uniform

import torch
from torch import Tensor

DIRECTION, FIRST_ROW, FIRST_COLUMN, NOISE = 69, 70, 71, 1024  # slots; NOISE takes two for every sample of a clip
TRAIN, CLIP, NOISE_SD = 1200, (8, 12, 12), 0.1


class ArrayClips:
    """Clips held in memory, float32 [N, C, T, H, W]; they are as long as a clip, so every clip of a video is it."""

    def __init__(self, clips: Tensor, labels: Tensor, classes: list[str]):
        self.storage, self.labels, self.classes = clips, labels, classes
        self.shape = tuple(clips.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Clips [B, C, T, H, W] and labels [B] of int64 positions [B]; the same in every epoch."""
        return self.storage[index], self.labels[index]

    def clips(self, index: Tensor, count: int) -> Tensor:
        """[B, count, C, T, H, W]: the clip itself, `count` times."""
        return self.storage[index][:, None].expand(-1, count, -1, -1, -1, -1)

    def fingerprint(self) -> str:
        """sha256 over labels and clips."""
        return hashlib.sha256(self.labels.numpy().tobytes() + self.storage.numpy().tobytes()).hexdigest()


def moving_digits(limit: int = 0) -> tuple[ArrayClips, ArrayClips]:
    """Scikit-learn's 1,797 digits moving one pixel every two frames: 1,200 clips to train on, 597 to test.

    Every image makes one clip: its direction (left or right, half of the label), place and noise are drawn from its
    number, so the data is the same whatever the seed of a run. Classes are digit x direction.
    """
    clips, labels = _digit_clips()
    classes = [f"{digit} {way}" for digit in range(10) for way in ("left", "right")]
    order = permutation(0, 0, len(clips))
    parts = [part[: limit or None] for part in (order[:TRAIN], order[TRAIN:])]
    return tuple(ArrayClips(clips[part, None], labels[part], classes) for part in parts)


@functools.cache
def _digit_clips() -> tuple[Tensor, Tensor]:
    """All clips [N, T, H, W] with their noise, and labels [N]; not to be written to."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the digits come with scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images / 16).float(), torch.from_numpy(digits.target).long()
    number = torch.arange(len(images))
    frames, height, width = CLIP
    side = images.shape[1]
    travel = (frames - 1) // 2
    right = integers(0, 0, number, DIRECTION, 2)
    first = integers(0, 0, number, FIRST_COLUMN, width - side - travel + 1)
    moved = torch.arange(frames) // 2
    left = torch.where(right[:, None] == 1, first[:, None] + moved, first[:, None] + travel - moved)  # N, T
    top = integers(0, 0, number, FIRST_ROW, height - side + 1)
    # Where each sample of a clip lies in its digit; outside, it reads the zero pixel that is put after every image.
    row = torch.arange(height) - top[:, None]  # N, H
    column = torch.arange(width) - left[..., None]  # N, T, W
    inside = ((row >= 0) & (row < side))[:, None, :, None] & ((column >= 0) & (column < side))[:, :, None]
    place = torch.where(inside, row[:, None, :, None] * side + column[:, :, None], side * side)
    padded = torch.cat([images.flatten(1), images.new_zeros(len(images), 1)], 1)
    clips = padded.gather(1, place.flatten(1)).view(place.shape)
    return clips + NOISE_SD * _normal(number, frames * height * width).view(clips.shape), 2 * labels + right


def _normal(index: Tensor, count: int) -> Tensor:
    """Standard normal numbers [N, count] by Box and Muller's transform of two uniform ones."""
    slots = NOISE + 2 * torch.arange(count)
    radius = (-2 * (1 - uniform(0, 0, index[:, None], slots)).log()).sqrt()
    return radius * (2 * torch.pi * uniform(0, 0, index[:, None], slots + 1)).cos()
