"""The draw of a training step, its mix, and its loss (section 2.7)."""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from smmix.method.losses import consistency, mix_labels, smooth_labels, soft_cross_entropy
from smmix.method.regions import choose_region, infer_grid, mix_regions, region_mask, region_scores, region_sizes


class Mixed(NamedTuple):
    """A mixed batch: images [B, ch, H, W], smoothed own labels [B, K], and the weight of the own label, [] or [B].

    Where regions were mixed also: source tokens bool [B, N], un-mixed logits [B, K], the weight of the own label in the
    consistency target, and the regions' corners [B, 2] and sides [B] in tokens. Where a box was pasted: its
    top, bottom, left and right in pixels, half open.
    """

    images: Tensor
    labels: Tensor
    own: Tensor
    source: Tensor | None = None
    reference: Tensor | None = None
    area: Tensor | None = None
    paste: Tensor | None = None
    cut: Tensor | None = None
    size: Tensor | None = None
    box: tuple[int, int, int, int] | None = None

    @property
    def target(self) -> Tensor:
        """Soft labels of the mixed images [B, K]; each row sums to 1."""
        return mix_labels(self.labels, self.own)


def mixup(images: Tensor, own: Tensor) -> Tensor:
    """own·x + (1 - own)·flip(x) of images [B, ch, H, W], own []."""
    own = own.to(images.dtype)
    return images * own + images.flip(0) * (1 - own)


def require_pairs(images: Tensor) -> None:
    """Errors: ValueError for an odd batch, in which an image would be its own partner."""
    if len(images) % 2:
        raise ValueError(f"a batch of {len(images)} images has no pairs; give an even number")


