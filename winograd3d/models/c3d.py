"""C3D (Tran et al. 2015): eight 3x3x3 convolutions with ReLU, five max poolings, three linear layers, no norm."""

import torch
from torch import nn

LAYERS = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
POOLED = {"conv1": "pool1", "conv2": "pool2", "conv3b": "pool3", "conv4b": "pool4", "conv5b": "pool5"}


class C3D(nn.Module):
    """Clips [B, channels, T, H, W] to logits [B, classes]; T, H and W are those of `clip`.

    Convolutions start from Kaiming's normal distribution (fan in), linear layers from PyTorch's default (section 3).
    """

    def __init__(
        self,
        classes: int,
        widths: tuple[int, ...] = WIDTHS,
        hidden: int = 4096,
        clip: tuple[int, int, int] = (16, 112, 112),
        channels: int = 3,
    ):
        super().__init__()
        for name, c_in, c_out in zip(LAYERS, (channels, *widths), widths):
            setattr(self, name, nn.Conv3d(c_in, c_out, 3, padding=1))
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.pool2, self.pool3, self.pool4 = (nn.MaxPool3d(2) for _ in range(3))
        self.pool5 = nn.MaxPool3d(2, padding=(0, 1, 1))
        self.relu = nn.ReLU()
        self.fc6 = nn.Linear(widths[-1] * flat_positions(clip), hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(0.5)
        for name in LAYERS:
            convolution = getattr(self, name)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in LAYERS:
            x = self.relu(getattr(self, name)(x))
            if name in POOLED:
                x = getattr(self, POOLED[name])(x)
        x = x.flatten(1)  # in the order C, D, H, W, whatever the memory format
        x = self.dropout(self.relu(self.fc6(x)))
        x = self.dropout(self.relu(self.fc7(x)))
        return self.fc8(x)


def flat_positions(clip: tuple[int, int, int]) -> int:
    """Positions that are left of a clip (T, H, W) after the five poolings; 0 if it is too small for them."""
    depth, *plane = clip
    sides = [(side // 16 + 2 - 2) // 2 + 1 if side // 16 else 0 for side in plane]  # the last pooling pads by 1
    return depth // 16 * sides[0] * sides[1]
