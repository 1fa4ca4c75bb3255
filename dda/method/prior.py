"""The moiré prior Ψ = colourfulness · high-frequency energy of a tile, in torch and batched (section 2.1).

Tiles are RGB uint8 [N, 3, H, W] and a score is one float32 a tile; a larger one means more moiré.
"""

import functools
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Mode", "colourfulness", "frequency", "grey", "high_pass", "high_pass_mask", "moire_prior", "resize_linear"]

Mode = Literal["paper", "official_train", "official_test"]
SIDE = 256  # colour is measured on a tile of 256 x 256
D0 = 5.0  # cut-off of the high-pass in DFT bins
TILE_WIDTH = 512  # the width at which D0 was chosen


def moire_prior(
    tiles: Tensor, mode: Mode = "paper", relative_d0: bool = False, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Ψ of each tile, float32 [N].

    tiles: uint8 [N, 3, H, W], RGB. mode: exact arithmetic; the release's offline class split, whose sums wrap at 256;
    or its test path, which takes RGB for BGR and negates every value modulo 256 before that (section 9, rows 1 and
    2). relative_d0: let the cut-off grow with the tile instead of keeping 5 bins. dtype: of the Fourier transform;
    float32 halves its time and moves a score by about a millionth.
    """
    if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[1] != 3 or min(tiles.shape[2:]) < 2:
        raise ValueError(f"the prior needs uint8 [N, 3, H, W] of at least 2 x 2, got {tiles.dtype} {[*tiles.shape]}")
    if mode == "official_test":
        tiles = (0 - tiles).flip(1)  # uint8 wraps: 255·v mod 256; what was red is taken for blue
    height, width = tiles.shape[2:]
    cut_off = D0 * min(height, width) / TILE_WIDTH if relative_d0 else D0
    return colourfulness(tiles, wrap=mode != "paper") * frequency(tiles, cut_off, dtype)


# -- colourfulness ---------------------------------------------------------------------------------------------------


def colourfulness(tiles: Tensor, wrap: bool = False) -> Tensor:
    """sqrt(σ²_rg + σ²_yb) + 0.3·sqrt(μ²_rg + μ²_yb) of each tile at 256 x 256, float32 [N].

    wrap: R - G and R + G modulo 256, as the release computes them in uint8.
    """
    red, green, blue = resize_linear(tiles, (SIDE, SIDE)).to(torch.int32).unbind(1)
    rg, sum_ = red - green, red + green
    if wrap:
        rg, sum_ = rg & 255, sum_ & 255
    twice_yb = sum_ - 2 * blue
    # Whole numbers add up exactly in float64, whatever the order of the sum.
    (rg_mean, rg_var), (yb_mean, yb_var) = (_moments(plane) for plane in (rg, twice_yb))
    spread = (rg_var + yb_var / 4).sqrt()
    return (spread + 0.3 * (rg_mean.square() + yb_mean.square() / 4).sqrt()).float()


def _moments(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of integer planes [N, H, W], exact in float64 [N]."""
    plane = plane.flatten(1).to(torch.float64)
    count = plane.shape[1]
    total, squares = plane.sum(1), plane.square().sum(1)
    return total / count, (squares - total.square() / count) / (count - 1)


@functools.lru_cache(maxsize=64)
def _axis(source: int, size: int, vertical: bool, device: torch.device) -> tuple:
    """The two source positions and integer weights (of 2048) of every output position along one axis."""
    scale = torch.tensor(source / size, dtype=torch.float64)
    position = ((torch.arange(size, dtype=torch.float64) + 0.5) * scale - 0.5).float()
    start = position.floor()
    fraction = position - start
    start = start.long()
    if not vertical:  # rows keep their weights at the border, columns do not
        fraction = torch.where((start < 0) | (start >= source - 1), 0.0, fraction)
        start = start.clamp(0, source - 1)
    weights = [(part * 2048).round().int() for part in (1 - fraction, fraction)]
    positions = [_evenly(p.clamp(0, source - 1), device) for p in (start, start + 1)]
    return *positions, *(weight.to(device) for weight in weights)


def _evenly(positions: Tensor, device: torch.device) -> slice | Tensor:
    """The positions as a slice where they are evenly spaced, as in halving; a strided view costs less than a gather."""
    steps = positions.diff().unique().tolist()
    if len(steps) == 1 and steps[0] > 0:
        return slice(int(positions[0]), int(positions[-1]) + 1, steps[0])
    return positions.to(device)


def resize_linear(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, C, H, W] resized to (height, width) with OpenCV's fixed-point bilinear rule, bit for bit.

    Half-pixel centres, no antialiasing; weights of 11 bits (section 2.1).
    """
    height, width = images.shape[2:]
    if (height, width) == tuple(size):
        return images
    left, right, a0, a1 = _axis(width, size[1], False, images.device)
    top, bottom, b0, b1 = _axis(height, size[0], True, images.device)
    wide = images.to(torch.int32)
    sums = (wide[..., left] * a0 + wide[..., right] * a1) >> 4
    upper, lower = (sums[..., top, :] * b0[:, None]) >> 16, (sums[..., bottom, :] * b1[:, None]) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


# -- frequency -------------------------------------------------------------------------------------------------------


def grey(tiles: Tensor) -> Tensor:
    """OpenCV's integer grey value of RGB, uint8 [N, H, W]."""
    red, green, blue = tiles.to(torch.int32).unbind(1)
    return ((9798 * red + 19235 * green + 3735 * blue + 16384) >> 15).to(torch.uint8)


def high_pass_mask(height: int, width: int, cut_off: float = D0, device: torch.device | str = "cpu") -> Tensor:
    """1 - exp(-D² / 2·D0²) around the centre (H/2, W/2) of a shifted spectrum, float32 [H, W]."""
    rows = (torch.arange(height, dtype=torch.float64, device=device) - height / 2).square()
    columns = (torch.arange(width, dtype=torch.float64, device=device) - width / 2).square()
    return (1 - torch.exp(-(rows[:, None] + columns) / (2 * cut_off**2))).float()


@functools.lru_cache(maxsize=16)
def _half_mask(height: int, width: int, cut_off: float, device: torch.device) -> tuple[Tensor, bool]:
    """The mask in the order of fft2, and whether only its half that `rfft2` keeps is needed.

    For odd sizes the mask's centre lies between two bins, so that the filtered picture is not real.
    """
    mask = torch.fft.ifftshift(high_pass_mask(height, width, cut_off, device))
    symmetric = height % 2 == 0 and width % 2 == 0
    return (mask[:, : width // 2 + 1].contiguous() if symmetric else mask), symmetric


def high_pass(planes: Tensor, cut_off: float = D0, dtype: torch.dtype = torch.float64) -> Tensor:
    """|ifft2(fft2(g) · H)| rounded half to even and saturated at 255, [N, H, W] of whole numbers.

    planes: uint8 [N, H, W]. dtype: of the transform; in float32 about one value in ten thousand rounds the other way.
    """
    mask, symmetric = _half_mask(*planes.shape[1:], cut_off, planes.device)
    planes = planes.to(dtype)
    if symmetric:
        filtered = torch.fft.irfft2(torch.fft.rfft2(planes) * mask, s=planes.shape[1:]).abs_()
    else:
        filtered = torch.fft.ifft2(torch.fft.fft2(planes) * mask).abs()
    return filtered.round_().clamp_(max=255)


def frequency(tiles: Tensor, cut_off: float = D0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Mean high-frequency magnitude of each tile's grey picture, float32 [N] on the scale of 0 to 255."""
    return high_pass(grey(tiles), cut_off, dtype).mean((1, 2), dtype=torch.float64).float()
