"""MobileNetV1 (Howard et al. 2017) and V2 (Sandler et al. 2018), with ReLU throughout, as the release has them."""

import math

import torch
from torch import nn

from lts.models.layers import conv1x1, conv3x3, depthwise3x3

# Output channels of V1's separable blocks, group by group; every group but the first starts with stride 2.
V1_GROUPS = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))
# (expansion, output channels, blocks, stride of the first) of the seven groups of V2.
V2_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def activated(conv: nn.Conv2d) -> list[nn.Module]:
    """A convolution, its BN and ReLU."""
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


def init_small_classifier(network: nn.Module) -> None:
    """Convolutions from N(0, 2 / (k² C_out)), linear layers from N(0, 0.01²) with bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


class Separable(nn.Module):
    """Depthwise 3x3 and pointwise 1x1, each with BN and ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(*activated(depthwise3x3(c_in, stride)), *activated(conv1x1(c_in, c_out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class InvertedResidual(nn.Module):
    """1x1 expansion (none for a factor of 1), depthwise 3x3, linear 1x1; a shortcut where shapes agree."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int):
        super().__init__()
        hidden = expansion * c_in
        self.residual = stride == 1 and c_in == c_out
        expand = activated(conv1x1(c_in, hidden)) if expansion > 1 else []
        project = [conv1x1(hidden, c_out), nn.BatchNorm2d(c_out)]
        self.body = nn.Sequential(*expand, *activated(depthwise3x3(hidden, stride)), *project)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV1(nn.Module):
    """Head, 13 separable blocks named `stage_i_layer_j`, global mean, `classifier`."""

    def __init__(self, classes: int):
        super().__init__()
        self.head = nn.Sequential(*activated(conv3x3(3, 32, stride=2)))
        c_in = 32
        for i, group in enumerate(V1_GROUPS):
            for j, c_out in enumerate(group):
                self.add_module(f"stage_{i}_layer_{j}", Separable(c_in, c_out, 2 if i and not j else 1))
                c_in = c_out
        self.classifier = nn.Linear(c_in, classes)
        init_small_classifier(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        for name, stage in self.named_children():
            if name.startswith("stage_"):
                x = stage(x)
        return self.classifier(x.mean((2, 3)))


class MobileNetV2(nn.Module):
    """Head, 17 inverted residuals named `stage_i_layer_j`, tail, global mean, `classifier.0`."""

    def __init__(self, classes: int):
        super().__init__()
        self.head = nn.Sequential(*activated(conv3x3(3, 32, stride=2)))
        c_in = 32
        for i, (expansion, c_out, blocks, stride) in enumerate(V2_GROUPS):
            for j in range(blocks):
                block = InvertedResidual(c_in, c_out, expansion, 1 if j else stride)
                self.add_module(f"stage_{i}_layer_{j}", block)
                c_in = c_out
        self.tail = nn.Sequential(*activated(conv1x1(c_in, 1280)))
        self.classifier = nn.Sequential(nn.Linear(1280, classes))
        init_small_classifier(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        for name, stage in self.named_children():
            if name.startswith("stage_"):
                x = stage(x)
        return self.classifier(self.tail(x).mean((2, 3)))
