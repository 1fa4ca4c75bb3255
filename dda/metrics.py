"""The paper's protocol on 8-bit images: how a result becomes 8 bits, CIEDE2000, and all scores of a pair."""

import math
from typing import Literal

from common.errors import InputError
from common.metrics import psnr_float, ssim_gaussian11, ssim_uniform7

import torch
from torch import Tensor

# sRGB's primaries under D65 (IEC 61966-2-1) and the white point of its 2-degree observer.
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)


Rounding = Literal["floor", "round"]


def to_uint8(images: Tensor, rounding: Rounding = "floor") -> Tensor:
    """uint8 of float images in [0, 1], clamped; the official code cuts the fraction off (`floor`).

    With either rule every v / 255 of an 8-bit v comes back as v.
    """
    scaled = images.clamp(0, 1).mul(255)
    return (scaled.round() if rounding == "round" else scaled).to(torch.uint8)


def psnr_joint(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of two uint8 batches over all their pixels at once, which is what the official training log holds."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape:
        raise InputError(f"psnr_joint got {a.dtype} {[*a.shape]} and {b.dtype} {[*b.shape]}; give uint8 of one shape")
    return 10 * (255**2 / (a.double() - b.double()).square().mean()).log10()


def psnr_fitted(image: Tensor, clean: Tensor) -> Tensor:
    """PSNR in dB of an image after the one gain and offset that bring it closest to the clean one, float64 [B].

    image, clean: uint8 [B, 3, H, W]. The least-squares fit over all pixels and channels, clamped to 0..255 and not
    rounded: what any tone curve of a straight line could reach, hence what a restoration must beat.
    """
    x, y = (t.flatten(1).double() for t in (image, clean))
    centred = x - x.mean(1, keepdim=True)
    gain = (centred * y).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True).clamp(min=1e-9)
    fitted = (gain * centred + y.mean(1, keepdim=True)).clamp(0, 255)
    return 10 * (255**2 / (fitted - y).square().mean(1).clamp(min=1e-9)).log10()


def lab(pixels: Tensor) -> Tensor:
    """CIELAB of uint8 sRGB [..., 3], float64: D65, 2-degree observer."""
    value = pixels.double() / 255
    linear = torch.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    xyz = linear @ linear.new_tensor(RGB_TO_XYZ).T / linear.new_tensor(WHITE)
    f = torch.where(xyz > 0.008856, xyz.pow(1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def ciede2000(a: Tensor, b: Tensor) -> Tensor:
    """Mean colour difference of uint8 sRGB images [B, H, W, 3], float64 [B] (Sharma, Wu, Dalal 2005).

    Equals the mean of skimage.color.deltaE_ciede2000 over rgb2lab of both.
    """
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or a.ndim != 4 or a.shape[3] != 3:
        raise InputError(
            f"ciede2000 got {a.dtype} {[*a.shape]} and {b.dtype} {[*b.shape]}; give two uint8 [B, H, W, 3] of one shape"
        )
    return delta_e2000(lab(a), lab(b)).flatten(1).mean(1)


def delta_e2000(one: Tensor, two: Tensor) -> Tensor:
    """CIEDE2000 difference of Lab colours [..., 3] -> [...]."""
    (l1, a1, b1), (l2, a2, b2) = one.unbind(-1), two.unbind(-1)
    mean_chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1 + 0.5 * (1 - _saturation(mean_chroma))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.atan2(b, a).remainder(2 * math.pi) for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0  # the hue of a grey means nothing
    turn = h2 - h1
    wrapped = torch.where(turn > math.pi, turn - 2 * math.pi, torch.where(turn < -math.pi, turn + 2 * math.pi, turn))
    d_hue = 2 * (c1 * c2).sqrt() * torch.where(grey, 0, wrapped / 2).sin()
    total = h1 + h2
    far = turn.abs() > math.pi
    middle = torch.where(far, torch.where(total < 2 * math.pi, total + 2 * math.pi, total - 2 * math.pi), total) / 2
    hue = torch.where(grey, total, middle)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * (hue - math.pi / 6).cos() + 0.24 * (2 * hue).cos()
    t = t + 0.32 * (3 * hue + math.pi / 30).cos() - 0.20 * (4 * hue - math.radians(63)).cos()
    off = (lightness - 50).square()
    s_l, s_c, s_h = 1 + 0.015 * off / (20 + off).sqrt(), 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = 60 * torch.exp(-((hue.rad2deg() - 275) / 25).square())
    r_t = -2 * _saturation(chroma) * rotation.deg2rad().sin()
    light, colour, tint = (l2 - l1) / s_l, (c2 - c1) / s_c, d_hue / s_h
    return (light.square() + colour.square() + tint.square() + r_t * colour * tint).clamp(min=0).sqrt()


def _saturation(chroma: Tensor) -> Tensor:
    return (chroma**7 / (chroma**7 + 25.0**7)).sqrt()


def scores(result: Tensor, clean: Tensor, rounding: Rounding = "floor") -> dict[str, Tensor]:
    """Every number of the protocol (section 6), float64 [B] each.

    result: float [B, 3, H, W]; clean: uint8 [B, 3, H, W]. psnr_float takes the result as it is, the others its 8 bits.
    """
    if clean.dtype != torch.uint8:
        raise InputError(f"scores got clean images of type {clean.dtype}; give uint8")
    kept, target = to_uint8(result, rounding), clean.double() / 255
    quantised = kept.double() / 255
    return {
        "psnr_uint8": psnr_float(quantised, target),
        "psnr_float": psnr_float(result, target),
        "ssim_uniform7": ssim_uniform7(quantised, target),
        "ssim_gaussian11": ssim_gaussian11(quantised, target),
        "ciede2000": ciede2000(kept.permute(0, 2, 3, 1), clean.permute(0, 2, 3, 1)),
    }
