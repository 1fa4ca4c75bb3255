"""VGG with batch normalisation and one linear layer (Simonyan and Zisserman 2015, as used on CIFAR)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from kcd.models.layers import init_fan_out

# Output channels of the convolutions of each of the five blocks; VGG-8 is not in the paper.
WIDTHS = {
    8: [[64], [128], [256], [512], [512]],
    11: [[64], [128], [256, 256], [512, 512], [512, 512]],
    13: [[64, 64], [128, 128], [256, 256], [512, 512], [512, 512]],
    16: [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]],
    19: [[64, 64], [128, 128], [256, 256, 256, 256], [512, 512, 512, 512], [512, 512, 512, 512]],
}


@torch.fx.wrap
def pool_at_64(x: torch.Tensor, height: int) -> torch.Tensor:
    """The fourth pooling, which only 64-px images get; a leaf of torch.fx, as it depends on the image."""
    return F.max_pool2d(x, 2) if height == 64 else x


def conv_block(c_in: int, widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions with bias, BN and ReLU, without the last ReLU."""
    layers: list[nn.Module] = []
    for c_out in widths:
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        c_in = c_out
    return nn.Sequential(*layers[:-1])


class VGG(nn.Module):
    """Features at 32 px: 64@32, 128@16, 256@8, 512@4, 512@4 (all before pooling), 512."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        widths = WIDTHS[depth]
        self.block0 = conv_block(3, widths[0])
        self.block1 = conv_block(64, widths[1])
        self.block2 = conv_block(128, widths[2])
        self.block3 = conv_block(256, widths[3])
        self.block4 = conv_block(512, widths[4])
        self.classifier = nn.Linear(512, classes)
        init_fan_out(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def feature_modules(self) -> list[nn.Module]:
        """What an initialisation stage trains."""
        return [self.block0, self.block1, self.block2, self.block3, self.block4]

    def forward(self, x: torch.Tensor, is_feat: bool = False, preact: bool = False):
        height = x.shape[2]
        x = F.relu(self.block0(x))
        features = [x] if is_feat else []
        for block in (self.block1, self.block2, self.block3, self.block4):
            pooled = pool_at_64(x, height) if block is self.block4 else F.max_pool2d(x, 2)
            pre = block(pooled)
            x = F.relu(pre)
            if is_feat:
                features.append(pre if preact else x)
        pooled = x.mean((2, 3))
        logits = self.classifier(pooled)
        return ([*features, pooled], logits) if is_feat else logits
