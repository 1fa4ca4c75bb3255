"""Removing a shadow from a photograph of any size, and the release's own region error (sections 2 and 6)."""

from collections.abc import Callable, Sequence

from common.errors import InputError
from common.shadow.color import lab_to_rgb, rgb_to_lab

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqss.items import lab_image
from hqss.method import denormalise, normalise, remove, test_region, training_region
from hqss.models import MULTIPLE, SMALLEST


def padded(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Image and mask, mirrored at the right and bottom to multiples of 4."""
    height, width = image.shape[-2:]
    pad = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    return F.pad(image, pad, mode="reflect"), F.pad(mask, pad, mode="reflect")


@torch.inference_mode()
def restore(
    coarse: nn.Module, refine: nn.Module, rgb: np.ndarray, levels: np.ndarray, clear: bool = False
) -> np.ndarray:
    """The photograph uint8 [H, W, 3] without its shadow; pixels outside the mask are the photograph's own.

    levels: mask uint8 [H, W]. The networks see levels / 255 > 0.5, compositing takes every non-zero level; both as the
    release has it. Errors: InputError for a mask of another size, or a photograph that is too small.
    """
    check(rgb, levels)
    if not levels.any():
        return rgb.copy()
    parameter = next(coarse.parameters())
    to = {"device": parameter.device, "dtype": parameter.dtype}
    image = normalise(rgb_to_lab(torch.from_numpy(rgb.copy()).to(**to).permute(2, 0, 1)[None] / 255))
    mask = torch.from_numpy(levels > 127.5).to(**to)[None, None]
    big, big_mask = padded(image, mask)
    shadow, rest = test_region(big, big_mask), test_region(big, 1 - big_mask)
    _, result = remove(coarse, refine, shadow, rest, big_mask, clear)
    result = result[..., : rgb.shape[0], : rgb.shape[1]]
    bright = (lab_to_rgb(denormalise(result.float()))[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    return np.where(levels[..., None] > 0, bright, rgb)


def regions(rgb: np.ndarray, shadow: np.ndarray, lit: np.ndarray) -> dict[str, Tensor]:
    """What stage 1 sees of a photograph uint8 [H, W, 3] and mask levels [H, W] of its shadow and of a lit region.

    Images [1, 3, H, W] and masks [1, 1, H, W] as in training; the lit region loses what lies in the shadow. Up to 3
    pixels at the right and bottom are cut off, to multiples of 4.
    """
    height, width = (side - side % MULTIPLE for side in rgb.shape[:2])
    image = torch.from_numpy(rgb[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255
    masks = [torch.from_numpy(x[:height, :width] > 127.5).float()[None, None] for x in (shadow, lit)]
    masks[1] = masks[1] * (1 - masks[0])
    found = {"image": normalise(rgb_to_lab(image)), "shadow_mask": masks[0], "lit_mask": masks[1]}
    return found | {name: training_region(image, mask) for name, mask in zip(("shadow", "lit"), masks)}


def check(rgb: np.ndarray, levels: np.ndarray) -> None:
    """Errors: InputError for what the networks cannot take."""
    height, width = rgb.shape[:2]
    if levels.shape != (height, width):
        raise InputError(
            f"the mask is {levels.shape[1]}x{levels.shape[0]}, its photograph {width}x{height}; give one of its size"
        )
    if min(height, width) < SMALLEST:
        raise InputError(f"the photograph is {width}x{height}; the networks need {SMALLEST} pixels on each side")


def online_errors(
    results: Sequence[np.ndarray],
    frees: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    region: str,
    official: bool = False,
) -> tuple[float, float]:
    """(PP, PI) error of region s, ns or all by the release's test routine: D65 Lab at full size, 8-bit images.

    masks: every non-zero level is shadow. official: the release's non-shadow region, whose bitwise NOT of a 0/1 mask
    gives the weights 255 and 254, nearly the whole image (section 9). Images without the region are left out.
    """
    weigh: dict[str, Callable[[Tensor], Tensor]] = {
        "s": lambda mask: mask,
        "ns": lambda mask: 255 - mask if official else 1 - mask,
        "all": torch.ones_like,
    }
    sums, weights = [], []
    for result, free, levels in zip(results, frees, masks):
        labs = [rgb_to_lab(torch.from_numpy(x.copy()).double().permute(2, 0, 1) / 255) for x in (result, free)]
        weight = weigh[region](torch.from_numpy(levels != 0).double())
        sums.append(((labs[0] - labs[1]).abs().sum(0) * weight).sum())
        weights.append(weight.sum())
    total, area = torch.stack(sums), torch.stack(weights)
    there = area > 0
    return float(total.sum() / area.sum()), float((total[there] / area[there]).mean())


def threshold_mask(rgb: np.ndarray) -> np.ndarray:
    """A stopgap where no mask is given: pixels whose L lies a third of its deviation below the mean, smoothed.

    uint8 [H, W] of 0 and 255. Dark objects are taken for shadows.
    """
    lightness = lab_image(rgb)[..., 0]
    dark = (lightness <= lightness.mean() - lightness.std() / 3).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    return cv2.morphologyEx(cv2.morphologyEx(dark, cv2.MORPH_OPEN, disc), cv2.MORPH_CLOSE, disc) * np.uint8(255)
