"""The quantiser with learned clipping bounds (section 2.1), and LSQ and DoReFa under the same interface.

A quantiser of b bits has n = 2^b - 1 steps between n + 1 levels. It normalises its input so that the levels lie at
0, 1/n, …, 1; that is all the scratcher needs to know of it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

BLOCK = 1 << 17  # elements that a chain of elementwise passes works on at once, so that they stay in a core's cache


class Grid(NamedTuple):
    """Q = scale · code + offset, code = round(n · clamp((x - lower) / (upper - lower), 0, 1)); 0-dim tensors and n."""

    lower: Tensor
    upper: Tensor
    n: int
    scale: Tensor
    offset: Tensor


def levels(position: Tensor, n: int) -> Tensor:
    """The level 0, 1, …, n (as float) nearest to a normalised position; half-way goes to the even one."""
    return position.clamp(0, 1).mul_(n).round_()


def nearest(x: Tensor) -> Tensor:
    """round(x) whose gradient is that of the identity (straight-through estimator)."""
    return x + (x.round() - x).detach()


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last where x is stored so, otherwise contiguous."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Pieces of x, dense in its `memory_format`, as one-dimensional views in the order of memory.

    On a CPU they fit into the cache, elsewhere there is one.
    """
    flat = (x if memory_format(x) is torch.contiguous_format else x.permute(0, 2, 3, 1)).view(-1)
    return flat.split(BLOCK) if x.is_cpu else (flat,)


