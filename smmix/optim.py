"""AdamW's parameter groups and its schedule, as the official code computes them (section 4)."""

import math

import torch
from torch import nn

from smmix.config import Config


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Decayed parameters, and the rest: vectors, biases and what the network's no_weight_decay() names."""
    names = no_decay(network)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return [
        {"params": [p for name, p in parameters.items() if name not in names], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters.items() if name in names], "weight_decay": 0.0},
    ]


def no_decay(network: nn.Module) -> set[str]:
    """Names of the parameters without weight decay."""
    excluded = set(network.no_weight_decay())
    return {n for n, p in network.named_parameters() if p.ndim <= 1 or n.endswith(".bias") or n in excluded}


def adamw(config: Config, network: nn.Module) -> torch.optim.AdamW:
    """The optimiser of a config."""
    o = config.optim
    return torch.optim.AdamW(parameter_groups(network, o.weight_decay), lr=base_rate(config), betas=o.betas, eps=o.eps)


def base_rate(config: Config) -> float:
    """The learning rate at the top of the schedule, scaled with the total batch."""
    o = config.optim
    return o.lr * config.data.batch_size / o.lr_batch if o.lr_batch else o.lr


def learning_rate(epoch: int, epochs: int, base: float, minimum: float, warmup: int, warmup_rate: float) -> float:
    """The rate of an epoch (0-based): linear warm-up, then a cosine over all epochs.

    The official loop steps its schedule after an epoch with that epoch's number, so epoch e trains with the value for
    e - 1, and the first two epochs with the first value.
    """
    t = max(epoch - 1, 0)
    if t < warmup:
        return warmup_rate + t * (base - warmup_rate) / warmup
    return minimum + 0.5 * (base - minimum) * (1 + math.cos(math.pi * t / epochs))
