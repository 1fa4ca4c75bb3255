"""R3D-18 (Tran et al. 2018) with the module names of torchvision's r3d_18, so that its weights load as they are."""

import torch
import torch.nn.functional as F
from torch import nn


class SubsampledConv1x1(nn.Conv3d):
    """A strided 1x1x1 convolution that picks its positions first, with the same weights and results.

    oneDNN's gradient of the strided form writes out of bounds for fewer than 8 input channels in channels-last layout
    on AVX2 processors (uxlfoundation/oneDNN issue 6035; torch 2.13 ships it).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d, h, w = self.stride
        return F.conv3d(x[:, :, ::d, ::h, ::w], self.weight, self.bias)


def convolution(c_in: int, c_out: int, stride: int, relu: bool) -> nn.Sequential:
    """3x3x3 convolution and BN, then ReLU where it is not added to a shortcut first."""
    layers = [nn.Conv3d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm3d(c_out)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut; stride 2 halves time as well as space."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = convolution(c_in, c_out, stride, relu=True)
        self.conv2 = convolution(c_out, c_out, 1, relu=False)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            shortcut = SubsampledConv1x1 if c_in < 8 else nn.Conv3d
            self.downsample = nn.Sequential(shortcut(c_in, c_out, 1, stride, bias=False), nn.BatchNorm3d(c_out))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class R3D18(nn.Module):
    """Clips [B, channels, T, H, W] of any size to logits [B, classes].

    Convolutions start from Kaiming's normal distribution (fan out), BN from 1 and 0, the head from N(0, 0.01) and 0.
    """

    def __init__(self, classes: int, width: int = 64, channels: int = 3):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(channels, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(width), nn.ReLU()
        )
        c_in = width
        for stage in range(4):
            c_out, stride = width * 2**stage, 1 if stage == 0 else 2
            blocks = nn.Sequential(BasicBlock(c_in, c_out, stride), BasicBlock(c_out, c_out, 1))
            setattr(self, f"layer{stage + 1}", blocks)
            c_in = c_out
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(c_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, 0.0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))
