"""The Winograd convolution as one differentiable function of an input and a Winograd-domain weight."""

import contextlib

from common.errors import InputError

import torch
from torch import Tensor

from winograd3d.method import (
    Axes,
    crop,
    input_transform,
    input_transform_adjoint,
    inverse_transform,
    inverse_transform_adjoint,
    output_size,
    pad_to_tiles,
    tensors,
    tile_counts,
)

Triple = tuple[int, int, int]


def convolve(
    x: Tensor, weight: Tensor, axes: Axes, tile: Triple, padding: Triple, product_dtype: torch.dtype
) -> Tensor:
    """y = A₃[Σ_c U ⊙ B₃ d] of every tile: x [N, C_i, D, H, W], U [C_o, C_i, n] -> [N, C_o, D', H', W'] (section 2.2).

    Products are computed in `product_dtype`, transforms in that of x.
    """
    counts = tile_counts(x.shape[2:], padding, tile)
    v = input_transform(pad_to_tiles(x, padding, tile), axes.BT, tile)
    u = weight.to(product_dtype).permute(2, 0, 1).contiguous()
    products = torch.bmm(u, v.to(product_dtype)).to(x.dtype)
    return crop(inverse_transform(products, axes.AT, len(x), counts), output_size(x.shape[2:], padding))


class WinogradConvolution(torch.autograd.Function):
    """`convolve` that keeps x and U for backward and transforms x again, because V is 8 times larger (section 2.5)."""

    @staticmethod
    def forward(ctx, x, weight, axes: Axes, tile: Triple, padding: Triple, product_dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = axes, tile, padding, product_dtype
        return convolve(x, weight, axes, tile, padding, product_dtype).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        axes, tile, padding, dtype = ctx.how
        counts = tile_counts(x.shape[2:], padding, tile)
        grad_products = inverse_transform_adjoint(grad, axes.AT, counts).to(dtype)
        padded = pad_to_tiles(x, padding, tile)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            u = weight.to(dtype).permute(2, 1, 0).contiguous()
            grad_v = torch.bmm(grad_products.mT, u.mT).to(x.dtype).mT
            grad_x = input_transform_adjoint(grad_v, axes.BT, tile, tuple(padded.shape))
            inside = [slice(p, p + s) for p, s in zip(padding, x.shape[2:])]
            grad_x = grad_x[(..., *inside)].contiguous()
        if ctx.needs_input_grad[1]:
            v = input_transform(padded, axes.BT, tile).to(dtype)
            grad_weight = torch.bmm(grad_products, v.mT).to(weight.dtype).permute(1, 2, 0)
        return grad_x, grad_weight, None, None, None, None


def winograd_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tile: Triple = (2, 2, 2),
    padding: Triple = (0, 0, 0),
    axes: Axes | None = None,
) -> Tensor:
    """Convolve with a Winograd-domain weight [C_o, C_i, n]: [N, C_i, D, H, W] -> [N, C_o, D', H', W'], stride 1.

    axes: the transforms on x's device, in its dtype; Lavin's by default. Under autocast transforms, sums and bias stay
    in fp32, and the products are computed in the lower type where every m ≤ 2: larger tiles amplify rounding too much
    (section 12.5). Errors: InputError for an input that the layer does not fit.
    """
    _check_input(x, weight, padding)
    axes = axes or tensors(tile, "lavin", x.dtype, x.device)
    kind, result, product = x.device.type, x.dtype, x.dtype
    if kind != "meta" and torch.is_autocast_enabled(kind):
        result = torch.get_autocast_dtype(kind)
        x, weight, product = x.float(), weight.float(), result if max(tile) <= 2 else torch.float32
    with full_precision(kind):
        compute = WinogradConvolution.apply if torch.is_grad_enabled() else convolve
        y = compute(x, weight, axes, tile, padding, product)
        return (y if bias is None else y + bias[:, None, None, None]).to(result)


def full_precision(device: str) -> contextlib.AbstractContextManager:
    """A context without autocast, where the device knows autocast at all."""
    return torch.autocast(device, enabled=False) if device != "meta" else contextlib.nullcontext()


def _check_input(x: Tensor, weight: Tensor, padding: Triple) -> None:
    if x.ndim != 5 or x.shape[1] != weight.shape[1]:
        raise InputError(f"the layer got an input {[*x.shape]}; it takes [N, {weight.shape[1]}, D, H, W]")
    if min(output_size(x.shape[2:], padding)) < 1:
        raise InputError(
            f"an input of {[*x.shape[2:]]} samples with padding {[*padding]} is smaller than the kernel 3x3x3"
        )
