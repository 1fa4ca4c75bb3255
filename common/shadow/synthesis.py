"""The affine shadow model: a lit pixel is w·dark + b, and a penumbra mixes both (SID's relations).

Images are float [..., 3, H, W] in [0, 1], mattes [..., 1, H, W] with 1 for lit, 0 for umbra; w, b:
[3] or [..., 3, 1, 1].

    python -m common.shadow.synthesis PHOTOGRAPHS OUT [--per_photo 4] [--seed 0] [--linear] [--part train]

writes a shadow, a mask and a lit picture of each synthetic shadow into OUT/{part}_A, {part}_B and {part}_C.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.images import list_images, read_image, write_image
from common.randomness import uniform
from common.shadow.color import encode, linearise

import cv2
import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

SLOT = 90  # first of the slots that a synthetic shadow draws from
W_BOUNDS, B_BOUNDS = (1.0, 10.0), (-0.1, 0.5)


def _channels(values: Tensor) -> Tensor:
    return values.view(3, 1, 1) if values.ndim == 1 else values


def darken(free: Tensor, w: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    """(free - b) / (w·factor), what a lit image looks like in the umbra; not clipped."""
    return (free - _channels(b)) / (_channels(w) * factor)


def relight(dark: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """w·dark + b; not clipped."""
    return _channels(w) * dark + _channels(b)


def blend(free: Tensor, dark: Tensor, matte: Tensor) -> Tensor:
    """The shadow image: matte·free + (1 - matte)·dark, clipped to [0, 1]."""
    return (matte * free + (1 - matte) * dark).clamp(0, 1)


def recover_matte(free: Tensor, shadow: Tensor, relit: Tensor) -> Tensor:
    """(relit - free + 1/255) / (relit - shadow + 1/255) by channel; inaccurate where it is dark."""
    return (relit - free + 1 / 255) / (relit - shadow + 1 / 255)


class Affine(NamedTuple):
    """Relighting of one photograph: w and b by channel, [3]."""

    w: Tensor
    b: Tensor


def fit_affine(shadow: np.ndarray, free: np.ndarray, mask: np.ndarray) -> Affine | None:
    """Least squares of free = w·shadow + b inside the eroded mask, w in [1, 10], b in [-0.1, 0.5].

    uint8 images [H, W, 3] and mask [H, W]. None where SID's rules drop the pair: too small after two erosions by 5x5,
    mean shadow of at most 5, mean free of 230 or more, or means that differ by 10 levels or less.
    """
    inside = cv2.erode((mask > 0).astype(np.uint8), np.ones((5, 5), np.uint8), iterations=2) > 0
    if inside.sum() < 10:
        return None
    dark, lit = shadow[inside].astype(np.float64), free[inside].astype(np.float64)
    if dark.mean() <= 5 or lit.mean() >= 230 or abs(lit.mean() - dark.mean()) <= 10:
        return None
    fitted = []
    for channel in range(3):
        matrix = np.stack([dark[:, channel] / 255, np.ones(len(dark))], 1)
        fitted.append(lsq_linear(matrix, lit[:, channel] / 255, bounds=tuple(zip(W_BOUNDS, B_BOUNDS))).x)
    w, b = torch.from_numpy(np.array(fitted)).T
    return Affine(w, b)


class Drawn(NamedTuple):
    """A synthetic shadow: matte [1, H, W] and relighting w, b [3], float32."""

    matte: Tensor
    w: Tensor
    b: Tensor

    @property
    def mask(self) -> Tensor:
        """bool [1, H, W]: where the shadow is more than half."""
        return 1 - self.matte > 0.5

    def apply(self, free: Tensor, linear: bool = False) -> Tensor:
        """Cast it on a lit image [3, H, W]; linear: attenuate linear light instead of sRGB values."""
        image = linearise(free) if linear else free
        shadow = blend(image, darken(image, self.w, self.b).clamp(0, 1), self.matte)
        return encode(shadow).clamp(0, 1) if linear else shadow

    def cast(self, free: np.ndarray, linear: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The shadow image uint8 [H, W, 3] and the mask uint8 [H, W] of 0 and 255, of a lit uint8 image."""
        image = torch.from_numpy(np.array(free)).permute(2, 0, 1).float() / 255
        shadow = (self.apply(image, linear) * 255).round().byte().permute(1, 2, 0)
        return shadow.contiguous().numpy(), self.mask[0].byte().mul(255).numpy()


