"""Accuracy, PSNR and SSIM; a name says what is rounded and which window is used.

Images are float tensors [B, C, H, W] in [0, 1]; each image gives one number, float64 [B]. Averaging over a data
set is therefore the mean over images, not over pixels. SSIM has K1 0.01, K2 0.03, a dynamic range of 1, windows
that lie wholly inside the image, and is the mean over channels; for 8-bit SSIM, pass both images through `round8`.
"""

from common import distributed
from common.errors import InputError

import torch
from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor, topk: tuple[int, ...] = (1, 5)) -> dict[str, Tensor]:
    """How many labels are among the k best classes: {"top1": int64 count, ...} on the device of the logits.

    logits: [B, C]; labels: int64 [B]. A k beyond C counts, and is named, as C. A class that ties with the label's,
    or is NaN, counts as better: a collapsed network scores 0 whatever the order of classes.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(f"accuracy got logits {[*logits.shape]} and labels {[*labels.shape]}; give [B, C] and [B]")
    place = (~(logits < logits.gather(1, labels[:, None]))).sum(1)  # 1 for the best class
    return {f"top{min(k, logits.shape[1])}": (place <= min(k, logits.shape[1])).sum() for k in topk}


class Accuracy:
    """Top-k accuracy over many batches; counts stay on the device until `result`."""

    def __init__(self, topk: tuple[int, ...] = (1, 5)):
        self.topk, self.samples, self.hits = topk, 0, {}

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [B, C], labels int64 [B]."""
        hits = accuracy(logits, labels, self.topk)
        if self.hits and self.hits.keys() != hits.keys():
            raise InputError(f"accuracy got batches of {[*self.hits]} and of {[*hits]}; keep the classes the same")
        self.hits = {name: self.hits.get(name, 0) + count for name, count in hits.items()}
        self.samples += len(labels)

    def result(self) -> dict[str, float]:
        """Percentages over the samples of all ranks, {"top1": 71.3, ...}; every rank must ask."""
        if not self.samples:
            raise InputError("accuracy of no sample was asked for; the data set, or this rank's part, is empty")
        first = next(iter(self.hits.values()))
        counts = torch.stack([*self.hits.values(), torch.full_like(first, self.samples)])
        *hits, samples = distributed.sum_(counts).tolist()
        return {name: 100.0 * hit / samples for name, hit in zip(self.hits, hits)}


def _pair(a: Tensor, b: Tensor, window: int = 1) -> tuple[Tensor, Tensor]:
    """Both in float64, or an InputError when they are not two batches of images of one size."""
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"images of shape {[*a.shape]} and {[*b.shape]} cannot be compared; give two [B, C, H, W]")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise InputError(f"images of type {a.dtype} and {b.dtype} cannot be compared; give floats in [0, 1]")
    if min(a.shape[1:]) < 1 or min(a.shape[2:]) < window:
        raise InputError(f"images of shape {[*a.shape]} are smaller than the {window} x {window} window")
    return a.double(), b.double()


def round8(images: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to the nearest of 256 levels (halves to even): what an 8-bit file keeps."""
    return images.clamp(0, 1).mul(255).round().div(255)


def psnr_float(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB without clamping or rounding, range 1; identical images give inf.

    Equals skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1) on [H, W, C] arrays.
    """
    a, b = _pair(a, b)
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def psnr_uint8(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of both images clamped and rounded to 8 bits; identical images give inf.

    Equals skimage.metrics.peak_signal_noise_ratio(a, b) on uint8 [H, W, C] arrays.
    """
    a, b = _pair(a, b)
    return psnr_float(round8(a), round8(b))


def _windowed(images: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Weighted sums of neighbours along a dimension, without a border.

    Added up in place, as torch's convolution of float64 would first store every window.
    """
    length = images.shape[dim] - len(taps) + 1
    first, *others = taps.tolist()
    total = images.narrow(dim, 0, length) * first
    for shift, tap in enumerate(others, 1):
        total.add_(images.narrow(dim, shift, length), alpha=tap)
    return total


def _ssim(a: Tensor, b: Tensor, taps: Tensor, sample: bool) -> Tensor:
    """Mean structural similarity (Wang et al. 2004, equation 13) for a separable window with the given taps."""
    a, b = _pair(a, b, len(taps))
    batch = a.shape[0]
    a, b = a.flatten(0, 1)[:, None], b.flatten(0, 1)[:, None]
    moments = torch.cat([a, b, a * a, b * b, a * b])
    mean_a, mean_b, aa, bb, ab = _windowed(_windowed(moments, taps, 2), taps, 3).chunk(5)
    unbiased = len(taps) ** 2 / (len(taps) ** 2 - 1) if sample else 1.0
    cross = unbiased * (ab - mean_a * mean_b)
    spread = unbiased * (aa - mean_a.square() + bb - mean_b.square())
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cross + c2)
    similarity = similarity / ((mean_a.square() + mean_b.square() + c1) * (spread + c2))
    return similarity.view(batch, -1).mean(1)


def ssim_gaussian11(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of Wang et al. 2004: 11 x 11 Gaussian window of sigma 1.5, population covariance.

    Equals skimage.metrics.structural_similarity(a, b, data_range=1, channel_axis=2, gaussian_weights=True,
    use_sample_covariance=False), which leaves a border of 5 pixels out of its mean.
    """
    taps = torch.arange(-5, 6, dtype=torch.float64).div(1.5).square().mul(-0.5).exp()
    return _ssim(a, b, taps / taps.sum(), sample=False)


def ssim_uniform7(a: Tensor, b: Tensor) -> Tensor:
    """SSIM with scikit-image's defaults: 7 x 7 uniform window, sample covariance.

    Equals skimage.metrics.structural_similarity(a, b, data_range=1, channel_axis=2), which leaves a border of 3
    pixels out of its mean.
    """
    return _ssim(a, b, torch.full((7,), 1 / 7, dtype=torch.float64), sample=True)
