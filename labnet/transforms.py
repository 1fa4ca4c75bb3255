"""The release's training transform, composed into one look-up, and the way between pictures and network (section 4).

All its steps pick pixels, so their composition does: one pass in place of five, bit for bit the same.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from common.errors import InputError
from common.randomness import bits
from common.shadow.color import lab8_to_rgb8, lab_to_rgb, rgb8_to_lab8, rgb_to_lab

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

SLOTS = (64, 65, 66, 67, 68, 69, 71, 70, 72)  # of size, four codes, angle, top, left, mirror
LARGEST = 2**14  # pixels: turned coordinates must fit 16 bits
MIRRORED, TURNED = 0, 1  # codes of a turn; 2 does nothing
NEUTRAL = 128  # level of a and b for grey
GREY = 0.5  # the same for RGB
FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


class Draws(NamedTuple):
    """One augmentation: size to resize to, four codes, degrees counter-clockwise, crop, mirror."""

    height: int
    width: int
    codes: tuple[int, ...]
    angle: int
    left: int
    top: int
    mirror: bool


def sized(shape: tuple[int, int], short: int) -> tuple[int, int]:
    """(height, width) with the short side given; the other is cut off to whole pixels as in the release."""
    height, width = shape
    if width >= height:
        return short, int(width * (short / height))
    return int(height * (short / width)), short


def draw(seed: int, epoch: int, index: Tensor, shapes: Sequence[tuple[int, int]], settings) -> list[Draws]:
    """The augmentation of every picture of a batch, by (seed, epoch, index) alone.

    index: int64 [B]; shapes: (height, width) of each picture; settings: config.Data.
    """
    drawn = []
    sizes = max(1, settings.upper - settings.load_size)
    for numbers, shape in zip(bits(seed, epoch, index[:, None], torch.tensor(SLOTS)).tolist(), shapes):
        below = lambda number, high: number * high >> 32  # as common.randomness.integers draws
        grown, *codes, angle, top, left, mirror = numbers
        height, width = sized(shape, settings.load_size + below(grown, sizes))
        codes = tuple(below(code, 3) for code in codes)
        draws = Draws(height, width, codes, below(angle, 40) - 20, 0, 0, below(mirror, 2) == 0)
        # The release's offsets end one before the last.
        room = (max(1, n - settings.crop + (settings.offsets == "all")) for n in final_size(draws, settings.turned))
        top, left = (below(number, n) for number, n in zip((top, left), room))
        drawn.append(draws._replace(left=left, top=top))
    return drawn


def final_size(draws: Draws, turned: str) -> tuple[int, int]:
    """(height, width) that the turned picture is resized to and that is cropped."""
    turns = sum(code == TURNED for code in draws.codes)
    swap = turned == "swapped" and turns % 2
    return (draws.width, draws.height) if swap else (draws.height, draws.width)


def pillow_rows(size: int, out: int) -> np.ndarray:
    """Source positions int32 [out] of Pillow's nearest resizing of an axis, its running sum in double precision."""
    scale = size / out
    return np.cumsum(np.concatenate([[scale * 0.5], np.full(out - 1, scale)])).astype(np.int32)


def rotation(shape: tuple[int, int], angle: int) -> tuple[int, ...]:
    """Pillow's rotation by degrees as 16.16 fixed-point numbers (xx, xy, x0, yx, yy, y0) for pixel centres."""
    height, width = shape
    radians = -math.radians(angle % 360)
    a, b = round(math.cos(radians), 15), round(math.sin(radians), 15)
    d, e = round(-math.sin(radians), 15), round(math.cos(radians), 15)
    x, y = width / 2, height / 2
    c, f = a * -x + b * -y + x, d * -x + e * -y + y
    fixed = lambda value: math.floor(value * 65536 + 0.5)
    return (*map(fixed, (a, b, c + a * 0.5 + b * 0.5)), *map(fixed, (d, e, f + d * 0.5 + e * 0.5)))


class Places(NamedTuple):
    """Where each pixel of a crop comes from: source (x, y) int16 [crop, crop, 2].

    outside: bool [crop, crop], the corners that rotation opens; there (x, y) lies outside of the picture as well.
    """

    source: np.ndarray
    outside: np.ndarray


def places(shape: tuple[int, int], draws: Draws, crop: int, turned: str = "stretched") -> Places:
    """The whole transform of a picture (height, width) as one look-up. Errors: InputError above LARGEST pixels a side.

    Backwards: mirror, crop and resizing look up rows and columns; rotation makes x and y of them in 16.16 fixed point,
    a part that depends on the row alone plus one that depends on the column alone; turns flip and exchange x and y.
    """
    if max(shape) > LARGEST:
        raise InputError(
            f"a picture of {shape[1]}x{shape[0]} cannot be augmented; shrink it to {LARGEST} pixels a side"
        )
    turns = sum(code == TURNED for code in draws.codes)
    height, width = shape[::-1] if turns % 2 else shape
    rows, columns = final_size(draws, turned)
    row = pillow_rows(height, rows)[draws.top : draws.top + crop].astype(np.int64)
    column = pillow_rows(width, columns)[draws.left : draws.left + crop].astype(np.int64)
    if draws.mirror:
        column = column[::-1]
    xx, xy, x0, yx, yy, y0 = rotation((height, width), draws.angle)
    x, y = (xy * row + x0, xx * column), (yy * row + y0, yx * column)
    for code in reversed(draws.codes):
        if code == MIRRORED:
            x = flipped(x, width)
        elif code == TURNED:  # row i of the turned picture is column W - 1 - i
            x, y, height, width = flipped(y, height), x, width, height
    x, y = (((by_row[:, None] + by_column) >> 16).astype(np.int32) for by_row, by_column in (x, y))
    # As unsigned numbers those below 0 are large.
    outside = (x.view(np.uint32) >= width) | (y.view(np.uint32) >= height)
    return Places(cv2.merge([x.astype(np.int16), y.astype(np.int16)]), outside)


