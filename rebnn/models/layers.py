"""The convolution of step 1."""

import torch
import torch.nn.functional as F
from torch import nn


class RealConv2d(nn.Conv2d):
    """A convolution whose input, the signs of step 1, continues as pad_value outside the map."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = False,
        pad_value: float = 0.0,
    ):
        super().__init__(c_in, c_out, kernel_size, stride, padding, dilation, bias=bias)
        self.pad_value = pad_value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c_in, H, W] to [B, c_out, H', W']."""
        if not self.pad_value:
            return super().forward(x)
        vertical, horizontal = self.padding
        x = F.pad(x, (horizontal, horizontal, vertical, vertical), value=self.pad_value)
        return F.conv2d(x, self.weight, self.bias, self.stride, dilation=self.dilation)
