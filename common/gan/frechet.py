"""The Fréchet distance between two sets of features, in float64."""

from typing import NamedTuple

from common.errors import InputError

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """mean [D], covariance [D, D] (unbiased) of so many samples; float64 on the CPU."""

    mean: Tensor
    covariance: Tensor
    samples: int


def statistics(features: Tensor) -> Statistics:
    """Mean and unbiased covariance of features [n, D]. Errors: InputError for fewer than two samples."""
    if len(features) < 2:
        raise InputError(f"{len(features)} images have no covariance; give at least two")
    features = features.detach().cpu().double()
    mean = features.mean(0)
    centred = features - mean
    return Statistics(mean, centred.T @ centred / (len(features) - 1), len(features))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½).

    The trace of the root is that of the symmetric (S1^½ S2 S1^½)^½, whose eigenvalues are real and at least 0 up to
    rounding, also where there are fewer samples than dimensions. Errors: InputError for different dimensions or
    features that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features of {len(a.mean)} and {len(b.mean)} dimensions come from different networks")
    if not all(bool(part.isfinite().all()) for part in (*a[:2], *b[:2])):
        raise InputError("the features are not finite; the images or the network's weights are damaged")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return float(distance)


def to_uint8(images: Tensor) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] as uint8 [B, H, W, C]: clipped and truncated, not rounded, as the field's code."""
    scaled = (images.permute(0, 2, 3, 1) + 1) / 2 * 255
    return scaled.clamp(0, 255).to(torch.uint8)
