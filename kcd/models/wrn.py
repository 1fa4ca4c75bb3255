"""Wide residual networks with pre-activation blocks (Zagoruyko and Komodakis 2016), without dropout."""

import torch
import torch.nn.functional as F
from torch import nn

from kcd.models.layers import conv1x1, conv3x3, init_fan_out


class BasicBlock(nn.Module):
    """BN-ReLU-conv twice; the shortcut is the raw input, or where channels change a 1x1 on the active one."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv3x3(c_in, c_out, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = conv3x3(c_out, c_out)
        self.convShortcut = conv1x1(c_in, c_out, stride) if c_in != c_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class Group(nn.Module):
    """Blocks of one width, the first with the stride."""

    def __init__(self, c_in: int, c_out: int, blocks: int, stride: int):
        super().__init__()
        rest = (BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(BasicBlock(c_in, c_out, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-k: three groups of (depth − 4) / 6 blocks with 16k, 32k and 64k channels.

    Features: the stem's convolution, each group's raw sum (with preact through the BN that follows it), the
    pooled vector.
    """

    def __init__(self, depth: int, k: int, classes: int):
        super().__init__()
        n = (depth - 4) // 6
        self.conv1 = conv3x3(3, 16)
        self.block1 = Group(16, 16 * k, n, stride=1)
        self.block2 = Group(16 * k, 32 * k, n, stride=2)
        self.block3 = Group(32 * k, 64 * k, n, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * k)
        self.fc = nn.Linear(64 * k, classes)
        init_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def feature_modules(self) -> list[nn.Module]:
        """What an initialisation stage trains."""
        return [self.conv1, self.block1, self.block2, self.block3]

    def forward(self, x: torch.Tensor, is_feat: bool = False, preact: bool = False):
        x = self.conv1(x)
        features = [x] if is_feat else []
        following = (self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1)
        for group, bn in zip((self.block1, self.block2, self.block3), following):
            x = group(x)
            if is_feat:
                features.append(bn(x) if preact else x)
        pooled = F.relu(self.bn1(x)).mean((2, 3))
        logits = self.fc(pooled)
        return ([*features, pooled], logits) if is_feat else logits
