"""The losses of section 2.6; images in [0, 1], sums over all elements divided by the batch size alone."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["asl", "charbonnier", "halve", "l1", "l2", "multi_scale", "sobel_l1"]

Kernels = tuple[tuple[tuple[int, int, int], ...], ...]
DIAGONALS = (((2, 1, 0), (1, 0, -1), (0, -1, -2)), ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)))
AXES = (((1, 0, -1), (2, 0, -2), (1, 0, -1)), ((1, 2, 1), (0, 0, 0), (-1, -2, -1)))


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Σ|x - y| / B of images [B, 3, H, W]."""
    return (output - target).abs().sum() / len(output)


def l2(output: Tensor, target: Tensor) -> Tensor:
    """Σ(x - y)² / B; in the release, unused."""
    return (output - target).square().sum() / len(output)


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Σ sqrt((x - y)² + 1e-6) / B; in the release, unused."""
    return ((output - target).square() + 1e-6).sqrt().sum() / len(output)


def edges(images: Tensor, kernels: Kernels) -> Tensor:
    """|k_a * z| + |k_b * z| with one kernel on all channels, summed over them: [B, H - 2, W - 2]."""
    plane = images.sum(1, keepdim=True)  # the channels share a kernel, so their sum is filtered once
    return F.conv2d(plane, _weight(kernels, plane.dtype, plane.device)).abs().sum(1)


@functools.lru_cache(maxsize=16)
def _weight(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Both kernels as [2, 1, 3, 3], copied to the device once."""
    return torch.tensor(kernels, dtype=dtype, device=device)[:, None]


def asl(output: Tensor, target: Tensor) -> Tensor:
    """Σ|E(x) - E(y)| / B with E the sum of both diagonal Sobel responses: the advanced Sobel loss of MBCNN."""
    return (edges(output, DIAGONALS) - edges(target, DIAGONALS)).abs().sum() / len(output)


def sobel_l1(output: Tensor, target: Tensor) -> Tensor:
    """Σ|E(x) - E(y)| with horizontal and vertical Sobel kernels, not divided by B; in the release, unused."""
    return (edges(output, AXES) - edges(target, AXES)).abs().sum()


def halve(images: Tensor) -> Tensor:
    """Bilinear half size without antialiasing, which is the mean of each 2 x 2 block."""
    return F.avg_pool2d(images, 2)


def multi_scale(outputs: Sequence[Tensor], target: Tensor, weight: float = 0.25) -> dict[str, Tensor]:
    """{"l1", "asl"}, each summed over the scales with equal weights and asl times its weight; their sum is the loss.

    outputs: coarse first, the last of the target's size, each twice as large as the one before. weight 0: no ASL.
    """
    terms = {"l1": target.new_zeros(())}
    if weight:
        terms["asl"] = target.new_zeros(())
    for number, output in enumerate(reversed(outputs)):
        target = halve(target) if number else target
        terms["l1"] = terms["l1"] + l1(output.float(), target)
        if weight:
            terms["asl"] = terms["asl"] + weight * asl(output.float(), target)
    return terms
