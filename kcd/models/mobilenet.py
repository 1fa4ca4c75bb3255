"""MobileNetV2 at half width for CIFAR (Sandler et al. 2018), with ReLU in the place of ReLU6."""

import torch
from torch import nn

from kcd.models.layers import conv1x1, conv3x3, depthwise3x3, init_fan_out

# (expansion, output channels, blocks, stride of the first) of the seven groups.
GROUPS = [
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
]
# A feature map is taken after these groups.
FEATURE_GROUPS = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """1x1 expansion (also by 1), depthwise 3x3, linear 1x1; a shortcut where shapes agree."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int):
        super().__init__()
        hidden = expansion * c_in
        self.residual = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            conv1x1(c_in, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            depthwise3x3(hidden, stride),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv1x1(hidden, c_out),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Features at 32 px: 16@16, 12@16, 16@8, 48@4, 160@2, 1280; they are linear, so preact has no effect."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv1 = nn.Sequential(conv3x3(3, 16, stride=2), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        groups, c_in = [], 16
        for expansion, c_out, blocks, stride in GROUPS:
            rest = (InvertedResidual(c_out, c_out, expansion, 1) for _ in range(blocks - 1))
            groups.append(nn.Sequential(InvertedResidual(c_in, c_out, expansion, stride), *rest))
            c_in = c_out
        self.blocks = nn.ModuleList(groups)
        self.conv2 = nn.Sequential(conv1x1(160, 1280), nn.BatchNorm2d(1280), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Linear(1280, classes))
        init_fan_out(self)
        nn.init.normal_(self.classifier[0].weight, std=0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def feature_modules(self) -> list[nn.Module]:
        """What an initialisation stage trains."""
        return [self.conv1, self.blocks]

    def forward(self, x: torch.Tensor, is_feat: bool = False, preact: bool = False):
        x = self.conv1(x)
        features = [x] if is_feat else []
        for i, group in enumerate(self.blocks):
            x = group(x)
            if is_feat and i in FEATURE_GROUPS:
                features.append(x)
        pooled = self.conv2(x).mean((2, 3))
        logits = self.classifier(pooled)
        return ([*features, pooled], logits) if is_feat else logits
