"""The release's training transform, composed into one index map, and the way between pictures and network (section 4).

All its steps pick pixels, so their composition does: one table look-up in place of five passes, bit for bit the same.
"""

import math
from typing import NamedTuple

from common.randomness import integers
from common.shadow.color import lab8_to_rgb8, lab_to_rgb, rgb8_to_lab8, rgb_to_lab

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE, TURNS, ANGLE, LEFT, TOP, MIRROR = 64, (65, 66, 67, 68), 69, 70, 71, 72  # slots
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


def draw(seed: int, epoch: int, index: int, shape: tuple[int, int], settings) -> Draws:
    """The augmentation of a picture (height, width) by (seed, epoch, index); settings: config.Data."""
    numbers = lambda slots, highs: integers(seed, epoch, index, torch.tensor(slots), torch.tensor(highs)).tolist()
    sizes = max(1, settings.upper - settings.load_size)
    grown, *codes, angle, mirror = numbers((SIZE, *TURNS, ANGLE, MIRROR), (sizes, 3, 3, 3, 3, 40, 2))
    height, width = sized(shape, settings.load_size + grown)
    draws = Draws(height, width, tuple(codes), angle - 20, 0, 0, mirror == 0)
    # The release's offsets end one before the last.
    room = [max(1, n - settings.crop + (settings.offsets == "all")) for n in final_size(draws, settings.turned)]
    top, left = numbers((TOP, LEFT), room)
    return draws._replace(left=left, top=top)


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


def index_map(shape: tuple[int, int], draws: Draws, crop: int, turned: str = "stretched") -> np.ndarray:
    """Flat source positions int32 [crop, crop] of a picture (height, width); -1 where rotation opens a corner.

    Backwards: mirror, crop and resizing are one look-up an axis; rotation gives rows and columns of the turned
    picture; the turns are again one look-up an axis.
    """
    # What row r and column c of the turned picture add to the flat position.
    down, across = np.arange(shape[0], dtype=np.int32) * shape[1], np.arange(shape[1], dtype=np.int32)
    for code in draws.codes:
        if code == MIRRORED:
            across = across[::-1]
        elif code == TURNED:  # row i of the turned picture is column W - 1 - i
            down, across = across[::-1], down
    canvas = len(down), len(across)
    rows, columns = final_size(draws, turned)
    row = pillow_rows(canvas[0], rows)[draws.top : draws.top + crop].astype(np.int64)[:, None]
    column = pillow_rows(canvas[1], columns)[draws.left : draws.left + crop].astype(np.int64)[None]
    if draws.mirror:
        column = column[:, ::-1]
    if draws.angle % 360 == 0:
        return down[row] + across[column]
    xx, xy, x0, yx, yy, y0 = rotation(canvas, draws.angle)
    x = (xx * column + (xy * row + x0)) >> 16
    y = (yx * column + (yy * row + y0)) >> 16
    inside = (x >= 0) & (x < canvas[1]) & (y >= 0) & (y < canvas[0])
    return np.where(inside, down[y.clip(0, canvas[0] - 1)] + across[x.clip(0, canvas[1] - 1)], -1)


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
    """uint8 RGB [..., H, W, 3] -> float32 [..., 3, H, W] in the colour space of a config.Model."""
    if model.space == "lab" and model.lab == "8bit":
        flat = rgb8_to_lab8(rgb.reshape(-1, *rgb.shape[-2:])).reshape(rgb.shape)
        return torch.from_numpy(flat).movedim(-1, -3).float() / 255
    unit = torch.from_numpy(np.ascontiguousarray(rgb)).movedim(-1, -3).float() / 255
    if model.space == "rgb":
        return unit
    scale, shift = _affine(model, unit)
    return rgb_to_lab(unit) * scale + shift


def to_picture(values: Tensor, model, truncate: bool = False) -> np.ndarray:
    """The network's float [3, H, W] -> uint8 RGB [H, W, 3]; levels are clipped, then rounded or cut off."""
    values = values.detach().float().cpu()
    if model.space == "lab" and model.lab != "8bit":
        scale, shift = _affine(model, values)
        values = lab_to_rgb((values - shift) / scale)
    levels = (values * 255).clamp(0, 255)
    levels = (levels if truncate else levels.round()).byte().permute(1, 2, 0).contiguous().numpy()
    return lab8_to_rgb8(levels) if model.space == "lab" and model.lab == "8bit" else levels


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
