"""Which box an anchor stands for, and which anchors a step learns from (sections 3.3 and 4)."""

from collections.abc import Iterable

from common.randomness import bits

import torch
from torch import Tensor

PROPOSALS, REGIONS = 2**32, 2**33
"""first slots of the draws among anchors and among proposals, far from those of augmentation"""


class Matcher:
    """The box of an anchor: the one it overlaps most, from `positive` on; none below `negative`.

    least: a box whose best anchors overlap it by at least this much gets all of those, whatever else they overlap (of
    several such boxes the last); None leaves that out.
    """

    BELOW_LOW_THRESHOLD, BETWEEN_THRESHOLDS = -1, -2

    def __init__(self, positive: float, negative: float, least: float | None = None):
        self.positive, self.negative, self.least = positive, negative, least

    def __call__(self, overlaps: Tensor) -> Tensor:
        """Overlaps of boxes and anchors [G, A], G > 0, to the box of each anchor, or one of the two constants, [A]."""
        most, matched = overlaps.max(0)
        matched = matched.masked_fill(most < self.positive, self.BETWEEN_THRESHOLDS)
        matched = matched.masked_fill(most < self.negative, self.BELOW_LOW_THRESHOLD)
        if self.least is None:
            return matched
        best = overlaps.amax(1, keepdim=True)
        wanted = (overlaps == best) & (best >= self.least)
        number = torch.arange(1, len(overlaps) + 1, device=overlaps.device)
        forced = (wanted * number[:, None]).amax(0)
        return torch.where(forced > 0, forced - 1, matched)


class Sampler:
    """A random choice of `size` anchors of an image, at most `share` of them positive.

    The draws are a function of (seed, pass, image, position of the anchor): `at` tells which images come next.
    """

    def __init__(self, size: int, share: float, seed: int, slot: int):
        self.size, self.positives, self.seed, self.slot = size, int(size * share), seed, slot
        self.at(())

    def at(self, images: Iterable[tuple[int, int]]) -> None:
        """The (number, pass) of each image of the next call; without them images count from 0."""
        self.images = tuple(images)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels of each image's anchors (>= 1 positive, 0 negative, else unused) to the chosen of both kinds, bool."""
        images = self.images or [(i, 0) for i in range(len(labels))]
        chosen = [self._choose(label, image) for label, image in zip(labels, images, strict=True)]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def _choose(self, labels: Tensor, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Nothing is read back: how many negatives there is room for stays on the device."""
        slots = self.slot + torch.arange(len(labels), device=labels.device)
        number, turn = image
        keys = bits(self.seed, turn, torch.full_like(slots, number), slots)
        positive = self._first(keys, labels >= 1, self.positives)
        return positive, self._first(keys, labels == 0, self.size - positive.sum())

    def _first(self, keys: Tensor, wanted: Tensor, number: Tensor | int) -> Tensor:
        keys = keys.masked_fill(~wanted, 2**32)
        value, place = keys.topk(min(self.size, len(keys)), largest=False)
        taken = (torch.arange(len(place), device=keys.device) < number) & (value < 2**32)
        return torch.zeros_like(wanted).scatter_(0, place, taken)
