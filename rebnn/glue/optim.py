"""BertAdam: Adam without bias correction, with decoupled decay and a limit on each parameter's gradient (section 4)."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from rebnn.method.binariser import BLOCK

BETAS, EPSILON = (0.9, 0.999), 1e-6


class BertAdam(torch.optim.Optimizer):
    """m ← 0.9 m + 0.1 g, v ← 0.999 v + 0.001 g², w ← w - lr·(m / (√v + 1e-6) + weight_decay·w).

    clip: largest norm of one parameter's gradient g, 0 for none. A group's lr is set by the caller at every step.
    """

    def __init__(self, groups: Iterable, lr: float, weight_decay: float = 0.01, clip: float = 1.0):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.clip = clip

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step with the gradients that are there."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] = {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
            grads = [w.grad for w in weights]
            means, squares = ([self.state[w][name] for w in weights] for name in ("mean", "square"))
            parts = [weights, grads, means, squares, limits(grads, self.clip)]
            if weights[0].device.type == "cpu":  # part by part, so that what is in between stays in a core's cache
                for part in in_blocks(*parts):
                    _move(*([tensor] for tensor in part), group["lr"], group["weight_decay"])
            else:
                _move(*parts, group["lr"], group["weight_decay"])


def _move(weights: list, grads: list, means: list, squares: list, factors: list, lr: float, decay: float) -> None:
    """The equations of BertAdam for tensors that belong together, with gradients times their factors."""
    grads = torch._foreach_mul(grads, factors)
    torch._foreach_lerp_(means, grads, 1 - BETAS[0])
    torch._foreach_mul_(squares, BETAS[1])
    torch._foreach_addcmul_(squares, grads, grads, 1 - BETAS[1])
    size = torch._foreach_sqrt(squares)
    torch._foreach_add_(size, EPSILON)
    if decay:
        torch._foreach_mul_(weights, 1 - lr * decay)
    torch._foreach_addcdiv_(weights, means, size, -lr)


def limits(grads: list[Tensor], limit: float) -> list[Tensor]:
    """The factor, a scalar, that gives each gradient at most the norm `limit` (0: 1)."""
    if not limit:
        return [grad.new_ones(()) for grad in grads]
    return [(limit / (norm + 1e-6)).clamp(max=1) for norm in torch._foreach_norm(grads)]


def in_blocks(*lists: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Walk through lists of tensors of equal sizes, or scalars, and give views of BLOCK numbers of each."""
    for tensors in zip(*lists):
        number = -(-tensors[0].numel() // BLOCK)
        views = ([t] * number if t.ndim == 0 else t.view(-1).split(BLOCK) for t in tensors)
        yield from zip(*views)


def warm_linear(step: int, total: int, warmup: float) -> float:
    """Factor of the learning rate at step 0 … total - 1: up to 1 over the share `warmup`, then down towards 0."""
    share = step / total
    if share < warmup:
        return share / warmup
    return max(0.0, (share - 1) / (warmup - 1)) if warmup < 1 else 1.0


def groups(network: nn.Module, lr: float, step_lr: float, weight_decay: float) -> list[dict]:
    """Weights with decay; biases, LayerNorm and scales without; BiT's step sizes with a rate of their own.

    Each group has its highest rate under `top`.
    """
    decayed, plain, steps = [], [], []
    for name, parameter in network.named_parameters():
        last = name.rpartition(".")[2]
        if "clip_" in last:
            steps.append(parameter)
        elif last in ("bias", "scaling_factor") or "LayerNorm" in name:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    kinds = [(decayed, lr, weight_decay), (plain, lr, 0.0), (steps, step_lr, 0.0)]
    return [{"params": p, "lr": rate, "top": rate, "weight_decay": decay} for p, rate, decay in kinds if p]
