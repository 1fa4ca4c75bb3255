"""sRGB and CIE Lab, as each protocol of the field has it.

Float images are channels first: [..., 3, H, W], RGB in [0, 1], L in 0..100. Functions are differentiable torch code, on
any device and dtype.
"""

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

White = Literal["d50", "d65"]

# Rows give X, Y, Z divided by the white point from linear RGB.
TO_XYZ = {
    "d50": (
        (0.4360747 / 0.9642, 0.3850649 / 0.9642, 0.1430804 / 0.9642),
        (0.2225045, 0.7168786, 0.0606169),
        (0.0139322 / 0.8249, 0.0971045 / 0.8249, 0.7141733 / 0.8249),
    ),
    "d65": (
        (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
        (0.212671, 0.715160, 0.072169),
        (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
    ),
}
# Below the threshold the cube root is continued by a line: CIE's exact constants, and scikit-image's rounded ones.
CUBE_ROOT = {"d50": (216 / 24389, 841 / 108), "d65": (0.008856, 7.787)}


def linearise(rgb: Tensor) -> Tensor:
    """sRGB values to linear light."""
    return torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def encode(linear: Tensor) -> Tensor:
    """Linear light to sRGB values."""
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, linear * 12.92)


def rgb_to_lab(rgb: Tensor, white: White = "d65") -> Tensor:
    """RGB in [0, 1] to Lab, both [..., 3, H, W]; d65 is scikit-image's, d50 that of MATLAB's ICC transform."""
    matrix = rgb.new_tensor(TO_XYZ[white])
    xyz = torch.einsum("ij,...jhw->...ihw", matrix, linearise(rgb))
    threshold, slope = CUBE_ROOT[white]
    f = torch.where(xyz > threshold, xyz.clamp(min=threshold) ** (1 / 3), slope * xyz + 16 / 116)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def lab_to_rgb(lab: Tensor, white: White = "d65") -> Tensor:
    """Lab to RGB, clipped to [0, 1]; the inverse of `rgb_to_lab` inside the gamut."""
    luminance, a, b = lab.unbind(-3)
    y = (luminance + 16) / 116
    f = torch.stack([y + a / 500, y, (y - b / 200).clamp(min=0)], -3)
    threshold, slope = CUBE_ROOT[white]
    knee = threshold ** (1 / 3)
    xyz = torch.where(f > knee, f.clamp(min=knee) ** 3, (f - 16 / 116) / slope)
    matrix = torch.linalg.inv(lab.new_tensor(TO_XYZ[white]).double()).to(lab.dtype)
    return encode(torch.einsum("ij,...jhw->...ihw", matrix, xyz)).clamp(0, 1)


def rgb8_to_lab8(rgb: np.ndarray) -> np.ndarray:
    """OpenCV's 8-bit Lab (L·255/100, a + 128, b + 128, rounded): uint8 [H, W, 3] to the same."""
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2LAB)


def lab8_to_rgb8(lab: np.ndarray) -> np.ndarray:
    """The way back; extreme colours come back up to 21 levels off."""
    return cv2.cvtColor(np.ascontiguousarray(lab), cv2.COLOR_LAB2RGB)
