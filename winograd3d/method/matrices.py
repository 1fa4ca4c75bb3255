"""Winograd's minimal filtering F(m, r) in exact rationals: y = Aᵀ[(G g) ⊙ (Bᵀ d)] has m outputs of an r-tap filter.

Section 2.1. T = m + r − 1 products in place of m·r. Everything is a Fraction until `tensors` rounds it once.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

TAPS = 3  # r, the kernel size of every layer here

Rows = tuple[tuple[Fraction, ...], ...]


class Matrices(NamedTuple):
    """Aᵀ [m, T], G [T, r] and Bᵀ [T, T], exact."""

    AT: Rows
    G: Rows
    BT: Rows


POINTS = {
    2: (0, 1, -1),
    3: (0, 1, -1, 2),
    4: (0, 1, -1, 2, -2),
    6: (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2)),
}
"""Interpolation points beside ∞ for each output size m; those of Lavin & Gray for 2 and 4."""
HALF_POINTS = {4: (0, 1, -1, Fraction(1, 2), -2)}
"""Better conditioned points: half the rounding error of F(4,3)³ and smaller transformed inputs (section 12.5)."""
LAVIN_SIGNS = {2: ((1, 1, 1, -1), (-1, 1, 1, 1), (-1, 1, 1, -1))}
"""Signs of Aᵀ's columns, G's rows and Bᵀ's rows that turn the Cook-Toom form into Lavin & Gray's; 4 needs none."""


def cook_toom(m: int, r: int, points: Sequence[int | Fraction]) -> Matrices:
    """F(m, r) from T − 1 different points and ∞, whose row or column is the last (Cook-Toom, section 2.1).

    Errors: ValueError for the wrong number of points or equal ones.
    """
    tile = m + r - 1
    a = [Fraction(point) for point in points]
    if m < 1 or r < 1 or len(a) != tile - 1 or len(set(a)) != len(a):
        raise ValueError(f"F({m},{r}) needs {tile - 1} different points, got {', '.join(map(str, points))}")
    norms = [_product(a[i] - a[k] for k in range(tile - 1) if k != i) for i in range(tile - 1)]
    at = [[*(point**i for point in a), Fraction(i == m - 1)] for i in range(m)]
    g = [[point**j / norm for j in range(r)] for point, norm in zip(a, norms)]
    g.append([Fraction(j == r - 1) for j in range(r)])
    bt = [_polynomial(a[:p] + a[p + 1 :], tile) for p in range(tile - 1)]
    bt.append(_polynomial(a, tile))
    return Matrices(_rows(at), _rows(g), _rows(bt))


@lru_cache
def winograd(m: int, points: str = "lavin") -> Matrices:
    """F(m, 3) in the gauge of this project: Lavin & Gray's signs; points "lavin" or, for m = 4, "half".

    m = 1 is the identity: "no transform on this axis". Errors: ValueError for an m without points.
    """
    if m == 1:
        one = _rows([[Fraction(i == j) for j in range(TAPS)] for i in range(TAPS)])
        return Matrices(((Fraction(1),) * TAPS,), one, one)
    if m not in POINTS:
        raise ValueError(f"there are no points for m = {m}; choose m from 1, {', '.join(map(str, POINTS))}")
    chosen = HALF_POINTS.get(m, POINTS[m]) if points == "half" else POINTS[m]
    at, g, bt = cook_toom(m, TAPS, chosen)
    column, row_g, row_b = LAVIN_SIGNS.get(m, ((1,) * len(bt),) * 3)
    return Matrices(
        _rows([[sign * value for sign, value in zip(column, row)] for row in at]),
        _rows([[sign * value for value in row] for sign, row in zip(row_g, g)]),
        _rows([[sign * value for value in row] for sign, row in zip(row_b, bt)]),
    )


def is_exact(matrices: Matrices) -> bool:
    """Whether Σ_p Aᵀ[i,p]·G[p,j]·Bᵀ[p,n] is 1 where n = i + j and 0 elsewhere, in rationals (section 2.1)."""
    at, g, bt = matrices
    return all(
        sum(at[i][p] * g[p][j] * bt[p][n] for p in range(len(bt))) == (n == i + j)
        for i in range(len(at))
        for j in range(len(g[0]))
        for n in range(len(bt))
    )


class Axes(NamedTuple):
    """The matrices of the three axes (depth, height, width) as tensors: Aᵀ, G and Bᵀ, three of each."""

    AT: tuple[Tensor, Tensor, Tensor]
    G: tuple[Tensor, Tensor, Tensor]
    BT: tuple[Tensor, Tensor, Tensor]


def tensors(
    tile: Sequence[int], points: str = "lavin", dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Axes:
    """The matrices of F(m_d × m_h × m_w, 3³), each entry rounded once from its rational."""
    exact = [winograd(m, points) for m in tile]

    def rounded(rows: Rows) -> Tensor:
        return torch.tensor([list(map(float, row)) for row in rows], dtype=dtype, device=device)

    return Axes(*(tuple(rounded(matrices[kind]) for matrices in exact) for kind in range(3)))


def _product(factors) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def _polynomial(roots: Sequence[Fraction], length: int) -> list[Fraction]:
    """Coefficients of Π (x − root), lowest power first, padded with zeros."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)])]
    return coefficients + [Fraction(0)] * (length - len(coefficients))


def _rows(rows) -> Rows:
    return tuple(tuple(row) for row in rows)
