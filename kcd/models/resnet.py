"""Residual networks (He et al. 2016): the CIFAR family, ResNet-50 at 32 px, ImageNet's ResNet-18 and -34."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from kcd.models.layers import Stage, conv1x1, conv3x3, init_fan_out, projection


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, without the ReLU that follows their sum."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(c_in, c_out, stride)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = conv3x3(c_out, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = projection(c_in, c_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.downsample(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 to four times the width, without the last ReLU."""

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
        self.shortcut = projection(c_in, c_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


class ResNet(nn.Module):
    """A stem and stages of basic blocks, as many as `blocks` says; every stage but the first halves the map.

    channels: of the stem, then of each stage. imagenet: the 7x7 stride-2 stem with max-pooling, and
    torchvision's state-dict names; otherwise a 3x3 stem at full resolution.
    Features: the stem's output as the first stage sees it, each stage's output, the pooled vector.
    """

    def __init__(self, blocks: Sequence[int], channels: Sequence[int], classes: int, imagenet: bool = False):
        super().__init__()
        stem = channels[0]
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False) if imagenet else conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        for i, (n, c_in, c_out) in enumerate(zip(blocks, channels, channels[1:]), start=1):
            first = BasicBlock(c_in, c_out, stride=1 if i == 1 else 2)
            self.add_module(f"layer{i}", Stage(first, *(BasicBlock(c_out, c_out, 1) for _ in range(n - 1))))
        self.fc = nn.Linear(channels[-1], classes)
        init_fan_out(self)

    def stages(self) -> list[Stage]:
        return [child for child in self.children() if isinstance(child, Stage)]

    def feature_modules(self) -> list[nn.Module]:
        """What an initialisation stage trains."""
        return [self.conv1, self.bn1, *self.stages()]

    def forward(self, x: torch.Tensor, is_feat: bool = False, preact: bool = False):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        features = [x] if is_feat else []
        for stage in self.stages():
            x, feature = stage(x, preact)
            if is_feat:
                features.append(feature)
        pooled = x.mean((2, 3))
        logits = self.fc(pooled)
        return ([*features, pooled], logits) if is_feat else logits


class ResNet50(nn.Module):
    """ResNet-50 for CIFAR: 3x3 stem without pooling, bottlenecks [3, 4, 6, 3].

    Features at 32 px: 64@32, 256@32, 512@16, 1024@8, 2048@4, 2048.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, blocks=3, stride=1)
        self.layer2 = self._stage(256, 128, blocks=4, stride=2)
        self.layer3 = self._stage(512, 256, blocks=6, stride=2)
        self.layer4 = self._stage(1024, 512, blocks=3, stride=2)
        self.linear = nn.Linear(2048, classes)
        init_fan_out(self)

    @staticmethod
    def _stage(c_in: int, width: int, blocks: int, stride: int) -> Stage:
        c_out = Bottleneck.expansion * width
        rest = (Bottleneck(c_out, width, 1) for _ in range(blocks - 1))
        return Stage(Bottleneck(c_in, width, stride), *rest)

    def feature_modules(self) -> list[nn.Module]:
        """What an initialisation stage trains."""
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, x: torch.Tensor, is_feat: bool = False, preact: bool = False):
        x = F.relu(self.bn1(self.conv1(x)))
        features = [x] if is_feat else []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x, feature = stage(x, preact)
            if is_feat:
                features.append(feature)
        pooled = x.mean((2, 3))
        logits = self.linear(pooled)
        return ([*features, pooled], logits) if is_feat else logits


def cifar_resnet(depth: int, classes: int, width: int = 16) -> ResNet:
    """ResNet of depth 6n+2 with stages of n blocks at width, 2·width and 4·width channels."""
    return ResNet([(depth - 2) // 6] * 3, (width, width, 2 * width, 4 * width), classes)


def cifar_resnet_x4(depth: int, classes: int, width: int = 16) -> ResNet:
    """The same with stages four times as wide, on a stem twice as wide: 32, 64, 128, 256."""
    return ResNet([(depth - 2) // 6] * 3, (2 * width, 4 * width, 8 * width, 16 * width), classes)


def imagenet_resnet(blocks: Sequence[int], classes: int) -> ResNet:
    """ResNet-18 or -34 for images of about 224 px."""
    return ResNet(blocks, (64, 64, 128, 256, 512), classes, imagenet=True)
