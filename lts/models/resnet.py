"""Residual networks (He et al. 2016): CIFAR's ResNet-20 with projections, ImageNet's ResNet-18 and ResNet-50."""

import torch
import torch.nn.functional as F
from torch import nn

from lts.models.layers import conv1x1, conv3x3


def projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A residual shortcut: the identity where it fits, else a strided 1x1 convolution and BN."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(conv1x1(c_in, c_out, stride), nn.BatchNorm2d(c_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the shortcut under the name that its family gives it, ReLU."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, shortcut: str = "downsample"):
        super().__init__()
        self.conv1 = conv3x3(c_in, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.add_module(shortcut, projection(c_in, width, stride))
        self.shortcut_name = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + getattr(self, self.shortcut_name)(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 to four times the width, the shortcut, ReLU."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        c_out = self.expansion * width
        self.conv1 = conv1x1(c_in, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, c_out)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = projection(c_in, c_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 with three stages of n blocks at width, 2·width and 4·width channels."""

    def __init__(self, depth: int, classes: int, width: int = 16):
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        c_in = width
        for i, stride in enumerate((1, 2, 2), start=1):
            c_out = width * 2 ** (i - 1)
            first = BasicBlock(c_in, c_out, stride, "shortcut")
            rest = (BasicBlock(c_out, c_out, 1, "shortcut") for _ in range(n - 1))
            self.add_module(f"layer{i}", nn.Sequential(first, *rest))
            c_in = c_out
        self.fc = nn.Linear(c_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class ImageNetResNet(nn.Module):
    """torchvision's topology and names, but for the last layer, which is called `linear`; any image size.

    The release pools 7x7 and so takes 224 px alone; the mean over the whole map is the same there. Initialisation is
    PyTorch's own: training starts from torchvision's weights.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...], classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        c_in = 64
        for i, n in enumerate(blocks, start=1):
            width = 64 * 2 ** (i - 1)
            first = block(c_in, width, 1 if i == 1 else 2)
            c_in = block.expansion * width
            self.add_module(f"layer{i}", nn.Sequential(first, *(block(c_in, width, 1) for _ in range(n - 1))))
        self.linear = nn.Linear(c_in, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))
