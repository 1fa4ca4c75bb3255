"""Moire as a camera sees it on a screen: pairs of a clean picture and the photograph of a display that shows it.

    python synthesise.py photos/ out/ [--variants 4] [--height 512 --width 512] [--strength 0.5 1] [--ramp true]

writes out/moire/NAME.png, out/clear/NAME.png and out/pairs.jsonl (every drawn number, brightness ratio, alignment).
The pipeline follows Liu, Shu, Wu (arXiv 1804.03809), as LCDMoire does: sub-pixels, pose, lens, anti-alias filter, Bayer
sampling, noise, demosaicing, denoising, JPEG. Numeric ranges are this project's (section 5.1 of its specification).
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.config import Count, Fraction, NonNegative, Positive, Share
from common.errors import InputError
from common.images import list_images, read_image, write_image
from common.randomness import integers, uniform
from common.run import entry

import cv2
import numpy as np
import torch
from tqdm import tqdm

CELL = 3  # sub-pixels a side of a display pixel: a black row over two rows of R, G, B columns
LIT = 2 / 9  # share of a channel's light that the cell lets through
# Slots of the draws: seven numbers of the optics, eight corner offsets, the noise, and the crop of a photograph.
OPTICS, CORNERS, NOISE, CROP = 80, 88, 96, 98
DOWNSCALE = 4.0  # a photograph is shrunk by at most this factor before a crop is cut


@dataclass(frozen=True)
class Moire:
    """The camera and the display, as ranges that are drawn from for every picture."""

    scale: Positive = 2.0
    """camera pixels per display pixel in the middle; 2 is the period of the Bayer lattice"""
    off_min: NonNegative = 0.02
    """least distance of the drawn scale from `scale`; bands are 2 / distance output pixels wide (at scale 2)"""
    off_max: NonNegative = 0.1
    """largest distance of the drawn scale from `scale`"""
    jitter: Fraction = 0.04
    """largest shift of a corner of the display, share of the short side"""
    lens: NonNegative = 0.03
    """largest radial distortion k1, on r^2 in half diagonals"""
    blur_min: Positive = 0.6
    """least anti-alias blur, in 1.5 / scale sub-pixels"""
    blur_max: Positive = 1.0
    """largest anti-alias blur; more is weaker moire"""
    brightness: Share = 0.585
    """mean of the moire picture over that of the clean one; 0.585 was measured on LCDMoire, 1 leaves the tone alone"""
    noise: NonNegative = 0.01
    """standard deviation of the sensor's noise, of full scale"""
    jpeg_min: Count = 80
    """least JPEG quality"""
    jpeg_max: Count = 95
    """largest JPEG quality"""
    strength_min: Fraction = 1.0
    """least contrast of the display's sub-pixels; 0 is a display without any, hence no moire"""
    strength_max: Fraction = 1.0
    """largest contrast of the display's sub-pixels"""
    ramp: bool = False
    """whether the strength falls smoothly to 0 across the picture, so that some tiles are harder than others"""


class Pair(NamedTuple):
    """moire, clean: uint8 RGB [H, W, 3]; mask: float32 [H, W] strength of the moire; drawn: every drawn number."""

    moire: np.ndarray
    clean: np.ndarray
    mask: np.ndarray
    drawn: dict


