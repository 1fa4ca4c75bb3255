"""Where an image is looked at, which region is cut, where it is pasted, and the mix itself (sections 2.2 to 2.4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def image_attention(attention: Tensor, prefix: int = 1) -> Tensor:
    """How much the image tokens look at each token: the column mean over heads and image queries, [B, N].

    attention: softmax output of a block [B, h, prefix + N, prefix + N]; the class token's row and column are left out
    without renormalising.
    """
    return attention[:, :, prefix:, prefix:].mean((1, 2))


def class_attention(attention: Tensor, prefix: int = 1) -> Tensor:
    """How much the class token looks at each token, the mean over heads: [B, N] (TransMix's score)."""
    return attention[:, :, 0, prefix:].mean(1)


def infer_grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of N tokens that lie on an image in proportion to its sides. Errors: ValueError if none do."""
    rows = round(math.sqrt(tokens * height / width))
    if rows < 1 or tokens % rows or rows * width != tokens // rows * height:
        raise ValueError(
            f"{tokens} attention scores fit no grid on an image of {height} x {width} pixels; state the grid's rows "
            "and columns, or leave out the class and register tokens"
        )
    return rows, tokens // rows


def region_sizes(side: int, low: float = 0.25, high: float = 0.75) -> list[int]:
    """The sides of a region in tokens, each drawn with equal probability: int(s·low) ... int(s·high), at least 1."""
    sizes = [r for r in range(int(side * low), int(side * high) + 1) if r > 0]
    if not sizes:
        raise ValueError(f"a grid of {side} tokens a side has no region between {low} and {high} of its side")
    return sizes


def region_scores(attention: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the score over the region with its top left corner at each token, and whether it lies inside the grid.

    attention: [B, R, C]; size: int64 [B], side of each image's region. Returns float64 [B, R, C] and bool [B, R, C].
    The integral image is exact for float32 scores of similar magnitude, so equal regions tie exactly. Errors:
    ValueError for a side that is not inside the grid (looked at on the CPU only, elsewhere it would wait).
    """
    _, rows, columns = attention.shape
    visible = size.device.type == "cpu" and not torch.compiler.is_compiling()
    if visible and not 1 <= int(size.min()) <= int(size.max()) <= min(rows, columns):
        raise ValueError(f"a region of {int(size.max())} tokens a side does not lie in a grid of {rows} x {columns}")
    exact = attention.float() if attention.device.type == "mps" else attention.double()
    integral = F.pad(exact.cumsum(1).cumsum(2), (1, 0, 1, 0))  # [B, R + 1, C + 1]
    row, column = (torch.arange(n, device=attention.device) for n in (rows, columns))
    bottom, right = row + size[:, None], column + size[:, None]  # [B, R], [B, C]
    band = integral.gather(1, bottom.clamp(max=rows)[:, :, None].expand(-1, -1, columns + 1)) - integral[:, :rows]
    sums = band.gather(2, right.clamp(max=columns)[:, None, :].expand(-1, rows, -1)) - band[:, :, :columns]
    return sums, (bottom <= rows)[:, :, None] & (right <= columns)[:, None, :]


def choose_region(scores: Tensor, inside: Tensor, how: str, noise: Tensor | None = None) -> Tensor:
    """Top left tokens int64 [B, 2] of the regions with the highest (`max`) or lowest (`min`) score, or `random` ones.

    Of equal scores the first in row-major order is taken. noise: [B, R, C], ranks the regions for `random`.
    """
    if how == "min":
        place = torch.where(inside, scores, torch.inf).flatten(1).argmin(1)
    else:
        place = torch.where(inside, noise if how == "random" else scores, -torch.inf).flatten(1).argmax(1)
    columns = scores.shape[2]
    return torch.stack([place // columns, place % columns], 1)


def region_mask(corner: Tensor, size: Tensor, rows: int, columns: int) -> Tensor:
    """bool [B, R, C]: the tokens of the regions with top left tokens [B, 2] and sides [B]."""
    row, column = (torch.arange(n, device=corner.device) for n in (rows, columns))
    top, left = corner[:, :1], corner[:, 1:]
    in_rows = (row >= top) & (row < top + size[:, None])
    in_columns = (column >= left) & (column < left + size[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def mix_regions(images: Tensor, paste: Tensor, cut: Tensor, size: Tensor, rows: int, columns: int) -> Tensor:
    """Images [B, ch, H, W] with their region at `paste` replaced by the partner's region at the partner's `cut`.

    paste, cut: [B, 2], each image's own regions; size: [B]. One gather of token-wide lines of pixels; values are copied
    bit for bit, memory layout is kept, the given images are not changed.
    """
    b, channels, height, width = images.shape
    down, across = height // rows, width // columns  # pixels of a token
    here = torch.arange(b, device=images.device)[:, None, None]
    row, column = (torch.arange(n, device=images.device) for n in (rows, columns))
    inside = region_mask(paste, size, rows, columns)
    shift = (cut.flip(0) - paste)[:, :, None, None]  # [B, 2, 1, 1]
    image = torch.where(inside, b - 1 - here, here)  # the image, row and column that each token comes from, [B, R, C]
    token_row = torch.where(inside, row[:, None] + shift[:, 0], row[:, None])
    token_column = torch.where(inside, column + shift[:, 1], column)
    line = token_row[:, :, None] * down + torch.arange(down, device=images.device)[:, None]  # [B, R, down, C]
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        index = (image[:, :, None] * height + line) * columns + token_column[:, :, None]
        pixels = images.permute(0, 2, 3, 1)
        lines = pixels.reshape(-1, across * channels).index_select(0, index.flatten())
        return lines.view(b, height, width, channels).permute(0, 3, 1, 2)
    channel = torch.arange(channels, device=images.device)[:, None, None, None]
    plane = (image[:, None, :, None] * channels + channel) * height  # [B, ch, R, 1, C]
    index = (plane + line[:, None]) * columns + token_column[:, None, :, None]
    return images.reshape(-1, across).index_select(0, index.flatten()).view(images.shape)
