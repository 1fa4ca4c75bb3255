"""Dilated residual networks (DRN-D) for semantic segmentation, as the mIoU protocol needs them (section 6).

Module names are those of the released weights (`base.0` … `base.8`, `seg`, `up`).
"""

from os import PathLike

from common.weights import load_weights

import torch
from torch import Tensor, nn

PLANES = (16, 32, 64, 128, 256, 512, 512, 512)
DEPTHS = {"drn_d_22": (1, 1, 2, 2, 2, 2, 1, 1), "drn_d_105": (1, 1, 3, 4, 23, 3, 1, 1)}
CLASSES = 19


def bilinear_kernel(size: int = 16) -> Tensor:
    """Weights [size, size] with which a transposed convolution of stride size / 2 enlarges bilinearly."""
    half = size / 2
    w = 1 - (torch.arange(size, dtype=torch.float64) / half - (size - 1) / size).abs()
    return torch.outer(w, w).float()


def convolution(before: int, planes: int, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Unbiased, padded so that stride 1 keeps the size."""
    padding = dilation * (size // 2)
    return nn.Conv2d(before, planes, size, stride=stride, padding=padding, dilation=dilation, bias=False)


class Residual(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of three, added to the input."""

    def __init__(self, before: int, planes: int, bottleneck: bool, stride: int, dilation: int):
        super().__init__()
        after = planes * (4 if bottleneck else 1)
        if bottleneck:
            steps = [(before, planes, 1, 1, 1), (planes, planes, 3, stride, dilation), (planes, after, 1, 1, 1)]
        else:
            steps = [(before, planes, 3, stride, dilation), (planes, planes, 3, 1, dilation)]
        self.steps = len(steps)
        for number, step in enumerate(steps, 1):
            setattr(self, f"conv{number}", convolution(*step))
            setattr(self, f"bn{number}", nn.BatchNorm2d(step[1]))
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(convolution(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.steps + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = y.relu() if number < self.steps else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class DRNSeg(nn.Module):
    """Images [B, 3, H, W], normalised, to the log-probabilities of classes [B, classes, H, W]; sides multiples of 8."""

    def __init__(self, name: str = "drn_d_105", classes: int = CLASSES):
        super().__init__()
        self.architecture = name
        bottleneck, depths = name == "drn_d_105", DEPTHS[name]
        expansion = 4 if bottleneck else 1
        stem = nn.Sequential(convolution(3, PLANES[0], 7), nn.BatchNorm2d(PLANES[0]), nn.ReLU())
        stages, before = [stem], PLANES[0]
        for level, (planes, depth) in enumerate(zip(PLANES, depths)):
            stride, dilation = (1, 2, 2, 2, 1, 1, 1, 1)[level], (1, 1, 1, 1, 2, 4, 2, 1)[level]
            layers = []
            for i in range(depth):
                step = stride if i == 0 else 1
                if 2 <= level <= 5:
                    layers.append(Residual(before, planes, bottleneck, step, dilation))
                    before = planes * expansion
                else:
                    layers += [convolution(before, planes, 3, step, dilation), nn.BatchNorm2d(planes), nn.ReLU()]
                    before = planes
            stages.append(nn.Sequential(*layers))
        self.base = nn.Sequential(*stages)
        self.seg = nn.Conv2d(before, classes, 1)
        self.up = nn.ConvTranspose2d(classes, classes, 16, stride=8, padding=4, groups=classes, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(bilinear_kernel().expand_as(self.up.weight))
        self.up.requires_grad_(False)

    def scores(self, images: Tensor) -> Tensor:
        """At an eighth of the resolution, before softmax."""
        return self.seg(self.base(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.up(self.scores(images)).log_softmax(1)


def load_drn(path: str | PathLike, name: str = "drn_d_105") -> DRNSeg:
    """The network with the released weights (fyu/drn: drn-d-105_ms_cityscapes.pth). Errors: CheckpointError."""
    network = DRNSeg(name)
    load_weights(network, path)
    return network.eval().requires_grad_(False)
