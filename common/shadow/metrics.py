"""Region metrics of shadow removal, as the field's MATLAB script computes them; all in float64.

Images are uint8 [H, W, 3], masks uint8 [H, W] where every non-zero value is shadow. What papers call RMSE is the sum
over channels of absolute Lab differences, averaged over pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

from common.errors import InputError
from common.shadow.color import White, rgb_to_lab

import numpy as np
import torch
from torch import Tensor

REGIONS = ("all", "ns", "s")


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


def resize_weights(size: int, out: int) -> Tensor:
    """One axis of MATLAB's imresize as a matrix [out, size]: bicubic, anti-aliased when shrinking, mirrored borders."""
    ratio = out / size
    shrink = min(ratio, 1.0)
    support = 4 / shrink
    centre = (torch.arange(out, dtype=torch.float64) + 1) / ratio + 0.5 * (1 - 1 / ratio)  # counted from 1
    taps = (centre - support / 2).floor()[:, None] + torch.arange(int(np.ceil(support)) + 2)
    weights = shrink * _cubic(shrink * (centre[:, None] - taps))
    weights = weights / weights.sum(1, keepdim=True)
    index = (taps.long() - 1) % (2 * size)
    index = torch.where(index < size, index, 2 * size - 1 - index)
    return torch.zeros(out, size, dtype=torch.float64).scatter_add_(1, index, weights)


def imresize(image: Tensor, size: tuple[int, int], levels: bool = False) -> Tensor:
    """MATLAB's imresize of [..., H, W] in float64; neither rounded nor clipped.

    levels: the values are 8-bit levels, rounded and clipped after each axis. The axis that shrinks more goes first.
    """
    height, width = image.shape[-2:]
    axes = sorted([(size[0] / height, -2), (size[1] / width, -1)])
    image = image.double()
    for _, axis in axes:
        weights = resize_weights(image.shape[axis], size[axis])
        image = weights @ image if axis == -2 else image @ weights.T
        if levels:
            image = (image + 0.5).floor().clamp(0, 255)
    return image


def _blur(n: int, sigma: float = 1.5, radius: int = 5) -> Tensor:
    """A Gaussian of 11 taps along an axis of n samples with repeated borders, as a matrix [n, n]."""
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
    index = (torch.arange(n)[:, None] + offsets).clamp(0, n - 1)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, index, (taps / taps.sum()).expand(n, -1))


def ssim(one: Tensor, two: Tensor, volume: bool = True) -> Tensor:
    """Mean structural similarity of images [3, H, W] in [0, 1].

    volume: MATLAB's default for an H x W x 3 array, a Gaussian over all three axes; otherwise the mean of three 2-D
    similarities.
    """
    rows, columns = _blur(one.shape[1]), _blur(one.shape[2])
    channels = _blur(one.shape[0]) if volume else torch.eye(len(one), dtype=torch.float64)
    blur = lambda x: torch.einsum("cd,dhw->chw", channels, rows @ x @ columns.T)
    c1, c2 = 0.01**2, 0.03**2
    mean1, mean2 = blur(one), blur(two)
    var1, var2 = blur(one * one) - mean1**2, blur(two * two) - mean2**2
    covariance = blur(one * two) - mean1 * mean2
    above = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    return (above / ((mean1**2 + mean2**2 + c1) * (var1 + var2 + c2))).mean()


class ImageScore(NamedTuple):
    """One image: by region (all, ns, s) PSNR, SSIM, the sum of errors and the number of pixels, float64 [3] each.

    PSNR and SSIM of a region are those of images that are 0 outside it, over all pixels: so the script has it, and a
    region's value lies above its true one.
    """

    psnr: Tensor
    ssim: Tensor
    error_sum: Tensor
    pixels: Tensor
    ssim_per_channel: Tensor

    @property
    def error(self) -> Tensor:
        """Mean error by region; NaN for a region without pixels."""
        return self.error_sum / self.pixels


def score(
    result: np.ndarray,
    free: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int] | None = (256, 256),
    white: White = "d50",
) -> ImageScore:
    """Compare a result with the shadow-free image. size: (H, W) that all three are resized to first, None for as is.

    Errors: InputError for shapes that differ.
    """
    if result.shape != free.shape or mask.shape != free.shape[:2]:
        shapes = f"{[*result.shape]}, {[*free.shape]} and {[*mask.shape]}"
        raise InputError(f"result, ground truth and mask have the shapes {shapes}; they must be of one size")
    images = [torch.from_numpy(np.array(x)).permute(2, 0, 1).double() / 255 for x in (result, free)]
    levels = torch.from_numpy(np.array(mask)).double()
    if size:
        images = [imresize(image, size) for image in images]
        levels = imresize(levels, size, levels=True)
    shadow = levels != 0
    regions = torch.stack([torch.ones_like(shadow), ~shadow, shadow]).double()
    labs = [rgb_to_lab(image.clamp(0, 1), white) for image in images]
    difference = (labs[0] - labs[1]).abs().sum(0)
    one, two = images
    masked = [(one * region, two * region) for region in regions]
    return ImageScore(
        psnr=torch.stack([-10 * (a - b).square().mean().log10() for a, b in masked]),
        ssim=torch.stack([ssim(a, b) for a, b in masked]),
        error_sum=(difference * regions).sum((1, 2)),
        pixels=regions.sum((1, 2)),
        ssim_per_channel=ssim(one, two, volume=False),
    )


def summary(scores: Sequence[ImageScore]) -> dict[str, float]:
    """psnr_, ssim_, error_ (mean over images) and error_pp_ (over pixels) for all, ns, s; skipped_ns, skipped_s.

    An image without pixels in a region is left out of that region's numbers and counted as skipped; a region that no
    image has is NaN. Errors: InputError for no image.
    """
    if not scores:
        raise InputError("there is no image to score")
    columns = {name: torch.stack([getattr(s, name) for s in scores]) for name in ("psnr", "ssim", "error")}
    sums, pixels = (torch.stack([getattr(s, name) for s in scores]) for name in ("error_sum", "pixels"))
    found = {}
    for number, region in enumerate(REGIONS):
        there = pixels[:, number] > 0
        for name, values in columns.items():
            found[f"{name}_{region}"] = float(values[there, number].mean())
        # The script's "all" is the mean over images in both forms.
        over_pixels = sums[:, number].sum() / pixels[:, number].sum()
        found[f"error_pp_{region}"] = found["error_all"] if region == "all" else float(over_pixels)
        if region != "all":
            found[f"skipped_{region}"] = int((~there).sum())
    found["ssim_per_channel"] = float(torch.stack([s.ssim_per_channel for s in scores]).mean())
    return found