class SMMix:
    """A batch is mixed by regions or, as often, by Mixup; used in the place of timm's Mixup.

    mixed = mixer(images, labels, look); losses = mixer.losses(mixed, logits, target_logits, source_logits)

    classes: K; switch_prob: probability of region mixing rather than Mixup; prob: probability of mixing at all;
    low, high: sides of a region as shares of the grid's; cut, paste: max, min or random; per_pair: each pair of images
    draws its own side; label: `area`, or `attention` for the mean of area and attention share; weights: of the class,
    region and consistency losses. rng: whatever has random, betavariate, choice and getrandbits, as Python's Random.
    """

    def __init__(
        self,
        classes: int,
        *,
        switch_prob: float = 0.5,
        prob: float = 1.0,
        alpha: float = 0.8,
        smoothing: float = 0.1,
        low: float = 0.25,
        high: float = 0.75,
        cut: str = "max",
        paste: str = "min",
        per_pair: bool = False,
        label: str = "area",
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        mix_probabilities: bool = False,
        grid: tuple[int, int] | None = None,
        rng: random.Random | None = None,
    ):
        self.classes, self.smoothing = classes, smoothing
        self.switch_prob, self.prob, self.alpha = switch_prob, prob, alpha
        self.low, self.high, self.cut, self.paste, self.per_pair, self.label = low, high, cut, paste, per_pair, label
        self.weights, self.mix_probabilities, self.grid = weights, mix_probabilities, grid
        self.rng = rng or random.Random(0)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
        rng: random.Random | None = None,
    ) -> Mixed:
        """Mix a batch [B, ch, H, W], labels int64 [B]. look: images -> un-mixed logits [B, K] and scores [B, N]."""
        rng = rng or self.rng
        require_pairs(images)
        smooth, branch = smooth_labels(labels, self.classes, self.smoothing), self.branch(rng)
        if branch == "none":
            return Mixed(images, smooth, smooth.new_ones(()))
        if branch == "regions":
            return self.regions(images, smooth, *look(images), rng)
        own = smooth.new_full((), rng.betavariate(self.alpha, self.alpha))
        return Mixed(mixup(images, own), smooth, own)

    def branch(self, rng: random.Random) -> str:
        """The first draws of a step: `regions`, `mixup` or `none`."""
        if self.prob < 1 and rng.random() >= self.prob:
            return "none"
        return "regions" if rng.random() < self.switch_prob else "mixup"

    def regions(self, images: Tensor, labels: Tensor, logits: Tensor, scores: Tensor, rng: random.Random) -> Mixed:
        """Max-min attention region mixing of images with smoothed labels, un-mixed logits and scores [B, N]."""
        rows, columns = self.grid or infer_grid(scores.shape[1], *images.shape[2:])
        if rows * columns != scores.shape[1] or images.shape[2] % rows or images.shape[3] % columns:
            raise ValueError(
                f"a grid of {rows} x {columns} tokens does not fit {scores.shape[1]} attention scores on images of "
                f"{images.shape[2]} x {images.shape[3]} pixels; their sides must be multiples of the grid's"
            )
        size, noise = self.draw(len(images), rows, columns, rng, images.device)
        return self.apply(images, labels, logits, scores.unflatten(1, (rows, columns)), size, *noise)

    def draw(
        self, batch: int, rows: int, columns: int, rng: random.Random, device: torch.device
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Sides of the regions int64 [B], and the numbers [B, R, C] that rank regions of a random paste and cut."""
        sizes = region_sizes(min(rows, columns), self.low, self.high)
        if self.per_pair:
            half = torch.tensor(sizes)[torch.randint(len(sizes), (batch // 2,), generator=_generator(rng))]
            size = torch.cat([half, half.flip(0)]).to(device)
        else:
            size = torch.full((batch,), rng.choice(sizes), device=device)
        ranks = [
            torch.rand(batch, rows, columns, generator=_generator(rng)).to(device) if how == "random" else None
            for how in (self.paste, self.cut)
        ]
        return size, ranks

    def apply(
        self,
        images: Tensor,
        labels: Tensor,
        logits: Tensor,
        attention: Tensor,
        size: Tensor,
        paste_noise: Tensor | None = None,
        cut_noise: Tensor | None = None,
    ) -> Mixed:
        """The mix for given sides [B]: tensors in, tensors out, the same shapes for every draw (torch.compile)."""
        rows, columns = attention.shape[1:]
        scores, inside = region_scores(attention, size)
        paste = choose_region(scores, inside, self.paste, paste_noise)
        cut = choose_region(scores, inside, self.cut, cut_noise)
        mixed = mix_regions(images, paste, cut, size, rows, columns)
        source = region_mask(paste, size, rows, columns)
        area = 1 - size.float() ** 2 / (rows * columns)
        own = area
        if self.label == "attention":
            stays = (attention * ~source).sum((1, 2))
            comes = (attention * region_mask(cut, size, rows, columns)).sum((1, 2)).flip(0)
            own = (area + stays / (stays + comes)).float() / 2
        return Mixed(mixed, labels, own, source.flatten(1), logits, area, paste, cut, size)

    def losses(
        self, mixed: Mixed, logits: Tensor, target_logits: Tensor | None = None, source_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms of a batch's loss by name; the region and consistency terms only where regions were mixed.

        logits, target_logits, source_logits: of the class token and of both regions' mean tokens, [B, K].
        """
        classes, regions, agreement = self.weights
        terms = {"cls": classes * soft_cross_entropy(logits, mixed.target)}
        if mixed.source is not None and regions:
            target = soft_cross_entropy(target_logits, mixed.labels)
            source = soft_cross_entropy(source_logits, mixed.labels.flip(0))
            terms["fine"] = regions * (target + source) / 2
        if mixed.source is not None and agreement:
            terms["con"] = agreement * consistency(logits, mixed.reference, mixed.area, self.mix_probabilities)
        return terms


def _generator(rng: random.Random) -> torch.Generator:
    """A CPU generator, so that a draw is the same on every device."""
    return torch.Generator().manual_seed(rng.getrandbits(63))