def flipped(coordinate: tuple[np.ndarray, np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """size - 1 - floor(row + column) in the same 16.16 fixed point, for parts by row and by column."""
    by_row, by_column = coordinate
    return (size << 16) - 1 - by_row, -by_column


def look_up(picture: np.ndarray, found: Places, out: np.ndarray | None = None) -> np.ndarray:
    """The crop of a picture uint8 [H, W(, 3)], written into out where given; 0 where rotation opens a corner."""
    return cv2.remap(picture, found.source, None, cv2.INTER_NEAREST, out, cv2.BORDER_CONSTANT)


def step_by_step(picture: np.ndarray, draws: Draws, crop: int, turned: str, interpolation: str) -> np.ndarray:
    """The same transform as the release performs it, for interpolations that mix pixels; uint8 [crop, crop(, 3)]."""
    how = FILTERS[interpolation]
    image = Image.fromarray(picture)
    for code in draws.codes:
        if code != 2:
            image = image.transpose(Image.FLIP_LEFT_RIGHT if code == MIRRORED else Image.ROTATE_90)
    image = image.rotate(draws.angle, how)
    rows, columns = final_size(draws, turned)
    image = np.asarray(image.resize((columns, rows), how))
    cut = image[draws.top : draws.top + crop, draws.left : draws.left + crop]
    return cut[:, ::-1] if draws.mirror else cut


def resize(picture: np.ndarray, size: tuple[int, int] | None, interpolation: str = "nearest") -> np.ndarray:
    """A test picture uint8 [H, W(, 3)] at (width, height), by Pillow; None keeps its size."""
    if size is None or size == picture.shape[1::-1]:
        return picture
    return np.array(Image.fromarray(picture).resize(size, FILTERS[interpolation]))


# -- between pictures and network ------------------------------------------------------------------------------------


def to_network(rgb: np.ndarray, model) -> Tensor:
    """uint8 RGB [..., H, W, 3] -> float32 [..., 3, H, W], channels last, in the colour space of a config.Model."""
    if model.space == "lab" and model.lab == "8bit":
        flat = rgb8_to_lab8(rgb.reshape(-1, *rgb.shape[-2:])).reshape(rgb.shape)
        return torch.from_numpy(flat).movedim(-1, -3).float().div_(255)
    unit = torch.from_numpy(np.ascontiguousarray(rgb)).movedim(-1, -3).float() / 255
    if model.space == "rgb":
        return unit
    scale, shift = _affine(model, unit)
    lab = rgb_to_lab(unit) * scale + shift
    return lab.movedim(-3, -1).contiguous().movedim(-1, -3)  # pixel by pixel, as the other two lie in memory


def to_picture(values: Tensor, model, truncate: bool = False) -> np.ndarray:
    """The network's float [3, H, W] -> uint8 RGB [H, W, 3]; levels are clipped, then rounded or cut off."""
    values = values.detach().float().cpu()
    if model.space == "lab" and model.lab != "8bit":
        scale, shift = _affine(model, values)
        values = lab_to_rgb((values - shift) / scale)
    levels = (values * 255).clamp(0, 255)
    levels = (levels if truncate else levels.round()).byte().permute(1, 2, 0).contiguous().numpy()
    return lab8_to_rgb8(levels) if model.space == "lab" and model.lab == "8bit" else levels


def fill_(pictures: Tensor, outside: np.ndarray, values: Tensor) -> None:
    """Put values [3, 1, 1] where outside bool [B, H, W]; pictures: [B, 3, H, W], a view of contiguous [B, H, W, 3]."""
    width = pictures.shape[-1]
    tall = pictures.movedim(1, -1).view(-1, width, 3).numpy()  # one picture above the other
    cv2.copyTo(_plain(tall.shape, tuple(values.flatten().tolist())), outside.reshape(-1, width).view(np.uint8), tall)


@functools.lru_cache(4)
def _plain(shape: tuple[int, ...], colour: tuple[float, ...]) -> np.ndarray:
    return np.full(shape, colour, np.float32)


def neutral(model) -> Tensor:
    """[3, 1, 1]: what the corners that rotation opens hold when they are ignored."""
    grey = {"8bit": NEUTRAL / 255, "float": NEUTRAL / 255, "centred": 0.0}[model.lab]
    values = (0.0, grey, grey) if model.space == "lab" else (GREY,) * 3
    return torch.tensor(values).view(3, 1, 1)


def _affine(model, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of unquantised Lab: L / 100, (a, b) / 255 with 128 / 255 added unless centred."""
    middle = 0.0 if model.lab == "centred" else NEUTRAL / 255
    scale, shift = (1 / 100, 1 / 255, 1 / 255), (0.0, middle, middle)
    return tuple(like.new_tensor(values).view(3, 1, 1) for values in (scale, shift))
