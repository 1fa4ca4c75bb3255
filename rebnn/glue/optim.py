"""BertAdam: Adam without bias correction, with decoupled decay and a limit on each parameter's gradient (section 4)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
            # On a CPU one after the other, so that what is in between is as large as one weight, not as all of them.
            apart = weights[0].device.type == "cpu"
            for some in [[weight] for weight in weights] if apart else [weights]:
                self._move(some, group["lr"], group["weight_decay"])

    def _move(self, weights: list[Tensor], lr: float, decay: float) -> None:
        means, squares = ([self.state[w][name] for w in weights] for name in ("mean", "square"))
        grads = clipped([w.grad for w in weights], self.clip)
        torch._foreach_lerp_(means, grads, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, grads, grads, 1 - BETAS[1])
        size = torch._foreach_sqrt(squares)
        torch._foreach_add_(size, EPSILON)
        if decay:
            torch._foreach_mul_(weights, 1 - lr * decay)
        torch._foreach_addcdiv_(weights, means, size, -lr)


def clipped(grads: list[Tensor], limit: float) -> list[Tensor]:
    """Each gradient with at most the norm `limit` (0: as it is); no gradient is changed in place."""
    if not limit:
        return grads
    norms = torch._foreach_norm(grads)
    factors = [(limit / (norm + 1e-6)).clamp(max=1) for norm in norms]
    return torch._foreach_mul(grads, factors)


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
