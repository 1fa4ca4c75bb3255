"""One training item: photograph and two masks to normalised regions, in the order of the release (section 5)."""

from typing import Literal, NamedTuple

from common.shadow.color import TO_XYZ, linearise
from common.shadow.triplets import dilate_diamond

import cv2
import numpy as np
import torch
from torch import Tensor

from hqss.method import normalise, test_region

LIMIT, SLOPE = np.float32(0.008856), np.float32(7.787)  # scikit-image's f
LEVELS = linearise(torch.arange(256, dtype=torch.float64) / 255).float().numpy()
MATRIX = np.array(TO_XYZ["d65"], dtype=np.float32)


class Crop(NamedTuple):
    """Place of the crop in the resized photograph, and whether it is mirrored."""

    row: int
    column: int
    mirror: bool


def lab_image(rgb: np.ndarray) -> np.ndarray:
    """Lab (D65) of uint8 or [0, 1] float32 RGB [H, W, 3], float32; scikit-image's rgb2lab to about 1e-4."""
    linear = LEVELS[rgb] if rgb.dtype == np.uint8 else linearise(torch.from_numpy(rgb)).numpy()
    xyz = torch.from_numpy(cv2.transform(linear, MATRIX))
    f = torch.where(xyz > float(LIMIT), xyz.clamp(min=float(LIMIT)).pow(1 / 3), xyz * float(SLOPE) + 16 / 116)
    to_lab = np.array([[0, 116, 0, -16], [500, -500, 0, 0], [0, 200, -200, 0]], dtype=np.float32)
    return cv2.transform(f.numpy(), to_lab)


def gaussian(size: int, out: int) -> np.ndarray:
    """Taps of the anti-aliasing filter of one axis, sigma (size/out - 1)/2, cut at 4 sigma; [1] where none is due."""
    sigma = max(0.0, (size / out - 1) / 2)
    radius = int(4 * sigma + 0.5)
    if not radius:
        return np.ones(1, np.float32)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (taps / taps.sum()).astype(np.float32)


def interpolation(size: int, out: int) -> np.ndarray:
    """Linear interpolation of one axis as a matrix [out, size], samples at (i + .5)·size/out - .5, mirrored ends."""
    place = (np.arange(out) + 0.5) * size / out - 0.5
    low = np.floor(place).astype(int)
    weights = np.zeros((out, size), np.float32)
    for offset, share in ((0, 1 - (place - low)), (1, place - low)):
        index = np.abs(low + offset)
        index = np.minimum(index, 2 * (size - 1) - index) if size > 1 else np.zeros_like(index)
        np.add.at(weights, (np.arange(out), index), share.astype(np.float32))
    return weights


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """scikit-image's resize of order 1 with anti-aliasing, float32 [H, W, C] with at most four channels."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    rows, columns = gaussian(height, size[0]), gaussian(width, size[1])
    if rows.size > 1 or columns.size > 1:
        image = cv2.sepFilter2D(image, cv2.CV_32F, columns, rows, borderType=cv2.BORDER_REFLECT_101)
    if size[0] <= height and size[1] <= width:
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    else:  # OpenCV repeats the edge where it enlarges
        flat = image.reshape(height, width, -1)
        resized = np.einsum("ih,hwc->iwc", interpolation(height, size[0]), flat, optimize=True)
        resized = np.einsum("jw,iwc->ijc", interpolation(width, size[1]), resized, optimize=True)
    return np.ascontiguousarray(resized.reshape(*size, *image.shape[2:]))


def dilate(mask: np.ndarray, shape: Literal["cross", "square"], size: int) -> np.ndarray:
    """The mask uint8 [H, W] of 0 and 1, dilated `size` times by a cross or once by a square of that side.

    The square has MATLAB's origin: from p - side/2 to p + side/2 - 1 for an even side.
    """
    if shape == "cross" or size < 1:
        return dilate_diamond(mask, size)
    kernel = np.ones((size, size), np.uint8)
    anchor = (size // 2, size // 2)
    return cv2.dilate(mask, kernel, anchor=anchor, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def prepare(
    rgb: np.ndarray,
    shadow_mask: np.ndarray,
    lit_mask: np.ndarray,
    dilated: np.ndarray,
    size: int,
    crop: int,
    place: Crop,
    background: Literal["training", "testing"] = "training",
) -> dict[str, Tensor]:
    """Everything a step needs of one photograph, float32: images [3, crop, crop], masks [1, crop, crop].

    rgb: uint8 or float32 [H, W, 3]; masks: uint8 [H, W] of 0 and 1. Lab of a black pixel is 0, so a region's Lab is the
    photograph's times the mask; and since resizing is linear, the rest is the whole minus the lit region.
    """
    lab = lab_image(rgb)
    masks = [mask.astype(np.float32)[..., None] for mask in (shadow_mask, lit_mask, dilated)]
    stacks = [np.concatenate(pair, 2) for pair in zip((lab, lab * masks[0], lab * masks[1]), masks)]
    cut = np.s_[place.row : place.row + crop, place.column : place.column + crop]
    parts = [resize(stack, (size, size))[cut] for stack in stacks]
    if place.mirror:
        parts = [part[:, ::-1] for part in parts]
    whole, shadow, lit = (torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))) for part in parts)
    item = {"shadow_mask": whole[3:], "lit_mask": shadow[3:], "dilated": lit[3:]}
    item = {name: (mask > 0.5).float() for name, mask in item.items()}
    item["image"] = normalise(whole[:3])
    if background == "testing":
        item["shadow"] = test_region(item["image"], item["shadow_mask"])
        item["lit"] = test_region(item["image"], item["lit_mask"])
        item["rest"] = test_region(item["image"], 1 - item["lit_mask"])
    else:
        item["shadow"], item["lit"] = normalise(shadow[:3]), normalise(lit[:3])
        item["rest"] = normalise(whole[:3] - lit[:3])
    return item
