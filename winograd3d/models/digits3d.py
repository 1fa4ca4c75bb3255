"""The small network for moving digits (section 11): three 3x3x3 convolutions of which the last two can be converted."""

import torch
from torch import nn


class DigitsNet(nn.Module):
    """Clips [B, channels, T, H, W] to logits [B, classes]; T, H and W are those of `clip`."""

    def __init__(self, classes: int, width: int = 8, clip: tuple[int, int, int] = (8, 12, 12), channels: int = 1):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, width, 3, padding=1)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = nn.Conv3d(width, 2 * width, 3, padding=1)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3 = nn.Conv3d(2 * width, 3 * width, 3, padding=1)
        self.relu = nn.ReLU()
        depth, height, side = clip
        self.fc = nn.Linear(3 * width * (depth // 2) * (height // 4) * (side // 4), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.relu(self.conv1(x)))
        x = self.pool2(self.relu(self.conv2(x)))
        return self.fc(self.relu(self.conv3(x)).flatten(1))
