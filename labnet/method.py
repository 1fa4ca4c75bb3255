"""LAB-Net (arXiv:2208.13039): its layers, its local spatial attention, its losses and its schedule.

Pictures are Lab / 255, float [B, 3, H, W]; masks are float [B, 1, H, W] of 0 and 1 with 1 for shadow. Section numbers
are those of README.md.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SLOPE = 0.2  # of every LeakyReLU
BOX = 11  # side of the square that a mask is dilated by: the ring is up to 5 pixels wide
LAPLACIAN = ((0.0, -1.0, 0.0), (-1.0, 4.0, -1.0), (0.0, -1.0, 0.0))
SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
LEVEL_DIVISORS = (1.0, 2.6, 4.8, 3.7, 5.6, 0.15)  # the picture itself, then five levels of VGG-16
CHUNK = 2**24  # entries of the attention matrix that the chunked form holds at once: 64 MiB in fp32

EcaKernel = Literal["learned", "laplacian-learned", "laplacian-fixed", "none"]


# -- masks -----------------------------------------------------------------------------------------------------------


def binarise(levels: Tensor, threshold: float) -> Tensor:
    """1 where a soft mask in [0, 1] lies above the threshold, strictly (section 2)."""
    return (levels > threshold).to(levels.dtype)


def dilate(mask: Tensor) -> Tensor:
    """The mask grown by a square of 11 pixels; what lies outside the picture counts as lit (section 2)."""
    return F.max_pool2d(mask, BOX, 1, BOX // 2)


class Regions(NamedTuple):
    """Where attention reads and writes on a grid of P pixels, as flat positions padded to one length for a batch.

    shadow: int64 [B, S], the queries, padded with P. ring: int64 [B, N], the lit pixels that they look at, padded
    with 0. valid: bool [B, N], None where no ring is padded. lit: bool [B], whether there is a ring, None if always.
    """

    shadow: Tensor
    ring: Tensor
    valid: Tensor | None = None
    lit: Tensor | None = None


def regions(mask: Tensor, dilated: Tensor, grid: tuple[int, int]) -> Regions:
    """Shadow and ring of full-size masks on the attention's grid (nearest, as the official code samples them).

    Counts pixels, so it is called where masks lie on the CPU: once a batch in the data path, never inside a step.
    """
    sampled = (m if m.shape[-2:] == grid else F.interpolate(m, grid, mode="nearest") for m in (mask, dilated))
    small, grown = (m.flatten(1) > 0.5 for m in sampled)
    pixels = small.shape[1]
    shadow = _positions(small, pixels)
    around = grown & ~small
    count = around.sum(1)
    ring = _positions(around, 0)
    # An image without ring looks at its pixel 0, for finite numbers; what it finds there is discarded.
    valid = torch.arange(ring.shape[1], device=ring.device) < count.clamp(min=1)[:, None]
    lit = count > 0
    return Regions(shadow, ring, None if valid.all() else valid, None if lit.all() else lit)


def _positions(chosen: Tensor, padding: int) -> Tensor:
    """Positions of the true entries of bool [B, P], int64 [B, most], at least one column."""
    rows = [row.nonzero()[:, 0] for row in chosen]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    return padded if padded.shape[1] else padded.new_full((len(chosen), 1), padding)


# -- layers ----------------------------------------------------------------------------------------------------------


class ConvLayer(nn.Module):
    """Reflection padding d(k - 1)/2, convolution with bias, LeakyReLU 0.2 unless linear (section 2)."""

    def __init__(self, cin: int, cout: int, kernel: int, dilation: int = 1, linear: bool = False):
        super().__init__()
        self.pad, self.linear = dilation * (kernel - 1) // 2, linear
        self.conv2d = nn.Conv2d(cin, cout, kernel, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """[B, cin, H, W] -> [B, cout, H, W]; H and W above the padding."""
        if self.pad:
            x = F.pad(x, (self.pad,) * 4, mode="reflect")
        y = self.conv2d(x)
        return y if self.linear else F.leaky_relu_(y, SLOPE)


class ECA(nn.Module):
    """Enhanced channel attention: channels are weighed by the spread of their high frequencies (section 2).

    kernel: `learned` starts at random as all weights do (what the release trains), `laplacian-learned` starts from the
    Laplacian, `laplacian-fixed` keeps it.
    """

    def __init__(self, channels: int, kernel: EcaKernel = "learned"):
        super().__init__()
        self.linear1 = nn.Linear(channels, max(1, channels // 8))
        self.linear2 = nn.Linear(max(1, channels // 8), channels)
        self.convop = nn.Conv2d(channels, channels, 3, groups=channels, bias=False)
        self.kernel = kernel
        self.convop.weight.requires_grad_(kernel != "laplacian-fixed")
        self.to_laplacian()

    @torch.no_grad()
    def to_laplacian(self) -> None:
        """Make every kernel the high-pass filter."""
        self.convop.weight.copy_(self.convop.weight.new_tensor(LAPLACIAN).expand_as(self.convop.weight))

    def spread(self, x: Tensor) -> Tensor:
        """Unbiased standard deviation over space of the filtered channels, [B, C], in single precision at least."""
        filtered = self.convop(x)
        return filtered.to(torch.promote_types(filtered.dtype, torch.float32)).std((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same, each channel scaled by a number in (0, 1)."""
        weight = self.linear2(F.leaky_relu(self.linear1(self.spread(x)), SLOPE)).sigmoid()
        return x * weight[:, :, None, None]


