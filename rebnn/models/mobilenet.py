"""ReActNet-A, MobileNet-like: pairs of binary 3x3 and 1x1 convolutions, each with a shortcut (section 3.2)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

from common.errors import InputError

import torch
from torch import Tensor, nn

from rebnn.method import LearnableBias, RSign, rprelu

REDUCTION = 32
"""pixels of the image to one of the last map"""


class Stem(nn.Module):
    """A real 3x3 convolution of stride 2 and BN, without activation."""

    def __init__(self, c_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, c_out, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x))


class Block(nn.Module):
    """A binary 3x3 that keeps the channels, then a binary 1x1 that keeps them, or two that together double them.

    Parameters are named as in ReActNet's checkpoints. InputError for other output channels.
    """

    normalised_by: ClassVar = {
        "binary_3x3": "bn1",
        "binary_pw": "bn2",
        "binary_pw_down1": "bn2_1",
        "binary_pw_down2": "bn2_2",
    }
    """the BN behind each binary convolution"""

    def __init__(self, c_in: int, c_out: int, stride: int, conv: Callable[..., nn.Module]):
        super().__init__()
        if c_out not in (c_in, 2 * c_in):
            raise InputError(
                f"a ReActNet-A block cannot lead from {c_in} to {c_out} channels: its halves have those of its input;"
                f" give {c_in} or {2 * c_in}"
            )
        self.move11 = RSign(c_in)
        self.binary_3x3 = conv(c_in, c_in, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.move12 = LearnableBias(c_in)
        self.prelu1 = nn.PReLU(c_in)
        self.move13 = LearnableBias(c_in)
        self.move21 = RSign(c_in)
        if c_in == c_out:
            self.binary_pw = conv(c_in, c_out, 1)
            self.bn2 = nn.BatchNorm2d(c_out)
        else:
            self.binary_pw_down1 = conv(c_in, c_in, 1)
            self.binary_pw_down2 = conv(c_in, c_in, 1)
            self.bn2_1 = nn.BatchNorm2d(c_in)
            self.bn2_2 = nn.BatchNorm2d(c_in)
        self.move22 = LearnableBias(c_out)
        self.prelu2 = nn.PReLU(c_out)
        self.move23 = LearnableBias(c_out)
        self.pooling = nn.AvgPool2d(2, 2) if stride == 2 else nn.Identity()
        self.widens = c_in != c_out

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] to [B, c_out, H / stride, W / stride]."""
        middle = self.bn1(self.binary_3x3(self.move11(x))) + self.pooling(x)
        middle = rprelu(middle, self.move12.bias, self.prelu1.weight, self.move13.bias)
        signs = self.move21(middle)
        if self.widens:
            halves = self.bn2_1(self.binary_pw_down1(signs)), self.bn2_2(self.binary_pw_down2(signs))
            out = torch.cat([half + middle for half in halves], 1)  # [B, 2 c_in, H, W]
        else:
            out = self.bn2(self.binary_pw(signs)) + middle
        return rprelu(out, self.move22.bias, self.prelu2.weight, self.move23.bias)


class ReActNetA(nn.Module):
    """The stem, 13 blocks whose width doubles with each halving of the map but the first, and a real classifier.

    channels: of the stem, then of each block.
    """

    def __init__(self, channels: Sequence[int], classes: int, conv: Callable[..., nn.Module]):
        super().__init__()
        blocks = [
            Block(c_in, c_out, 2 if c_in != c_out and i else 1, conv)
            for i, (c_in, c_out) in enumerate(pairwise(channels))
        ]
        self.feature = nn.ModuleList([Stem(channels[0]), *blocks])
        self.pool1 = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]. InputError for sides that the strides do not divide."""
        if x.ndim != 4 or any(side % REDUCTION or not side for side in x.shape[2:]):
            raise InputError(f"images {[*x.shape]} do not fit; give [B, 3, H, W], sides multiples of {REDUCTION}")
        for block in self.feature:
            x = block(x)
        return self.fc(torch.flatten(self.pool1(x), 1))


def reactnet_a(classes: int, conv: Callable[..., nn.Module]) -> ReActNetA:
    """ReActNet-A at its published width."""
    return ReActNetA((32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024), classes, conv)
