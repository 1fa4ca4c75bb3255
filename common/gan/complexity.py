"""Multiply-adds of a generator in the papers' convention, beside the true ones of common/cost.py."""

from common import cost

import torch
from torch import Tensor, nn


def papers_macs(network: nn.Module, *inputs: Tensor) -> int:
    """What torchprofile counts and the papers print.

    A transposed convolution counts output elements · C_in · k², stride² too many; an affine normalisation one for each
    output element; all else as `common.cost.macs`.
    """
    extra, hooks = [], []

    def transposed(module: nn.ConvTranspose2d, inputs: tuple[Tensor], output: Tensor) -> None:
        taps = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        true = inputs[0].numel() * module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        extra.append(output.numel() * taps - true)

    def affine(module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        extra.append(output.numel())

    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            hooks.append(module.register_forward_hook(transposed))
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            hooks.append(module.register_forward_hook(affine))
    try:
        true = cost.macs(network, *inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return true + sum(extra)


def complexity(network: nn.Module, size: int = 256) -> dict[str, int]:
    """params, macs and papers_macs of one RGB image of size x size; the network is left as it is."""
    image = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    macs = {"macs": cost.macs(network, image), "papers_macs": papers_macs(network, image)}
    return {"params": cost.parameters(network).total, **macs}