def synthesise(picture: np.ndarray, settings: Moire, seed: int, index: int) -> Pair:
    """One pair from a clean picture uint8 RGB [H, W, 3]; depends on (picture, settings, seed, index) alone.

    Both sides have the picture's size and show the same geometry. Errors: InputError for settings or pictures that
    cannot be used.
    """
    check(settings)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < 16:
        raise InputError(f"moire is made from uint8 [H, W, 3] of at least 16 x 16, not {picture.dtype} {picture.shape}")
    height, width = picture.shape[:2]
    drawn = draw(settings, seed, index)
    camera = [2 * round(n * drawn["scale"] / 2) for n in (height, width)]
    columns, rows = display_position(height, width, camera, drawn)
    mask = strength_mask(height, width, drawn)
    raw = expose(picture, columns, rows, cv2.resize(mask, camera[::-1]), drawn) * (settings.brightness / LIT)
    raw = np.clip(raw + settings.noise * normal(seed, index, *camera), 0, 1)
    photograph = develop(np.rint(raw * 255).astype(np.uint8))
    clean = cv2.remap(picture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    photograph, clean = (cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in (photograph, clean))
    return Pair(through_jpeg(photograph, drawn["jpeg"]), clean, mask, drawn)


def check(settings: Moire) -> None:
    """Errors: InputError for a range that is upside down, or a scale that leaves no picture."""
    for low, high in (("off_min", "off_max"), ("blur_min", "blur_max"), ("strength_min", "strength_max")):
        if getattr(settings, low) > getattr(settings, high):
            raise InputError(f"{low} {getattr(settings, low)} is above {high} {getattr(settings, high)}; swap them")
    if not settings.jpeg_min <= settings.jpeg_max <= 100:
        raise InputError(f"JPEG qualities {settings.jpeg_min} to {settings.jpeg_max} must ascend within 1 to 100")
    if settings.scale - settings.off_max < 0.5 or settings.scale + settings.off_max > 6:
        raise InputError(f"scale {settings.scale} ± {settings.off_max} must stay within 0.5 and 6 camera pixels")
    if settings.jitter > 0.25 or settings.lens > 0.25:
        raise InputError(f"jitter {settings.jitter} and lens {settings.lens} fold the picture; give at most 0.25")


def draw(settings: Moire, seed: int, index: int) -> dict:
    """Every number of one pair's optics, by name."""
    u = uniform(seed, 0, index, torch.arange(OPTICS, OPTICS + 7)).tolist()
    corners = uniform(seed, 0, index, torch.arange(CORNERS, CORNERS + 8)).double().mul(2).sub(1)
    between = lambda low, high, share: low + (high - low) * share
    side = 2 * u[0] - 1  # which side of `scale`, and how far
    off = between(settings.off_min, settings.off_max, abs(side))
    scale = settings.scale + math.copysign(off, side)
    return {
        "scale": scale,
        "corners": corners.mul(settings.jitter).view(4, 2).tolist(),
        "lens": settings.lens * (2 * u[1] - 1),
        "blur": 1.5 / scale * between(settings.blur_min, settings.blur_max, u[2]),
        "jpeg": round(between(settings.jpeg_min, settings.jpeg_max, u[3])),
        "strength": between(settings.strength_min, settings.strength_max, u[4]),
        "ramp": {"angle": 2 * math.pi * u[5], "middle": 0.6 * u[6] - 0.3} if settings.ramp else None,
    }


def display_position(height: int, width: int, camera: list[int], drawn: dict) -> tuple[np.ndarray, np.ndarray]:
    """Where each camera pixel looks: column and row on the display, float32 [camera height, camera width].

    Camera corners go to the display's corners plus their jitter (homography), after the lens has moved them radially.
    """
    rows, columns = ((np.arange(n) + 0.5) / n * 2 - 1 for n in camera)  # -1 to 1
    columns, rows = np.meshgrid(columns, rows)
    aspect = np.array([width, height]) / math.hypot(width, height)  # half diagonal 1
    bend = 1 + drawn["lens"] * ((columns * aspect[0]) ** 2 + (rows * aspect[1]) ** 2)
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    shifted = square + np.array(drawn["corners"]) * 2 * min(height, width) / np.array([width, height])
    pose = cv2.getPerspectiveTransform(square, shifted.astype(np.float32))
    x, y, z = np.einsum("ij,jhw->ihw", pose, np.stack([columns * bend, rows * bend, np.ones_like(rows)]))
    return tuple(((p / z + 1) / 2 * n - 0.5).astype(np.float32) for p, n in ((x, width), (y, height)))


def strength_mask(height: int, width: int, drawn: dict) -> np.ndarray:
    """Strength of the moire [H, W]: constant, or a smooth ramp from 0 along the drawn angle."""
    if drawn["ramp"] is None:
        return np.full((height, width), drawn["strength"], np.float32)
    rows, columns = ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1 for n in (height, width))
    angle, middle = drawn["ramp"]["angle"], drawn["ramp"]["middle"]
    along = math.cos(angle) * columns[None] + math.sin(angle) * rows[:, None]
    share = np.clip((along - middle) / 1.2 + 0.5, 0, 1)
    return (drawn["strength"] * share * share * (3 - 2 * share)).astype(np.float32)


