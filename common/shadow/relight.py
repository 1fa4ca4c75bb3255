"""The classical baseline: brighten the shadow so that its border looks like the lit pixels around it."""

from common.shadow.synthesis import B_BOUNDS, W_BOUNDS, Affine, relight
from common.shadow.triplets import dilate

import cv2
import numpy as np
import torch

NEAR, FAR = 7, 31  # squares (pixels) whose erosions and dilations bound the two bands; NEAR leaves out the penumbra


def fit_border(shadow: np.ndarray, mask: np.ndarray) -> Affine | None:
    """w and b by which the band inside the mask's border gets mean and spread of the band outside, by channel.

    shadow: uint8 [H, W, 3], mask: uint8 [H, W], non-zero in the shadow. No ground truth is used. None where one of the
    bands is empty.
    """
    inside = (mask > 0).astype(np.uint8)
    erode = lambda size: cv2.erode(inside, np.ones((size, size), np.uint8))
    dark_band, lit_band = erode(NEAR) > erode(FAR), dilate(inside, FAR) > dilate(inside, NEAR)
    if not dark_band.any() or not lit_band.any():
        return None
    dark, lit = (torch.from_numpy(shadow[band]).double() / 255 for band in (dark_band, lit_band))
    spread = lit.std(0, correction=0) / dark.std(0, correction=0).clamp(min=1e-3)
    w = spread.clamp(*W_BOUNDS)
    return Affine(w, (lit.mean(0) - w * dark.mean(0)).clamp(*B_BOUNDS))


def relit(shadow: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with its shadow relit by `fit_border`, uint8 [H, W, 3]; as it was where that has no fit."""
    fitted = fit_border(shadow, mask)
    if fitted is None:
        return shadow.copy()
    image = torch.from_numpy(np.array(shadow)).permute(2, 0, 1).double() / 255
    bright = (relight(image, *fitted).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return np.where(mask[..., None] > 0, bright, shadow)
