"""The low-rank oriented sparse granularity: which columns of Ŵ matter, how many stay, and when (sections 2.6, 2.7).

A column is a Winograd position (`position`, mask [n]) or an input channel's position (`channel`, mask [C_i, n]; with
`channel_balanced` every position keeps equally many channels). `element` removes single weights (mask [C_o, C_i, n]),
as unstructured Winograd pruning does: the control that columns are compared with. True in a mask means kept. The score
of the paper is not known: every one here is a named switch.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["position", "channel", "channel_balanced", "element"]
Score = Literal["taylor", "taylor_abs", "taylor2", "l2", "l1", "l2_comp", "gram"]
BY_GRADIENT = ("taylor", "taylor_abs", "taylor2")


def importance(
    score: Score,
    granularity: Granularity,
    weight: Tensor,
    grad: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """How much each column matters: [n] for positions, [C_i, n] for channels, [C_o, C_i, n] for elements (section 2.6).

    weight, grad: Ŵ and D = ∂L/∂Ŵ [C_o, C_i, n]; gain [n]: `position_gain`, for l2_comp only. With t = Ŵ ⊙ D, |Σ t| is
    the first-order change of the loss if the column is zeroed. taylor* and l2_comp do not depend on how the transforms
    are scaled; l1 and l2 do, which is harmless for m = 2 and wrong for m = 4.
    """
    if score == "taylor":
        return over_members(weight * grad, granularity).abs()
    if score == "taylor_abs":
        return over_members((weight * grad).abs(), granularity)
    if score == "taylor2":
        return over_members((weight * grad).square(), granularity)
    if score == "l1":
        return over_members(weight.abs(), granularity)
    if score in ("l2", "l2_comp"):
        norm = over_members(weight.square(), granularity).sqrt()
        return norm if score == "l2" else norm * gain
    raise ValueError(f"{score} is not a score of weights and gradients")


def over_members(values: Tensor, granularity: Granularity) -> Tensor:
    """Sum over the members of each column: [C_o, C_i, n] -> [n], [C_i, n], or as it is for elements."""
    if granularity == "element":
        return values
    return values.sum((0, 1) if granularity == "position" else 0)


def column_sums(weight: Tensor, grad: Tensor) -> Tensor:
    """Σ_o t of each input channel's position, [C_i, n]: linear in D, so parts of a batch may be added up."""
    return torch.einsum("ocp,ocp->cp", weight, grad)


def taylor(sums: Tensor, granularity: Granularity) -> Tensor:
    """|Σ t| of a column from `column_sums`: [n] or [C_i, n]."""
    return (sums.sum(0) if granularity == "position" else sums).abs()


def gram(p: Tensor, q: Tensor, in_channels: int, view: str, granularity: Granularity) -> Tensor:
    """‖P q_j‖ = sqrt(q_jᵀ (PᵀP) q_j) of each column without forming P·Q: s²(R + C) products in place of sRC.

    P [R, s], Q [s, C] -> [n] or [C_i, n]. Equals l2 of P·Q.
    """
    if view == "filter":
        square = ((p.T @ p @ q) * q).sum(0).view(in_channels, -1)
    else:
        by_channel = p.view(-1, in_channels, p.shape[1])  # C_o, C_i, s
        grams = torch.einsum("ocs,oct->cst", by_channel, by_channel)
        square = torch.einsum("sp,cst,tp->cp", q, grams, q)
    square = square.sum(0) if granularity == "position" else square
    return square.clamp(min=0).sqrt()


def position_gain(at: Sequence[Tensor], bt: Sequence[Tensor]) -> Tensor:
    """‖Bᵀ row‖·‖Aᵀ column‖, multiplied over the axes: [n]; what a product contributes for white input (l2_comp)."""
    d, h, w = (b.norm(dim=1) * a.norm(dim=0) for a, b in zip(at, bt))
    return torch.einsum("p,q,r->pqr", d, h, w).flatten()


def kept_count(columns: int, sparsity: float) -> int:
    """max(1, ⌊N(1 − ρ) + ½⌋) in double precision; 1e-9 undoes what a float32 ρ has lost (section 2.7)."""
    return max(1, math.floor(columns * (1 - sparsity) + 0.5 + 1e-9))


