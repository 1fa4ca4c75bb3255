"""Binary ResNet: one binary 3x3 convolution and one shortcut a block (section 3.1)."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from common.errors import InputError

import torch
from torch import Tensor, nn

from rebnn.method import LearnableBias, RSign, rprelu


class Block(nn.Module):
    """RSign, binary 3x3 convolution, BN, shortcut, RPReLU; parameters are named as in the official checkpoints.

    A shortcut that halves the map averages 2x2 pixels and applies a real 1x1 convolution and BN.
    """

    normalised_by: ClassVar = {"binary_conv": "bn1"}
    """the BN behind each binary convolution"""

    def __init__(self, c_in: int, c_out: int, stride: int, conv: Callable[..., nn.Module], ceil_mode: bool = False):
        super().__init__()
        self.stride = stride
        self.move0 = RSign(c_in)
        self.binary_conv = conv(c_in, c_out, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.move1 = LearnableBias(c_out)
        self.prelu = nn.PReLU(c_out)
        self.move2 = LearnableBias(c_out)
        self.downsample = shortcut(c_in, c_out, stride, ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] to [B, c_out, H / stride, W / stride]."""
        out = self.bn1(self.binary_conv(self.move0(x))) + self.downsample(x)
        return rprelu(out, self.move1.bias, self.prelu.weight, self.move2.bias)


def shortcut(c_in: int, c_out: int, stride: int, ceil_mode: bool = False) -> nn.Module:
    """The identity where it fits; otherwise 2x2 averages if strided, a real 1x1 convolution, and BN.

    ceil_mode: a last odd row or column is averaged by itself, so that maps of any size fit (section 3.3).
    """
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    pool = nn.AvgPool2d(2, 2, ceil_mode=ceil_mode) if stride == 2 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))


class BinaryResNet(nn.Module):
    """A real stem and classifier around stages of binary blocks; each stage but the first halves the map.

    layers, channels: blocks and output channels of each stage; the stem has the channels of the first. imagenet: the
    7x7 stride-2 stem with max-pooling, otherwise 3x3 at full resolution; no activation follows either. classes 0 leaves
    out the head and ceil_mode admits images of any size: both are for detectors.
    """

    def __init__(
        self,
        layers: Sequence[int],
        channels: Sequence[int],
        classes: int,
        conv: Callable[..., nn.Module],
        imagenet: bool = True,
        ceil_mode: bool = False,
    ):
        super().__init__()
        stem = channels[0]
        self.reduction = 1 if ceil_mode else (4 if imagenet else 1) * 2 ** (len(layers) - 1)
        self.conv1 = nn.Conv2d(3, stem, *((7, 2, 3) if imagenet else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        for i, (n, c_in, c_out) in enumerate(zip(layers, [stem, *channels], channels), start=1):
            first = Block(c_in, c_out, 1 if i == 1 else 2, conv, ceil_mode)
            self.add_module(f"layer{i}", nn.Sequential(first, *(Block(c_out, c_out, 1, conv) for _ in range(n - 1))))
        if classes:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(channels[-1], classes)

    def stages(self) -> list[nn.Sequential]:
        return [child for name, child in self.named_children() if name.startswith("layer")]

    def features(self, x: Tensor) -> list[Tensor]:
        """What the stem hands on, [B, channels[0], H, W], then the output of each stage.

        InputError for an image whose sides no stage could halve: strided convolution and shortcut would differ.
        """
        if x.ndim != 4 or any(side % self.reduction or not side for side in x.shape[2:]):
            raise InputError(f"images {[*x.shape]} do not fit; give [B, 3, H, W], sides multiples of {self.reduction}")
        maps = [self.maxpool(self.bn1(self.conv1(x)))]
        for stage in self.stages():
            maps.append(stage(maps[-1]))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        return self.fc(torch.flatten(self.avgpool(self.features(x)[-1]), 1))


def imagenet_resnet(layers: Sequence[int], classes: int, conv: Callable[..., nn.Module]) -> BinaryResNet:
    """A network for images of about 224 px."""
    return BinaryResNet(layers, (64, 128, 256, 512), classes, conv)


def cifar_resnet(
    layers: Sequence[int], classes: int, conv: Callable[..., nn.Module], channels: Sequence[int]
) -> BinaryResNet:
    """A network for small images, of any width. InputError unless each stage has its number of channels."""
    if len(channels) != len(layers) or min(channels) < 1:
        raise InputError(f"channels {[*channels]} do not fit; give {len(layers)} numbers from 1, one for each stage")
    return BinaryResNet(layers, channels, classes, conv, imagenet=False)
