"""What the networks share: a residual stage, its initialisation, the channel shuffle."""

import torch
import torch.nn.functional as F
from torch import nn


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)


def conv1x1(c_in: int, c_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1, stride=stride, groups=groups, bias=False)


def depthwise3x3(channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


class SubsampledConv1x1(nn.Conv2d):
    """A strided 1x1 convolution that picks its positions first, with the same weights and results.

    oneDNN's gradient of the strided form writes out of bounds for fewer than 8 input channels in channels-last layout
    on AVX2 processors (uxlfoundation/oneDNN issue 6035; torch 2.13 ships it).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        vertical, horizontal = self.stride
        return F.conv2d(x[:, :, ::vertical, ::horizontal], self.weight, self.bias)


def projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A residual shortcut: the identity where it fits, else a strided 1x1 convolution and BN."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    conv = SubsampledConv1x1(c_in, c_out, 1, stride, bias=False) if c_in < 8 else conv1x1(c_in, c_out, stride)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Stage(nn.Sequential):
    """Blocks that end before their last ReLU, so that a caller can have the pre-activation too."""

    def forward(self, x: torch.Tensor, preact: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The activated output, and the stage's feature map: the same, or with preact before the ReLU."""
        for block in self:
            pre = block(x)
            x = F.relu(pre)
        return x, pre if preact else x


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Interleave the channel groups, so that the next grouped convolution sees all of them."""
    x = x.unflatten(1, (groups, -1))  # [B, groups, C / groups, H, W]
    return x.transpose(1, 2).flatten(1, 2)


def init_fan_out(network: nn.Module) -> None:
    """Convolutions from N(0, 2 / (k² C_out)) (He et al. 2015, fan out), their biases 0, BN 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
