"""ShuffleNet (Zhang et al. 2018, three groups) and ShuffleNetV2 (Ma et al. 2018, 1x) for CIFAR."""

import torch
import torch.nn.functional as F
from torch import nn

from kcd.models.layers import Stage, channel_shuffle, conv1x1, depthwise3x3


class GroupBottleneck(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, without the last ReLU.

    Stride 1 adds the input; stride 2 appends its average pooling, so only c_out − c_in channels are computed.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int = 3):
        super().__init__()
        self.stride = stride
        computed = c_out if stride == 1 else c_out - c_in
        middle = computed // 4
        self.groups = 1 if c_in == 24 else groups  # the stem's 24 channels are too few to be grouped
        self.conv1 = conv1x1(c_in, middle, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = depthwise3x3(middle, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv1x1(middle, computed, groups=groups)
        self.bn3 = nn.BatchNorm2d(computed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)


class ShuffleV1(nn.Module):
    """Features at 32 px: 24@32, 240@16, 480@8, 960@4, 960."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv1 = conv1x1(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._stage(24, 240, blocks=4)
        self.layer2 = self._stage(240, 480, blocks=8)
        self.layer3 = self._stage(480, 960, blocks=4)
        self.linear = nn.Linear(960, classes)

    @staticmethod
    def _stage(c_in: int, c_out: int, blocks: int) -> Stage:
        rest = (GroupBottleneck(c_out, c_out, 1) for _ in range(blocks - 1))
        return Stage(GroupBottleneck(c_in, c_out, 2), *rest)

    def feature_modules(self) -> list[nn.Module]:
        """What an initialisation stage trains."""
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3]

    def forward(self, x: torch.Tensor, is_feat: bool = False, preact: bool = False):
        x = F.relu(self.bn1(self.conv1(x)))
        features = [x] if is_feat else []
        for stage in (self.layer1, self.layer2, self.layer3):
            x, feature = stage(x, preact)
            if is_feat:
                features.append(feature)
        pooled = x.mean((2, 3))
        logits = self.linear(pooled)
        return ([*features, pooled], logits) if is_feat else logits


class SplitBlock(nn.Module):
    """Half the channels pass; the other half goes through 1x1, depthwise 3x3, 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise3x3(half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two halves: as it came, and computed up to before the last ReLU."""
        passed, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        return passed, self.bn3(self.conv3(self.bn2(self.conv2(out))))


class DownBlock(nn.Module):
    """Two strided branches of the whole input, each giving half of the output channels."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        half = c_out // 2
        self.conv1 = depthwise3x3(c_in, stride=2)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2 = conv1x1(c_in, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(c_in, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise3x3(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        return left, self.bn5(self.conv5(self.bn4(self.conv4(right))))


class ShuffleStage(nn.Sequential):
    """A down block and split blocks, each ending in ReLU, concatenation and shuffle."""

    def forward(self, x: torch.Tensor, preact: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The output, and the feature map: the same, or with preact before the last ReLU and shuffle."""
        for block in self:
            left, right = block(x)
            x = channel_shuffle(torch.cat([left, F.relu(right)], dim=1), 2)
        return x, torch.cat([left, right], dim=1) if preact else x


class ShuffleV2(nn.Module):
    """Features at 32 px: 24@32, 116@16, 232@8, 464@4, 1024."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv1 = conv1x1(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._stage(24, 116, blocks=3)
        self.layer2 = self._stage(116, 232, blocks=7)
        self.layer3 = self._stage(232, 464, blocks=3)
        self.conv2 = conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    @staticmethod
    def _stage(c_in: int, c_out: int, blocks: int) -> ShuffleStage:
        return ShuffleStage(DownBlock(c_in, c_out), *(SplitBlock(c_out) for _ in range(blocks)))

    def feature_modules(self) -> list[nn.Module]:
        """What an initialisation stage trains."""
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3]

    def forward(self, x: torch.Tensor, is_feat: bool = False, preact: bool = False):
        x = F.relu(self.bn1(self.conv1(x)))
        features = [x] if is_feat else []
        for stage in (self.layer1, self.layer2, self.layer3):
            x, feature = stage(x, preact)
            if is_feat:
                features.append(feature)
        pooled = F.relu(self.bn2(self.conv2(x))).mean((2, 3))
        logits = self.linear(pooled)
        return ([*features, pooled], logits) if is_feat else logits
