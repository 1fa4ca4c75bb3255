"""What the networks share: calling a layer at a width, and cutting out a sub-network."""

import copy

import torch
from torch import Tensor, nn

from dda.method.slimmable import SlimConv2d


class Slimmable(nn.Module):
    """A part of a network whose convolutions are called with a width; one that has been cut out ignores it."""

    @staticmethod
    def at(layer: nn.Module, x: Tensor, width: float) -> Tensor:
        """The layer at a width, where it knows widths."""
        return layer(x, width) if isinstance(layer, (SlimConv2d, Slimmable)) else layer(x)


class Chain(nn.Sequential, Slimmable):
    """nn.Sequential with a width; the same keys in its state dict."""

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        for layer in self:
            x = self.at(layer, x, width)
        return x


class SubNetwork(nn.Module):
    """One width of a supernet as a plain network with its own weights: x [B, 3, H, W] -> the finest output."""

    def __init__(self, network: nn.Module, width: float):
        super().__init__()
        self.width, self.multiple, self.architecture = width, network.multiple, network.architecture
        self.network = copy.deepcopy(network).eval()
        for name, layer in network.named_modules():
            if isinstance(layer, SlimConv2d):
                self.network.set_submodule(name, layer.slice(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[-1]


def finish(output: Tensor, head: str, image: Tensor | None = None) -> Tensor:
    """The output layer: `sigmoid` (released), `linear` (original MBCNN), or the demonstration's `residual`.

    residual: sigmoid(0.3 * output + logit(image)), which starts near the identity; no part of the method.
    """
    if head == "linear":
        return output
    if head == "residual":
        output = 0.3 * output + torch.logit(image, eps=1 / 512)
    return output.sigmoid()
