"""What every optimiser's step of these projects consists of, whoever is trained.

A step takes a total batch as micro-batches (source, target, index, weight), the weights adding up to 1 over processes.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence

from common import distributed
from common.gan.settings import Optim

import torch
import torch.distributed as dist
from torch import Tensor, nn

Check = Callable[[dict[str, Tensor], list[nn.Parameter]], None]
"""`check(terms, parameters)` is called between a backward and its optimiser's step"""
Autocast = Callable[[], contextlib.AbstractContextManager]


def adam(parameters: Iterable[nn.Parameter], optim: Optim) -> torch.optim.Adam:
    """Adam with the field's settings and no weight decay."""
    return torch.optim.Adam(parameters, optim.lr, (optim.beta1, 0.999))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters one learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes; the identity for one process."""
    if distributed.world() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = distributed.sum_(torch.cat([g.flatten() for g in gradients])) / distributed.world()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter)


def descend(optimiser: torch.optim.Optimizer, terms: dict[str, Tensor], check: Check) -> None:
    """One step on the gradients that have been added up."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    average_gradients(parameters)
    check(terms, parameters)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


class Sums(dict):
    """Named terms of a step, added up over its micro-batches without a graph."""

    def note(self, terms: dict[str, Tensor], weight: float) -> None:
        for name, term in terms.items():
            value = term.detach() * weight
            self[name] = self[name] + value if name in self else value


def gather(value) -> list:
    """The value of every process, in their order."""
    if distributed.world() == 1:
        return [value]
    values = [None] * distributed.world()
    dist.all_gather_object(values, value)
    return values
