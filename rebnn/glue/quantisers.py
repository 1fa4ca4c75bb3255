"""How activations and, in the pipelines' own forms, weights of BERT become 1-bit or k-bit (section 3.5).

BiBERT: plain sign, boolean attention. BiT: elastic binarisation with one learned scalar α a tensor. BinaryBERT: k-bit
activations, ternary weights and their splitting into two binary ones. G is the gradient that arrives at the result.
"""

import torch
from torch import Tensor

FLOOR = 1e-5
"""the smallest step size that an elastic binariser uses"""
TERNARY = 0.7
"""threshold of ternary weights, in units of mean|w|"""
UNTOUCHED = 1.0
"""how BiT's files store a step size that has not been initialised"""


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        edge = 1 + torch.finfo(x.dtype).eps  # the kernel's interval is open
        return torch.ops.aten.hardtanh_backward(grad, x, -edge, edge)


class _Positive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return (scores > 0).to(scores.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, scores, -1, 1)


class _Elastic(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor) -> Tensor:
        used = alpha.clamp(min=FLOOR)
        ctx.save_for_backward(x, used)
        return x.sign().mul_(used)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, alpha = ctx.saved_tensors
        grad_alpha = (grad * x.sign()).sum() / x.numel() ** 0.5
        return grad * (x.abs() <= alpha), grad_alpha.view(alpha.shape)


class _ElasticPositive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor) -> Tensor:
        used = alpha.clamp(min=FLOOR)
        ctx.save_for_backward(x, used)
        return (x / used).round_().clamp_(0, 1).mul_(used)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, alpha = ctx.saved_tensors
        level = x / alpha
        above, inside = level > 1, (level >= 0) & (level <= 1)
        slope = above + inside * (level.round() - level)
        grad_alpha = (grad * slope).sum() / x.numel() ** 0.5
        return grad * inside, grad_alpha.view(alpha.shape)


class _KBit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bits: int) -> Tensor:
        step = x.abs().amax(-1, keepdim=True).clamp_(min=FLOOR) / (2 ** (bits - 1) - 1)
        return (x / step).round_().mul_(step)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Levels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, levels: Tensor) -> Tensor:
        return levels

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def sign_clamped(x: Tensor) -> Tensor:
    """sign(x) with the gradient of clamp(x, -1, 1); sign(0) = 0. BiBERT's activations."""
    return _Sign.apply(x)


def boolean(scores: Tensor) -> Tensor:
    """1{score > 0} with gradient G·1{|score| < 1}: attention without softmax, of BiBERT."""
    return _Positive.apply(scores)


def elastic_sign(x: Tensor, alpha: Tensor) -> Tensor:
    """α·sign(x); ∂x = G·1{|x/α| ≤ 1}, ∂α = Σ G·sign(x)/√numel. alpha: scalar, used at least as 1e-5. BiT."""
    return _Elastic.apply(x, alpha)


def elastic_positive(x: Tensor, alpha: Tensor) -> Tensor:
    """α·clip(round(x/α), 0, 1) for x ≥ 0, halves to even; alpha: scalar, used at least as 1e-5. BiT.

    ∂x = G·1{0 ≤ x/α ≤ 1}, ∂α = Σ G(1{x/α > 1} + 1{0 ≤ x/α ≤ 1}(round(x/α) - x/α))/√numel.
    """
    return _ElasticPositive.apply(x, alpha)


def first_step(x: Tensor, positive: bool) -> Tensor:
    """The step size α that a site starts with, from its first input: 2·mean|x|, for values ≥ 0 twice that."""
    return (4 if positive else 2) * x.detach().abs().mean()


def k_bit(x: Tensor, bits: int) -> Tensor:
    """x in 2^bits - 1 equal steps up to the largest |x| of its last dimension, gradient G. BinaryBERT's activations."""
    return _KBit.apply(x, bits)


def binarise_bit(weight: Tensor, per_row: bool = False) -> Tensor:
    """mean|w|·sign(w - m), m the mean of the whole tensor; the scale of the whole or per row; gradient G. BiT.

    weight: [C_out, M].
    """
    with torch.no_grad():
        size = weight.abs()
        scale = size.mean(1, keepdim=True) if per_row else size.mean()
        levels = (weight - weight.mean()).sign_().mul_(scale)
    return _Levels.apply(weight, levels)


def ternarise(weight: Tensor) -> Tensor:
    """Rows in {-α, 0, α}: 0 where |w| ≤ Δ = 0.7·mean|w|, α the mean of the other |w|; gradient G. BinaryBERT.

    weight: [C_out, M].
    """
    with torch.no_grad():
        kept, scale = _ternary(weight)
        levels = weight.sign().mul_(kept).mul_(scale)
    return _Levels.apply(weight, levels)


@torch.no_grad()
def split_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two latent weights whose binary forms mean|w|·sign(w) add up to the ternary one, and they to w. BinaryBERT.

    Row by row: where the ternary weight is not 0, shares a and 1 - a of w; where it is 0, w + c and -c for w > 0, c and
    w - c otherwise. a makes both scales equal, c makes their sum the ternary scale. weight: [C_out, M].
    """
    kept, scale = _ternary(weight)
    up = ~kept & (weight > 0)
    down = ~kept & ~up
    size = weight.abs()
    total = lambda where: (size * where).sum(1, keepdim=True)
    a = 0.5 + (total(down) - total(up)) / (2 * total(kept).clamp(min=FLOOR**2))
    zeros = (~kept).sum(1, keepdim=True)
    # Where nothing is 0 there is no room for c: each half takes half of the row, and the scales agree by themselves.
    c = (scale * weight.shape[1] - size.sum(1, keepdim=True)) / (2 * zeros.clamp(min=1))
    first = torch.where(kept, a * weight, torch.where(up, weight + c, c.expand_as(weight)))
    return first, weight - first


def _ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Which weights are not 0 in the ternary form, and its scale [C_out, 1]."""
    size = weight.abs()
    kept = size > TERNARY * size.mean(1, keepdim=True)
    return kept, (size * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
