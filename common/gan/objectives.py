"""Adversarial objectives on maps of logits: what discriminator and generator minimise, means over all elements."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import InputError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("lsgan", "vanilla", "hinge", "wgangp")


def real_loss(mode: str, logits: Tensor) -> Tensor:
    """The discriminator's loss on real images. Errors: InputError for an unknown mode."""
    return _loss(mode, logits, 1)


def fake_loss(mode: str, logits: Tensor) -> Tensor:
    """The discriminator's loss on generated images."""
    return _loss(mode, logits, -1)


def generator_loss(mode: str, logits: Tensor) -> Tensor:
    """The generator's loss on its own images: the real form, for hinge without the hinge."""
    return -logits.mean() if mode == "hinge" else _loss(mode, logits, 1)


def _loss(mode: str, logits: Tensor, sign: int) -> Tensor:
    if mode == "lsgan":
        return (logits - max(0, sign)).square().mean()
    if mode == "vanilla":
        return F.softplus(-sign * logits).mean()
    if mode == "hinge":
        return F.relu(1 - sign * logits).mean()
    if mode == "wgangp":
        return -sign * logits.mean()
    raise InputError(f"adversarial objective {mode}: not one of {', '.join(MODES)}")


def full(x: Tensor) -> Tensor:
    """The tensor in single precision at least: losses are never computed in less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """For the time of the block, gradients pass through the networks but none is computed for their parameters."""
    before = [(p, p.requires_grad) for network in networks for p in network.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
