"""The binary feature extractor of Faster-RCNN: ResNet without a head, and the pyramid on it (section 3.3)."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rebnn.method import rsign
from rebnn.models.resnet import BinaryResNet

LAYERS = {"resnet18": (4, 4, 4, 4), "resnet34": (6, 8, 12, 6), "resnet10": (2, 2, 2, 2)}
"""blocks of each stage; a block of ours has one convolution, so resnet10 is half of resnet18"""
CHANNELS = (64, 128, 256, 512)
Conv = Callable[..., nn.Module]


def body(name: str, width: float, conv: Conv) -> BinaryResNet:
    """ResNet without a classifier for images of any size; width multiplies its channels."""
    return BinaryResNet(LAYERS[name], scaled(CHANNELS, width), 0, conv, ceil_mode=True)


def scaled(channels: Sequence[int], width: float) -> tuple[int, ...]:
    """Channels times width, at least 1."""
    return tuple(max(1, round(c * width)) for c in channels)


class SignConv(nn.Module):
    """A convolution of the signs of its input, without a learned threshold; its parameters lie in `conv`."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, conv: Conv, **options):
        super().__init__()
        self.conv = conv(c_in, c_out, kernel_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(rsign(x))


class Neck(nn.Module):
    """A feature pyramid of binary 3x3 convolutions with PReLU, laterals included; the last map is subsampled once.

    Parameters are named as in IDa-Det. Binary convolutions have a bias.
    """

    def __init__(self, channels: Sequence[int], out: int, conv: Conv):
        super().__init__()
        make = lambda c_in: SignConv(c_in, out, 3, conv, padding=1, bias=True)
        self.lateral_convs = nn.ModuleList(make(c) for c in channels)
        self.prelu_ls = nn.ModuleList(nn.PReLU(out) for _ in channels)
        self.fpn_convs = nn.ModuleList(make(out) for _ in channels)
        self.prelu_fs = nn.ModuleList(nn.PReLU(out) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the stages, finest first, to as many of `out` channels and a coarser one."""
        laterals = [act(conv(x)) for conv, act, x in zip(self.lateral_convs, self.prelu_ls, maps)]
        for i in range(len(laterals) - 1, 0, -1):
            above = F.interpolate(laterals[i], size=laterals[i - 1].shape[-2:], mode="nearest")
            laterals[i - 1] = laterals[i - 1] + above
        out = [act(conv(x)) for conv, act, x in zip(self.fpn_convs, self.prelu_fs, laterals)]
        return [*out, F.max_pool2d(out[-1], 1, stride=2)]


class Pyramid(nn.Module):
    """Body and neck: images [B, 3, H, W] to the maps of strides 4 to 64 by the names "0" to "4"."""

    def __init__(self, network: BinaryResNet, neck: Neck, out: int):
        super().__init__()
        self.body, self.neck, self.out_channels = network, neck, out

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.neck(self.body.features(x)[1:])
        return OrderedDict((str(i), one) for i, one in enumerate(maps))


class Trunk(nn.Module):
    """Stem and stages 1 to 3 alone: images to one map of stride 16 (section 3.3, C4)."""

    def __init__(self, network: BinaryResNet, out: int):
        super().__init__()
        self.body, self.out_channels = network, out
        del self.body.layer4

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict({"0": self.body.features(x)[-1]})