def attend(query: Tensor, value: Tensor, valid: Tensor | None = None, chunked: bool = False) -> Tensor:
    """softmax(query valueᵀ / sqrt(K)) value: [B, S, K] and [B, N, K] -> [B, S, K]; values are keys too (section 2).

    valid: bool [B, N], keys that count. Fused attention never holds the S x N matrix. chunked: explicit blocks of
    queries of at most CHUNK entries, computed again for backward: memory is CHUNK numbers a few times over, whatever
    S and N.
    """
    if not chunked:
        allowed = None if valid is None else valid[:, None, None, :]
        return F.scaled_dot_product_attention(query[:, None], value[:, None], value[:, None], attn_mask=allowed)[:, 0]
    rows = max(1, CHUNK // (len(value) * value.shape[1]))
    parts = [checkpoint(_attend_rows, part, value, valid, use_reentrant=False) for part in query.split(rows, 1)]
    return torch.cat(parts, 1)


def _attend_rows(query: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
    scores = query @ value.mT / math.sqrt(query.shape[-1])
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None], -math.inf)
    exact = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=exact).to(value.dtype) @ value


class LSA(nn.Module):
    """Local spatial attention: features in the shadow become mixtures of features of the ring around it (section 2)."""

    def __init__(self, channels: int, chunked: bool = False):
        super().__init__()
        wide = 3 * channels // 2
        self.chunked = chunked
        self.conv_s = ConvLayer(channels, wide, 3)
        self.conv_ns = ConvLayer(channels, wide, 3)
        self.convfinal = ConvLayer(channels + wide, channels, 1)

    def forward(self, x: Tensor, where: Regions, grid: tuple[int, int]) -> Tensor:
        """[B, C, H, W] -> the same; where: shadow and ring on the grid (h, w) to which maps are reduced."""
        size = x.shape[-2:]
        reduced = x if size == grid else F.interpolate(x, grid, mode="nearest")
        value = self.rewrite(self.conv_s(reduced), self.conv_ns(reduced), where)
        if size != grid:
            value = F.interpolate(value, size, mode="nearest")
        return self.convfinal(torch.cat([x, value], 1))

    def rewrite(self, query: Tensor, value: Tensor, where: Regions) -> Tensor:
        """The value map [B, K, h, w] with its shadow replaced: by 0 where there is no ring; elsewhere as it was."""
        batch, wide, height, width = value.shape
        pixels = height * width
        flat_query, flat_value = (m.permute(0, 2, 3, 1).reshape(batch, pixels, wide) for m in (query, value))
        found = attend(
            _rows(flat_query, where.shadow.clamp(max=pixels - 1)),
            _rows(flat_value, where.ring),
            where.valid,
            self.chunked,
        ).to(value.dtype)
        if where.lit is not None:
            found = torch.where(where.lit[:, None, None], found, 0)
        # One row more than there are pixels takes what padded queries have found.
        index = where.shadow[..., None].expand(-1, -1, wide)
        written = F.pad(flat_value, (0, 0, 0, 1)).scatter(1, index, found)[:, :pixels]
        return written.reshape(batch, height, width, wide).permute(0, 3, 1, 2)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows [B, n, K] of a table [B, P, K] at int64 positions [B, n]."""
    batch, pixels, wide = table.shape
    offset = torch.arange(batch, device=index.device)[:, None] * pixels
    return table.reshape(-1, wide).index_select(0, (index + offset).flatten()).view(batch, -1, wide)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Kaiming normal (fan-in, gain sqrt 2) for every weight, 0 for biases, and the Laplacian where it is asked for.

    The release filters with kernels that this overwrites (section 9); `learned` does the same.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, a=0)
            if module.bias is not None:
                module.bias.zero_()
    for module in network.modules():
        if isinstance(module, ECA) and module.kernel != "learned":
            module.to_laplacian()


# -- losses ----------------------------------------------------------------------------------------------------------


def perceptual_loss(levels: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Sum over levels of the mean absolute difference, each divided by its coefficient (section 2)."""
    return sum(F.l1_loss(a, b) / divisor for a, b, divisor in zip(levels, targets, LEVEL_DIVISORS))


def gradient_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of Sobel responses in x plus that in y, zero padding (section 2)."""
    x = pred.new_tensor(SOBEL)
    kernels = torch.stack([x, x.T]).repeat(pred.shape[1], 1, 1)[:, None]  # [2C, 1, 3, 3], x and y of each channel
    # Filtering is linear: the filtered difference is the difference of what is filtered.
    edges = F.conv2d(pred - target, kernels, padding=1, groups=pred.shape[1])
    return 2 * edges.abs().mean()


def losses(
    pred: Tensor,
    target: Tensor,
    features=None,
    weights: tuple[float, float, float] = (1.0, 10.0, 100.0),
    counted: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of L = P + 10 G + 100 M (section 2); P has level 0 alone without `features`.

    features: picture -> list of maps. counted: bool [B, 1, H, W], pixels whose error counts; None for all.
    """
    pred, target = pred.float(), target.float()
    if counted is not None:
        pred = torch.where(counted, pred, target)
    levels, targets = [pred], [target]
    if features is not None:
        levels += [level.float() for level in features(pred)]
        targets += [level.float() for level in features(target)]
    return {
        "perceptual": weights[0] * perceptual_loss(levels, targets),
        "edges": weights[1] * gradient_loss(pred, target),
        "squared": weights[2] * F.mse_loss(pred, target),
    }


def learning_rate(base: float, epoch: int, flat: int, decay: int) -> float:
    """The rate of a 1-based epoch: constant, then a line that would reach 0 one epoch after the end (section 4)."""
    return base * (1 - max(0, epoch - flat) / (decay + 1))
