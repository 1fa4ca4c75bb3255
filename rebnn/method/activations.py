"""RSign and RPReLU of ReActNet (section 2.7): each one autograd function that keeps one tensor."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _RSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor | None) -> Tensor:
        shifted = x if bias is None else x + bias
        signs = shifted.sign()
        ctx.save_for_backward(shifted.abs().clamp_(max=1) if bias is None else shifted.abs_().clamp_(max=1))
        return signs

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        (distance,) = ctx.saved_tensors
        grad_x = torch.addcmul(grad, grad, distance, value=-1).mul_(2)  # G · max(0, 2 - 2|x + β|)
        return grad_x, _over_channel(grad_x) if ctx.needs_input_grad[1] else None


class _RPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bias_in: Tensor, slope: Tensor, bias_out: Tensor) -> Tensor:
        shifted = x + bias_in
        ctx.save_for_backward(shifted, slope)
        return F.prelu(shifted, slope.to(shifted.dtype)).add_(bias_out)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        shifted, slope = ctx.saved_tensors
        factor = slope.view(1, -1, 1, 1)
        # The kernel of ReLU's backward; selecting with torch.where takes nine times as long on a CPU.
        positive = torch.ops.aten.threshold_backward(grad, shifted, 0)
        grad_x = (grad * factor).addcmul_(positive, 1 - factor)
        grad_slope = positive.sub_(grad).mul_(shifted).sum((0, 2, 3)).neg_()
        return grad_x, _over_channel(grad_x), grad_slope, _over_channel(grad)


def rsign(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """sign(x + β) with the derivative of the piecewise quadratic, max(0, 2 - 2|x + β|); sign(0) = 0 (section 2.7).

    x: [B, C, H, W]; bias β: [1, C, 1, 1], or None for 0. The comparison is made in the wider of both types.
    """
    if torch.is_grad_enabled():
        return _RSign.apply(x, bias)
    return x.sign() if bias is None else (x + bias).sign_()


def rprelu(x: Tensor, bias_in: Tensor, slope: Tensor, bias_out: Tensor) -> Tensor:
    """PReLU_c(x + m1) + m2 (section 2.7).

    x: [B, C, H, W]; biases m1, m2: [1, C, 1, 1]; slope: [C].
    """
    return _RPReLU.apply(x, bias_in, slope, bias_out)


class LearnableBias(nn.Module):
    """x + β with one learned β per channel, [1, C, 1, 1], at first 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class RSign(LearnableBias):
    """sign(x + β) with a learned threshold per channel; its only state is β, as in the official `move` layers."""

    def forward(self, x: Tensor) -> Tensor:
        return rsign(x, self.bias)


class RPReLU(nn.Module):
    """PReLU between two learned biases, slope 0.25 at first; children are named as in the official code."""

    def __init__(self, channels: int):
        super().__init__()
        self.move1, self.prelu, self.move2 = LearnableBias(channels), nn.PReLU(channels), LearnableBias(channels)

    def forward(self, x: Tensor) -> Tensor:
        return rprelu(x, self.move1.bias, self.prelu.weight, self.move2.bias)


def _over_channel(grad: Tensor) -> Tensor:
    """Sum a gradient [B, C, H, W] over all but the channel, [1, C, 1, 1]."""
    return grad.sum((0, 2, 3), keepdim=True)