def expose(picture: np.ndarray, columns: np.ndarray, rows: np.ndarray, mask: np.ndarray, drawn: dict) -> np.ndarray:
    """Light on each photosite of an R G / G B sensor, float32 in [0, 2/9] on average, blurred by the anti-alias filter.

    Where the mask is 0 a channel's light comes from its whole pixel, as much as the sub-pixels would give.
    """
    height, width = picture.shape[:2]
    raw = np.empty(columns.shape, np.float32)
    look = lambda light, at, factor: cv2.remap(
        light,
        columns[at] * factor + (factor - 1) / 2,  # a display pixel's middle on the finer grid
        rows[at] * factor + (factor - 1) / 2,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    for channel, sites in enumerate((((0, 0),), ((0, 1), (1, 0)), ((1, 1),))):
        light = picture[:, :, channel].astype(np.float32) / 255
        lit = np.zeros((CELL * height, CELL * width), np.float32)
        lit[1::CELL, channel::CELL] = light
        lit[2::CELL, channel::CELL] = light
        lit = cv2.GaussianBlur(lit, (0, 0), drawn["blur"], borderType=cv2.BORDER_REFLECT)
        for down, right in sites:
            at = (slice(down, None, 2), slice(right, None, 2))
            raw[at] = mask[at] * look(lit, at, CELL) + (1 - mask[at]) * LIT * look(light, at, 1)
    return raw


def normal(seed: int, index: int, height: int, width: int) -> np.ndarray:
    """Standard normal noise [height, width] of the pair, from the repository's stateless randomness."""
    place = torch.arange(height * width)
    one, two = (uniform(seed, index + 1, place, NOISE + i) for i in (0, 1))
    return ((-2 * torch.log1p(-one)).sqrt() * torch.cos(2 * math.pi * two)).view(height, width).numpy()


def develop(raw: np.ndarray) -> np.ndarray:
    """Bilinear demosaicing of an R G / G B mosaic and a light bilateral filter: uint8 [H, W] -> [H, W, 3] RGB."""
    return cv2.bilateralFilter(cv2.cvtColor(raw, cv2.COLOR_BayerRGGB2RGB), 5, 10, 2)


def through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """The picture after JPEG compression, uint8 RGB."""
    _, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1].copy()


def crop(picture: np.ndarray, height: int, width: int, seed: int, index: int) -> np.ndarray:
    """A random cut of height x width from a photograph that was first shrunk by a random factor, at most DOWNSCALE.

    Errors: InputError for a photograph smaller than the cut.
    """
    room = min(picture.shape[0] / height, picture.shape[1] / width)
    if room < 1:
        raise InputError(f"a photograph of {picture.shape[1]} x {picture.shape[0]} has no cut of {width} x {height}")
    factor = min(room, DOWNSCALE) ** float(uniform(seed, 0, index, CROP))
    size = [max(n, round(full / factor)) for n, full in zip((height, width), picture.shape)]
    shrunk = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
    place = zip(size, (height, width), (CROP + 1, CROP + 2))
    top, left = (int(integers(seed, 0, index, slot, full - n + 1)) for full, n, slot in place)
    return shrunk[top : top + height, left : left + width].copy()


def brightness_ratio(pair: Pair) -> float:
    """Mean of the moire picture over the mean of the clean one."""
    return float(pair.moire.mean() / max(pair.clean.mean(), 1e-6))


def misalignment(pair: Pair) -> float:
    """Shift in pixels between the edges of the two sides, by phase correlation of their luma gradients."""
    luma = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) for p in (pair.moire, pair.clean))
    edges = [np.hypot(cv2.Sobel(p, cv2.CV_32F, 1, 0), cv2.Sobel(p, cv2.CV_32F, 0, 1)) for p in luma]
    (right, down), _ = cv2.phaseCorrelate(*edges, cv2.createHanningWindow(edges[0].shape[::-1], cv2.CV_32F))
    return math.hypot(right, down)


