"""The network of the small experiment: four convolutions and a linear layer for 8x8 images (section 11)."""

import torch
import torch.nn.functional as F
from torch import nn

from lts.models.layers import conv3x3


class DigitsNet(nn.Module):
    """3x3 convolutions to width, 2·width, 2·width, 2·width channels with strides 1, 2, 1, 2; pooled; linear."""

    def __init__(self, classes: int, width: int = 16):
        super().__init__()
        channels = (3, width, 2 * width, 2 * width, 2 * width)
        for i, stride in enumerate((1, 2, 1, 2), start=1):
            self.add_module(f"conv{i}", conv3x3(channels[i - 1], channels[i], stride))
            self.add_module(f"bn{i}", nn.BatchNorm2d(channels[i]))
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        return self.fc(x.mean((2, 3)))