def cubic_sparsity(step: float, first: float, last: float, begin: float, end: float) -> float:
    """ρ(t) = ρ_f + (ρ_0 − ρ_f)(1 − clip((t − t_b)/(t_e − t_b), 0, 1))³ (section 2.7)."""
    if end <= begin:
        return last if step >= end else first
    left = 1 - min(1.0, max(0.0, (step - begin) / (end - begin)))
    return last + (first - last) * left**3


def keep_largest(score: Tensor, count: int, dim: int | None = None) -> Tensor:
    """Mask of the `count` largest scores of the whole tensor, or along dim; ties keep the lower flat index.

    Nothing is read back from the device.
    """
    flat = score.flatten() if dim is None else score
    axis = 0 if dim is None else dim
    best = torch.sort(flat, dim=axis, descending=True, stable=True).indices.narrow(axis, 0, count)
    return torch.zeros_like(flat, dtype=torch.bool).scatter(axis, best, True).view_as(score)


def layer_mask(score: Tensor, sparsity: float, granularity: Granularity) -> Tensor:
    """The mask of one layer at column sparsity ρ; balanced keeps the same number of channels at every position."""
    if granularity == "channel_balanced":
        return keep_largest(score, kept_count(score.shape[0], sparsity), dim=0)
    return keep_largest(score, kept_count(score.numel(), sparsity))


def global_masks(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Masks of all layers ranked jointly by S/‖S‖₂, each layer keeping at least its best column (scope `global`)."""
    sizes = [score.numel() for score in scores]
    relative = torch.cat([score.flatten() / score.norm().clamp(min=torch.finfo(score.dtype).tiny) for score in scores])
    first = torch.cat([keep_largest(part, 1) for part in relative.split(sizes)])
    relative = torch.where(first, torch.inf, relative)
    mask = keep_largest(relative, max(len(sizes), kept_count(sum(sizes), sparsity)))
    return [part.view_as(score) for part, score in zip(mask.split(sizes), scores)]


def expand(mask: Tensor) -> Tensor:
    """A mask in the shape that multiplies Ŵ [C_o, C_i, n]: [1, 1, n], [1, C_i, n] or itself."""
    return mask if mask.ndim == 3 else mask.view(1, -1, mask.shape[-1])


def column_mask(mask: Tensor) -> Tensor:
    """[n] or [C_i, n]; a column of which any element is kept has to be computed."""
    return mask.any(0) if mask.ndim == 3 else mask


def kept_positions(mask: Tensor) -> Tensor:
    """Positions of which any column is kept, ascending, int64."""
    return mask.view(-1, mask.shape[-1]).any(0).nonzero()[:, 0]


def kept_channels(mask: Tensor) -> Tensor:
    """Kept channels of every position, ascending, [n, k], of a mask [C_i, n] that keeps k everywhere.

    Errors: ValueError when positions keep different numbers.
    """
    counts = mask.sum(0)
    if not bool((counts == counts[0]).all()):
        raise ValueError("positions keep different numbers of channels; the mask is not balanced")
    return mask.T.nonzero()[:, 1].view(mask.shape[1], -1)


def kept_columns(mask: Tensor, in_channels: int) -> int:
    """Columns to be computed, counted over C_i x n."""
    return int(column_mask(mask).sum()) * (in_channels if mask.ndim == 1 else 1)


def product_macs(columns: int, out_channels: int, tiles: int) -> int:
    """Multiply-adds of the product stage: kept columns (over C_i x n) · C_o · P (section 2.9)."""
    return columns * out_channels * tiles


def tile_rank(mask: Tensor, at: Sequence[Tensor]) -> int:
    """Rank of A₃[:, J]: how many of a tile's m³ outputs are independent with the kept positions J (section 9)."""
    a3 = torch.einsum("ip,jq,kr->ijkpqr", *(matrix.double().cpu() for matrix in at))
    a3 = a3.reshape(-1, mask.shape[-1])
    return int(torch.linalg.matrix_rank(a3[:, kept_positions(mask).cpu()]))


class StraightThroughMask(torch.autograd.Function):
    """M ⊙ Ŵ forward, D unmasked backward, so that pruned columns keep moving and can return (section 2.5)."""

    @staticmethod
    def forward(ctx, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
