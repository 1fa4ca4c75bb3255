"""The low-rank Winograd transformation: Ŵ = W₀ + P·Q, two small trainable tensors for one large (sections 2.3 to 2.5).

A reconstruction: the paper's abstract says that the large tensor is decoupled into two small ones; what they add to
(`residual`), how the tensor becomes a matrix (`view`) and the rank s are choices made here and named as switches.
"""

from typing import Literal

import torch
from torch import Tensor

View = Literal["kernel", "filter"]


def matrix_shape(shape: tuple[int, int, int], view: View) -> tuple[int, int]:
    """R x C of the matrix: kernel C_oC_i x n (a column is a position), filter C_o x C_i·n (one channel's position)."""
    out_channels, in_channels, n = shape
    return (out_channels * in_channels, n) if view == "kernel" else (out_channels, in_channels * n)


def matricise(weight: Tensor, view: View) -> Tensor:
    """Ŵ [C_o, C_i, n] as its matrix [R, C]; the filter view's column index is c·n + p."""
    return weight.reshape(matrix_shape(tuple(weight.shape), view))


def compose(p: Tensor, q: Tensor, shape: tuple[int, int, int], base: Tensor | None = None) -> Tensor:
    """Ŵ = W₀ + P·Q as [C_o, C_i, n]; P [R, s], Q [s, C], W₀ [C_o, C_i, n] or None for zero (section 2.4)."""
    if base is None:
        return (p @ q).view(shape)
    return torch.addmm(base.reshape(p.shape[0], q.shape[1]), p, q).view(shape)


def svd_factors(weight: Tensor, view: View, rank: int) -> tuple[Tensor, Tensor]:
    """P = U√Σ [R, s] and Q = √ΣVᵀ [s, C] of the s largest singular values; zeros fill up a rank beyond min(R, C)."""
    matrix = matricise(weight, view)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    p, q = u[:, :rank] * root, root[:, None] * vh[:rank]
    missing = rank - len(root)
    if missing > 0:
        p = torch.cat([p, p.new_zeros(len(p), missing)], 1)
        q = torch.cat([q, q.new_zeros(missing, q.shape[1])])
    return p, q


def kernel_factors(kernel: Tensor, g: tuple[Tensor, Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """P = [𝒦 0] [C_oC_i, s] and Q = [G₃ᵀ; 0] [s, n] for s ≥ 27, which hold every transformed kernel exactly.

    rank 𝒲 ≤ 27 because 𝒲 = 𝒦 G₃ᵀ (section 2.3).
    """
    flat = kernel.flatten(2).flatten(0, 1)
    taps = flat.shape[1]
    transform = torch.einsum("ai,bj,dk->ijkabd", *g).reshape(taps, -1)
    p, q = flat.new_zeros(len(flat), rank), flat.new_zeros(rank, transform.shape[1])
    p[:, :taps], q[:taps] = flat, transform
    return p, q


def effective_gradient(grad: Tensor, g: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(GGᵀ)^{⊗3} D, by which a spatial step −η ∂K moves Ŵ; D and result [C_o, C_i, n] (section 2.5)."""
    split = grad.unflatten(2, [len(matrix) for matrix in g])
    squares = [matrix @ matrix.T for matrix in g]
    return torch.einsum("ocpqr,ap,bq,dr->ocabd", split, *squares).flatten(2)
