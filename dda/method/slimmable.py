"""Slimmable convolutions: sub-networks of several widths that share the first channels of one set of weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SlimConv2d", "columns", "slim"]

Segments = tuple[tuple[int, bool], ...]


def slim(channels: int, width: float) -> int:
    """int(channels · width): how many leading channels a sub-network uses, truncated (section 2.4).

    The width is first rounded to six decimals, so that one stored in float32 gives the channels of its decimal form.
    """
    return int(channels * round(width, 6))


def columns(segments: Segments, width: float) -> list[tuple[int, int]]:
    """(start, length) of the input channels used of each part of a concatenation (section 2.4).

    segments: (channels at full width, whether it is slimmed) in concatenation order.
    """
    used, start = [], 0
    for channels, slimmed in segments:
        used.append((start, slim(channels, width) if slimmed else channels))
        start += channels
    return used


class SlimConv2d(nn.Conv2d):
    """A convolution of which width w uses the first int(C·w) output and input channels (section 2.4).

    slim: whether its (input, output) channels shrink. segments: the parts of a concatenated input as for `columns`;
    by default one part. Weights that a width does not use get zero gradients from it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        *,
        slim: tuple[bool, bool] = (True, True),
        segments: Segments | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self.slim = slim
        self.segments = segments or ((in_channels, True),)
        if sum(channels for channels, _ in self.segments) != in_channels:
            raise ValueError(f"the segments {self.segments} do not add up to {in_channels} input channels")

    def part(self, width: float) -> tuple[Tensor, Tensor]:
        """The weight [int(C_out·w), k_in, k, k] and bias that a width uses; views, except for concatenated inputs."""
        rows = slim(self.out_channels, width) if self.slim[1] else self.out_channels
        weight, bias = self.weight[:rows], self.bias[:rows]
        if not self.slim[0]:
            return weight, bias
        used = columns(self.segments, width)
        joined = [used[0]]
        for start, length in used[1:]:  # neighbours that touch are one slice
            first, so_far = joined[-1]
            if first + so_far == start:
                joined[-1] = (first, so_far + length)
            else:
                joined.append((start, length))
        slices = [weight.narrow(1, start, length) for start, length in joined]
        return slices[0] if len(slices) == 1 else torch.cat(slices, 1), bias

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        """x: [B, k_in, H, W] -> [B, int(C_out·w), H', W']."""
        return F.conv2d(x, *self.part(width), self.stride, self.padding, self.dilation)

    def slice(self, width: float) -> nn.Conv2d:
        """The sub-network's layer as a plain convolution with weights of its own."""
        weight, bias = self.part(width)
        rows, columns_used = weight.shape[:2]
        plain = nn.Conv2d(
            columns_used, rows, self.kernel_size, self.stride, self.padding, self.dilation, device=weight.device
        )
        plain.weight = nn.Parameter(weight.detach().clone())
        plain.bias = nn.Parameter(bias.detach().clone())
        return plain