class WeightFunction(torch.autograd.Function):
    """Q(w) = 2 (round(n·clamp(ŵ, 0, 1)) / n - 1/2), ŵ = (w - l) / (u - l); gradients of section 2.1.

    What lies outside the closed interval [l, u] passes no gradient, neither to w nor to the bounds.
    """

    @staticmethod
    def forward(ctx, w: Tensor, lower: Tensor, upper: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(w, lower, upper)
        return levels((w - lower).div_(upper - lower), n).div_(n).sub_(0.5).mul_(2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        w, lower, upper = ctx.saved_tensors
        span = upper - lower
        position = (w - lower).div_(span)
        slope = torch.where(position.clamp(0, 1).eq_(position).bool(), grad, 0).mul_(2 / span)
        total, moment = slope.sum(), (slope * position).sum()
        return slope, moment - total, -moment, None


class ActivationFunction(torch.autograd.Function):
    """n·Q(x) = round(n·clamp(x̂, 0, 1)), x̂ = (x - l) / (u - l), in one function that keeps x alone for backward.

    The factor 1/n is left to the weights, which are fewer. Gradients as `WeightFunction`, without the 2. Both passes
    work block by block, so that their temporaries never leave the cache.
    """

    @staticmethod
    def forward(ctx, x: Tensor, lower: Tensor, upper: Tensor, n: int) -> Tensor:
        x = x.contiguous(memory_format=memory_format(x))
        ctx.save_for_backward(x, lower, upper)
        ctx.n = n
        span, code = upper - lower, torch.empty_like(x)
        for source, out in zip(blocks(x), blocks(code)):
            torch.sub(source, lower, out=out).div_(span).clamp_(0, 1).mul_(n).round_()
        return code

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, lower, upper = ctx.saved_tensors
        span, slope = upper - lower, torch.empty_like(x)
        grad = grad.contiguous(memory_format=memory_format(x))
        factor, totals, moments = ctx.n / span, [], []
        # hardtanh's gradient has an open interval; these are the next numbers outside the closed [0, 1].
        limits = -torch.finfo(x.dtype).tiny, 1 + torch.finfo(x.dtype).eps
        for source, given, out in zip(blocks(x), blocks(grad), blocks(slope)):
            position = torch.sub(source, lower).div_(span)
            torch.ops.aten.hardtanh_backward.grad_input(given, position, *limits, grad_input=out)
            totals.append(out.sum(dtype=lower.dtype))
            moments.append(position.mul_(out).sum(dtype=lower.dtype))
            out.mul_(factor)
        moment = torch.stack(moments).sum() * factor
        return slope, moment - torch.stack(totals).sum() * factor, -moment, None


class WeightQuantiser(nn.Module):
    """Quantises the weights of one layer; subclasses define the positions of the levels and the values they stand for.

    bits: 1 to 8.
    """

    def __init__(self, bits: int):
        super().__init__()
        self.bits, self.n = bits, 2**bits - 1

    def initialise(self, w: Tensor) -> None:
        """Set what is learned from the weights of the start."""

    def normalise(self, w: Tensor) -> Tensor:
        """Positions, in [0, 1] where nothing is clipped."""
        raise NotImplementedError

    def restore(self, position: Tensor, w: Tensor) -> Tensor:
        """The weights at these positions, the inverse of `normalise(w)`."""
        raise NotImplementedError

    def grid(self) -> tuple[Tensor, Tensor]:
        """scale and offset with Q = scale · level + offset."""
        raise NotImplementedError


class ActivationQuantiser(nn.Module):
    """Quantises the input of one layer: Q(x) = factor · forward(x)."""

    factor = 1.0

    def __init__(self, bits: int):
        super().__init__()
        self.bits, self.n = bits, 2**bits - 1

    def initialise(self, x: Tensor) -> None:
        """Set what is learned from a batch of inputs."""

    def grid(self) -> Grid:
        """The constants of an integer implementation."""
        raise NotImplementedError


def unset() -> nn.Parameter:
    """A learned scalar that has not been initialised: NaN, which no computation can hide."""
    return nn.Parameter(torch.full((), math.nan))


class BoundedWeight(WeightQuantiser):
    """The paper's: bounds l and u are learned, values lie in [-1, 1] whatever the bounds (section 2.1)."""

    def __init__(self, bits: int):
        super().__init__(bits)
        self.upper, self.lower = unset(), unset()

    @torch.no_grad()
    def initialise(self, w: Tensor) -> None:
        """u = 3 std(w), l = -3 std(w)."""
        self.upper.copy_(3 * w.std())
        self.lower.copy_(-3 * w.std())

    def normalise(self, w: Tensor) -> Tensor:
        return (w - self.lower).div_(self.upper - self.lower)

    def restore(self, position: Tensor, w: Tensor) -> Tensor:
        return self.lower + position * (self.upper - self.lower)

    def forward(self, w: Tensor) -> Tensor:
        return WeightFunction.apply(w, self.lower, self.upper, self.n)

    def grid(self) -> tuple[Tensor, Tensor]:
        return torch.full_like(self.upper, 2 / self.n), torch.full_like(self.upper, -1)


class BoundedActivation(ActivationQuantiser):
    """The paper's: bounds l and u are learned, values lie in [0, 1] (section 2.1)."""

    def __init__(self, bits: int):
        super().__init__(bits)
        self.upper, self.lower = unset(), unset()
        self.factor = 1 / self.n

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """u = 3 std(x) / sqrt(1 - 2/π), in this order of operations; l = min(x)."""
        self.upper.copy_(x.float().std() / math.sqrt(1 - 2 / math.pi) * 3.0)
        self.lower.copy_(x.min())

    def forward(self, x: Tensor) -> Tensor:
        return ActivationFunction.apply(x, self.lower, self.upper, self.n)

    def grid(self) -> Grid:
        scale, offset = torch.full_like(self.upper, self.factor), torch.zeros_like(self.upper)
        return Grid(self.lower.detach(), self.upper.detach(), self.n, scale, offset)


class ScaleGradient(torch.autograd.Function):
    """The identity, with its gradient times a number."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.factor, None


class StepWeight(WeightQuantiser):
    """LSQ (Esser and others, 2020): Q(w) = s · round(clamp(w / s, -2^(b-1), 2^(b-1) - 1)), s learned."""

    def __init__(self, bits: int):
        super().__init__(bits)
        self.low = 2 ** (bits - 1)
        self.step = unset()

    @torch.no_grad()
    def initialise(self, w: Tensor) -> None:
        """s = 2 mean|w| / sqrt(2^(b-1) - 1)."""
        self.step.copy_(2 * w.abs().mean() / math.sqrt(max(1, self.low - 1)))

    def normalise(self, w: Tensor) -> Tensor:
        return (w / self.step + self.low).div_(self.n)

    def restore(self, position: Tensor, w: Tensor) -> Tensor:
        return (position * self.n - self.low) * self.step

    def forward(self, w: Tensor) -> Tensor:
        step = ScaleGradient.apply(self.step, 1 / math.sqrt(w.numel() * max(1, self.low - 1)))
        return nearest((w / step).clamp(-self.low, self.low - 1)) * step

    def grid(self) -> tuple[Tensor, Tensor]:
        return self.step.detach(), -self.low * self.step.detach()


class StepActivation(ActivationQuantiser):
    """LSQ for inputs: levels from 0 where the first batch has no negative value, else from -2^(b-1)."""

    def __init__(self, bits: int):
        super().__init__(bits)
        self.step = unset()
        self.register_buffer("low", torch.zeros(()))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """s = 2 mean|x| / sqrt(highest level)."""
        self.low.copy_((x.min() < 0) * 2.0 ** (self.bits - 1))
        self.step.copy_(2 * x.abs().mean() / (self.n - self.low).clamp(min=1).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        # The number of values is that of one sample, so that the batch size has no say.
        high = self.n - self.low
        step = ScaleGradient.apply(self.step, 1 / (x[0].numel() * high.clamp(min=1)).sqrt())
        return nearest(torch.minimum(torch.maximum(x / step, -self.low), high)) * step

    def grid(self) -> Grid:
        step = self.step.detach()
        lower = -self.low * step
        return Grid(lower, lower + self.n * step, self.n, step, lower)


class TanhWeight(WeightQuantiser):
    """DoReFa (Zhou and others, 2016): positions tanh(w) / (2 max|tanh w|) + 1/2, values in [-1, 1]; nothing learned."""

    def normalise(self, w: Tensor) -> Tensor:
        squashed = torch.tanh(w)
        return squashed / (2 * squashed.detach().abs().max()) + 0.5

    def restore(self, position: Tensor, w: Tensor) -> Tensor:
        return torch.atanh((2 * position - 1) * torch.tanh(w).abs().max())

    def forward(self, w: Tensor) -> Tensor:
        return 2 * nearest(self.n * self.normalise(w)) / self.n - 1

    def grid(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(2 / self.n, dtype=torch.float64), torch.tensor(-1.0)


class UnitActivation(ActivationQuantiser):
    """DoReFa for inputs: round(n · clamp(x, 0, 1)) / n."""

    def forward(self, x: Tensor) -> Tensor:
        return nearest(self.n * x.clamp(0, 1)) / self.n

    def grid(self) -> Grid:
        zero, one = torch.zeros(()), torch.ones((), dtype=torch.float64)
        return Grid(zero, one, self.n, one / self.n, zero)


class Untouched(nn.Module):
    """32 bits: the identity."""

    bits, factor = 32, 1.0

    def initialise(self, x: Tensor) -> None:
        """Nothing is learned."""

    def forward(self, x: Tensor) -> Tensor:
        return x


QUANTISERS: dict[str, tuple[type[WeightQuantiser], type[ActivationQuantiser]]] = {
    "lts": (BoundedWeight, BoundedActivation),
    "lsq": (StepWeight, StepActivation),
    "dorefa": (TanhWeight, UnitActivation),
}