def draw(
    seed: int, index: int, size: tuple[int, int], epoch: int = 0, cover: tuple[float, float] = (0.05, 0.5)
) -> Drawn:
    """A random shadow on an image of (H, W): polygon, ellipse or blob, with a penumbra of varying width.

    Attenuation k ~ U(1.6, 3.2), w = k·(1 + U(0, .15), 1, 1 - U(0, .15)), b ~ U(0, .04): red loses most, since what
    lights a shadow is the blue sky. All of it depends on (seed, epoch, index) and the size alone.
    """
    draws = uniform(seed, epoch, index, torch.arange(SLOT, SLOT + 40)).double().numpy()
    mask = _shape(draws, size, cover)
    k = 1.6 + 1.6 * draws[0]
    w = torch.tensor([k * (1 + 0.15 * draws[1]), k, k * (1 - 0.15 * draws[2])], dtype=torch.float32)
    b = torch.full((3,), 0.04 * draws[3], dtype=torch.float32)
    # From one side of the picture to the other the blur grows from sharp (near what casts it) to soft.
    low, high = (0.5 + 2.0 * np.sort(draws[4:6])).tolist()
    sharp, soft = (cv2.GaussianBlur(mask, (0, 0), sigma) for sigma in (low, high))
    height, width = size
    angle = 2 * np.pi * draws[6]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    along = np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)
    share = np.clip(along + 0.5, 0, 1).astype(np.float32)
    umbra = np.clip((1 - share) * sharp + share * soft, 0, 1)
    return Drawn(torch.from_numpy(1 - umbra)[None], w, b)


def _shape(draws: np.ndarray, size: tuple[int, int], cover: tuple[float, float]) -> np.ndarray:
    """float32 [H, W] of 0 and 1 that covers a share of the picture drawn from `cover`."""
    height, width = size
    wanted = (cover[0] + (cover[1] - cover[0]) * draws[7]) * height * width
    kind, radii = int(draws[8] * 3), 0.5 + draws[10:34]
    count = (24, 7, 24)[kind]  # ellipse, polygon, blob
    angles = 2 * np.pi * (np.arange(count) + (0.8 * draws[34] if kind == 1 else 0)) / count
    if kind == 0:
        radii = np.ones(count)
    elif kind == 2:  # neighbours are averaged around the circle
        radii = sum(np.roll(radii, shift) for shift in range(-2, 3)) / 5
    radii = radii[:count]
    stretch, turn = 0.5 + draws[35], np.pi * draws[36]
    points = np.stack([radii * np.cos(angles) * stretch, radii * np.sin(angles) / stretch], 1)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centre = np.array([width * (0.3 + 0.4 * draws[37]), height * (0.3 + 0.4 * draws[38])])
    low, high = 0.0, 4.0 * max(height, width)
    for _ in range(24):  # the scale at which it covers what is wanted, by bisection
        scale = (low + high) / 2
        mask = np.zeros(size, np.uint8)
        cv2.fillPoly(mask, [np.rint(centre + scale * points).astype(np.int32)], 1)
        low, high = (scale, high) if mask.sum() < wanted else (low, scale)
    return mask.astype(np.float32)


def main(argv: list[str]) -> None:
    """Write synthetic triplets of a folder of lit photographs. Errors: InputError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of lit photographs")
    parser.add_argument("out", type=Path, help="folder of the triplets")
    parser.add_argument("--per_photo", type=int, default=4, help="shadows cast on each photograph")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shadows")
    parser.add_argument("--linear", action="store_true", help="attenuate linear light instead of sRGB values")
    parser.add_argument("--part", default="train", choices=("train", "test"), help="side of the set")
    given = parser.parse_args(argv)
    paths = list_images(given.photographs)
    for index, path in enumerate(path for path in paths for _ in range(given.per_photo)):
        free = read_image(path)
        shadow, mask = draw(given.seed, index, free.shape[:2]).cast(free, given.linear)
        name = f"{path.stem}_{index % given.per_photo:02d}.png"
        for folder, picture in (("A", shadow), ("B", mask), ("C", free)):
            write_image(given.out / f"{given.part}_{folder}" / name, picture)
    print(f"{len(paths) * given.per_photo} triplets in {given.out}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