def pairs_of(
    photographs: dict[str, Callable[[], np.ndarray]],
    variants: int,
    size: tuple[int, int] | None,
    settings: Moire,
    seed: int,
    first: int = 0,
) -> Iterator[tuple[str, Pair]]:
    """(name, Pair) for every photograph and variant, names `photo_00`; photographs maps a name to its reader.

    size: of the random cuts; None takes whole photographs. Pair number i, counted from `first`, depends on
    (photograph, settings, seed, i) alone.
    """
    for number, (name, read) in enumerate(photographs.items()):
        picture = read()
        for variant in range(variants):
            index = first + number * variants + variant
            try:
                cut = crop(picture, *size, seed, index) if size else picture
            except InputError as error:
                raise InputError(f"{name}: {error}; leave it out, or ask for smaller pictures") from error
            yield f"{name}_{variant:02d}", synthesise(cut, settings, seed, index)


def options() -> argparse.ArgumentParser:
    """The command line: what is read and written, and one option for each field of Moire."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of clean photographs")
    parser.add_argument("out", type=Path, help="folder for the pairs; must be empty or new")
    parser.add_argument("--variants", type=int, default=1, help="pairs of each photograph (default: 1)")
    parser.add_argument("--height", type=int, default=512, help="pixels (default: 512)")
    parser.add_argument("--width", type=int, default=512, help="pixels (default: 512)")
    parser.add_argument("--seed", type=int, default=1111, help="default: 1111")
    known = Moire()
    for name in ("scale", "jitter", "lens", "brightness", "noise"):
        parser.add_argument(f"--{name}", type=float, default=getattr(known, name))
    for name, kind in (("off", float), ("blur", float), ("strength", float), ("jpeg", int)):
        default = [getattr(known, f"{name}_min"), getattr(known, f"{name}_max")]
        parser.add_argument(f"--{name}", type=kind, nargs=2, metavar=("MIN", "MAX"), default=default)
    parser.add_argument("--ramp", choices=("true", "false"), default="false", help="let strength vary (default: false)")
    return parser


def main(argv: list[str]) -> Path:
    """Write pairs of every photograph of a folder; returns the folder."""
    given = options().parse_args(argv)
    if min(given.variants, given.height - 15, given.width - 15) < 1:
        raise InputError(f"{given.variants} variants of {given.height} x {given.width}: give at least 1, and 16 x 16")
    ranges = {name: getattr(given, name) for name in ("off", "blur", "strength", "jpeg")}
    ends = {f"{name}_{end}": value for name, pair in ranges.items() for end, value in zip(("min", "max"), pair)}
    single = {name: getattr(given, name) for name in ("scale", "jitter", "lens", "brightness", "noise")}
    settings = Moire(**single, **ends, ramp=given.ramp == "true")
    check(settings)
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise InputError(f"{given.out} is there already and not an empty folder; give a new one")
    paths = list_images(given.photos)
    photographs = {path.stem: lambda path=path: read_image(path) for path in paths}
    if len(photographs) < len(paths):
        raise InputError(f"{given.photos} holds photographs of the same name but of other suffixes; rename them")
    size = (given.height, given.width)
    pairs = pairs_of(photographs, given.variants, size, settings, given.seed)
    for name, pair in tqdm(pairs, total=len(photographs) * given.variants, desc="pairs", disable=None):
        write_image(given.out / "moire" / f"{name}.png", pair.moire)
        write_image(given.out / "clear" / f"{name}.png", pair.clean)
        line = {"name": name, "seed": given.seed, **pair.drawn}
        line |= {"brightness_ratio": brightness_ratio(pair), "misalignment": misalignment(pair)}
        with open(given.out / "pairs.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(f"{len(photographs) * given.variants} pairs in {given.out}")
    return given.out


if __name__ == "__main__":
    entry(main)
