"""What a binary network costs: parameters, multiply-adds and OPs as binary papers count them (section 6)."""

import copy
import math
from typing import NamedTuple

import torch
from torch import nn

from rebnn.method import BinaryConv2d
from rebnn.models.layers import RealConv2d

WORD = 64
"""binary multiply-adds that count as one operation (OPs = BOPs / 64 + FLOPs)"""


class Cost(NamedTuple):
    """Counts for one image; storage in bytes, 1 bit a binary weight and 4 bytes a real parameter."""

    parameters: int
    binary_parameters: int
    scales: int
    binary_macs: int
    real_macs: int

    @property
    def real_parameters(self) -> int:
        return self.parameters - self.binary_parameters

    @property
    def ops(self) -> float:
        return self.binary_macs / WORD + self.real_macs

    @property
    def storage(self) -> float:
        return self.binary_parameters / 8 + 4 * self.real_parameters


def binary_convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that step 2 makes binary, by module name, in the order of the forward pass.

    They are the BinaryConv2d of any network, and what ours have in their place in step 1.
    """
    return {name: module for name, module in network.named_modules() if isinstance(module, (BinaryConv2d, RealConv2d))}


def count(network: nn.Module, size: tuple[int, int], channels: int = 3) -> Cost:
    """The cost of one image [channels, *size]; layers are counted by their shapes on the meta device.

    Real multiply-adds are those of convolutions and linear layers; biases, BN, activations and pooling are free.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    binary = set(binary_convolutions(shadow).values())
    macs = {True: 0, False: 0}

    def add(module: nn.Module, _, output: torch.Tensor) -> None:
        macs[module in binary] += math.prod(output.shape[2:]) * module.weight.numel()

    for module in shadow.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    with torch.no_grad():
        shadow(torch.empty(1, channels, *size, device="meta"))
    return Cost(
        sum(p.numel() for p in network.parameters()),
        sum(module.weight.numel() for module in binary),
        sum(p.numel() for name, p in network.named_parameters() if name.endswith("scaling_factor")),
        macs[True],
        macs[False],
    )
