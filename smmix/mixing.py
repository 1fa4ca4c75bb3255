"""The baselines in SMMix's harness: no mixing, Mixup, CutMix, both in turn as timm does, and TransMix (section 2.9)."""

import math
import random

from common.errors import InputError
from common.randomness import bits

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smmix.config import Config
from smmix.method import Mixed, SMMix, infer_grid, mixup, require_pairs, smooth_labels, soft_cross_entropy

DRAW = 64  # slots of the two halves of a step's seed
METHODS = ("smmix", "none", "mixup", "cutmix", "mixup_cutmix", "transmix")


class OfficialRandom:
    """The draws of the official code and of timm: numpy's global generator, and Python's for the region's side."""

    def random(self) -> float:
        return np.random.rand()  # noqa: NPY002 - that very state is what is to be replayed

    def betavariate(self, alpha: float, beta: float) -> float:
        return np.random.beta(alpha, beta)  # noqa: NPY002

    def randrange(self, stop: int) -> int:
        return int(np.random.randint(0, stop))  # noqa: NPY002

    def choice(self, sizes: list[int]) -> int:
        return random.choice(sizes)

    def getrandbits(self, count: int) -> int:
        return random.getrandbits(count)


def step_random(seed: int, epoch: int, step: int, part: int) -> random.Random:
    """The draws of one step, a function of its numbers alone; part: the micro-batch, if each draws for itself."""
    high, low = bits(seed, epoch, step, torch.tensor([DRAW + 2 * part, DRAW + 2 * part + 1])).tolist()
    return random.Random(high << 32 | low)


def build_mixer(config: Config, classes: int) -> "SMMix | Baseline":
    """What mixes the batches of a config. Errors: InputError for sides or an order of sides that draw nothing."""
    m = config.mix
    if m.low > m.high:
        raise InputError(f"mix.low {m.low} is above mix.high {m.high}; give shares of the grid's side in order")
    if m.method != "smmix":
        return Baseline(
            m.method,
            classes,
            prob=m.prob,
            switch_prob=m.switch_prob,
            mixup_alpha=m.mixup_alpha,
            cutmix_alpha=m.cutmix_alpha,
            smoothing=m.smoothing,
        )
    return SMMix(
        classes,
        switch_prob=m.switch_prob,
        prob=m.prob,
        alpha=m.mixup_alpha,
        smoothing=m.smoothing,
        low=m.low,
        high=m.high,
        cut=m.cut,
        paste=m.paste,
        per_pair=m.per_pair,
        label=m.label,
        weights=(m.weight_cls, m.weight_fine, m.weight_con),
        mix_probabilities=m.mix_probabilities,
        grid=m.grid,
    )


def cutmix_box(height: int, width: int, own: float, rng) -> tuple[int, int, int, int]:
    """timm's box of about (1 - own)·H·W pixels, clipped at the border: top, bottom, left, right (half open)."""
    ratio = math.sqrt(1 - own)
    tall, wide = int(height * ratio), int(width * ratio)
    y, x = rng.randrange(height), rng.randrange(width)
    clip = lambda value, end: min(max(value, 0), end)
    rows = clip(y - tall // 2, height), clip(y + tall // 2, height)
    return *rows, clip(x - wide // 2, width), clip(x + wide // 2, width)


def cutmix(images: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The images with the box replaced by that of their partners."""
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].flip(0)
    return mixed


def transmix_share(mixed: Mixed, scores: Tensor) -> Tensor:
    """TransMix's weight of the own label [B]: the mean of the area outside the box and of the attention outside it.

    scores: class token's attention of the mixed images [B, N].
    """
    height, width = mixed.images.shape[2:]
    top, bottom, left, right = mixed.box
    box = torch.zeros(1, 1, height, width, device=scores.device)
    box[:, :, top:bottom, left:right] = 1
    inside = F.interpolate(box, infer_grid(scores.shape[1], height, width), mode="nearest").flatten()
    attention = scores.float()
    return (mixed.own + 1 - attention @ inside / attention.sum(1)) / 2


class Baseline:
    """A drop-in for `SMMix` that looks at no un-mixed image; the draws are timm's, in timm's order."""

    def __init__(
        self,
        method: str,
        classes: int,
        *,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        smoothing: float = 0.1,
    ):
        self.method, self.classes, self.prob, self.smoothing = method, classes, prob, smoothing
        self.switch_prob = 1.0 if method == "transmix" else switch_prob
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha

    def __call__(self, images: Tensor, labels: Tensor, _look, rng) -> Mixed:
        """Mix a batch [B, ch, H, W], labels int64 [B]. Errors: ValueError for an odd batch or labels out of range."""
        smooth, branch = smooth_labels(labels, self.classes, self.smoothing), self.branch(rng)
        if branch == "none":
            return Mixed(images, smooth, smooth.new_ones(()))
        require_pairs(images)
        if branch == "mixup":
            own = smooth.new_full((), rng.betavariate(self.mixup_alpha, self.mixup_alpha))
            return Mixed(mixup(images, own), smooth, own)
        height, width = images.shape[2:]
        box = cutmix_box(height, width, rng.betavariate(self.cutmix_alpha, self.cutmix_alpha), rng)
        top, bottom, left, right = box
        own = smooth.new_full((), 1 - (bottom - top) * (right - left) / (height * width))
        return Mixed(cutmix(images, box), smooth, own, box=box)

    def branch(self, rng) -> str:
        """The first draws of a step: `box`, `mixup` or `none`."""
        if self.method == "none" or rng.random() >= self.prob:
            return "none"
        if self.method in ("mixup", "cutmix"):
            return "mixup" if self.method == "mixup" else "box"
        return "box" if rng.random() < self.switch_prob else "mixup"

    def losses(self, mixed: Mixed, logits: Tensor, *_regions) -> dict[str, Tensor]:
        """The soft-target cross entropy, {"cls": []}."""
        return {"cls": soft_cross_entropy(logits, mixed.target)}
