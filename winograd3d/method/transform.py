"""The 3-D Winograd layer as pure functions: weight, input and inverse transform around one product a position.

Section 2.2. Shapes: kernels K [C_o, C_i, 3, 3, 3], inputs X [N, C_i, D, H, W], Winograd-domain weights U [C_o, C_i, n]
with n = T_d·T_h·T_w positions p = (a·T_h + b)·T_w + c (depth slowest), transformed inputs V [n, C_i, P] and products
M [n, C_o, P], where P counts the tiles of all N samples. Any floating dtype; everything is differentiable.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 3
Triple = tuple[int, int, int]


def positions(tile: Triple) -> Triple:
    """T = m + 2 of each axis."""
    return tuple(m + TAPS - 1 for m in tile)


def output_size(size: Triple, padding: Triple) -> Triple:
    """Output samples of each axis of a 3x3x3 convolution with stride 1."""
    return tuple(s + 2 * p - TAPS + 1 for s, p in zip(size, padding))


def tile_counts(size: Triple, padding: Triple, tile: Triple) -> Triple:
    """⌈D'/m⌉ tiles of each axis, the last ones partly outside."""
    return tuple(-(-out // m) for out, m in zip(output_size(size, padding), tile))


def weight_transform(kernel: Tensor, g: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """U = (G_d ⊗ G_h ⊗ G_w) vec K for every pair of channels: [C_o, C_i, 3, 3, 3] -> [C_o, C_i, n]."""
    return torch.einsum("ocijk,ai,bj,dk->ocabd", kernel, *g).flatten(2)


def pad_to_tiles(x: Tensor, padding: Triple, tile: Triple) -> Tensor:
    """Zeros on each side, and at the end of each axis as many more as the last tile needs.

    Each axis has its own amount; taking it from one axis alone is only right for cubes (section 9).
    """
    counts = tile_counts(x.shape[2:], padding, tile)
    ends = [t * m + TAPS - 1 - (s + p) for t, m, s, p in zip(counts, tile, x.shape[2:], padding)]
    pads = [amount for p, end in zip(padding[::-1], ends[::-1]) for amount in (p, end)]
    return F.pad(x, pads)


def input_transform(x: Tensor, bt: tuple[Tensor, Tensor, Tensor], tile: Triple) -> Tensor:
    """V = (Bᵀ ⊗ Bᵀ ⊗ Bᵀ) vec d of every tile of a padded input: [N, C, D, H, W] -> [n, C, P].

    One axis at a time, so that the overlap is copied twice, four times and only in the end eight times (m = 2).
    Channels come last in memory, which makes every axis a product with long rows.
    """
    v = x.movedim(1, -1)
    for made, axis in enumerate((2, 1, 0)):
        taps = v.unfold(1 + axis + made, tile[axis] + TAPS - 1, tile[axis]).movedim(-1, 0)
        v = (bt[axis] @ taps.reshape(len(taps), -1)).view(taps.shape)
    return v.flatten(3, -2).flatten(0, 2).mT  # from T_d, T_h, T_w, N, t_d, t_h, t_w, C


def input_transform_adjoint(
    grad: Tensor, bt: tuple[Tensor, Tensor, Tensor], tile: Triple, shape: tuple[int, ...]
) -> Tensor:
    """B₃ᵀ ∂V, added up where tiles overlap: [n, C, P] -> the gradient of the padded input `shape` (section 2.5)."""
    samples, channels, *size = shape
    sides = positions(tile)
    counts = [(s - side) // m + 1 for s, side, m in zip(size, sides, tile)]
    g = grad.mT.reshape(*sides, samples, *counts, channels)
    for axis in range(3):
        taps = (bt[axis].T @ g.reshape(sides[axis], -1)).view(g.shape)
        # A tap has the T of the axes to come, N and the finished axes before this one: three in all.
        g = taps.new_zeros(*taps.shape[1:4], size[axis], *taps.shape[5:])
        for start, tap in enumerate(taps):
            g[:, :, :, start : start + (counts[axis] - 1) * tile[axis] + 1 : tile[axis]] += tap
    return g.movedim(-1, 1)


def inverse_transform(products: Tensor, at: tuple[Tensor, Tensor, Tensor], samples: int, counts: Triple) -> Tensor:
    """Aᵀ along each axis, tiles side by side: M [n, C_o, P] -> [N, C_o, t_d·m_d, t_h·m_h, t_w·m_w], not yet cropped."""
    (m_d, t_d), (m_h, t_h), (m_w, t_w) = (matrix.shape for matrix in at)
    y = at[0] @ products.reshape(t_d, -1)
    y = torch.bmm(at[1].expand(m_d, -1, -1), y.view(m_d, t_h, -1))
    y = torch.bmm(at[2].expand(m_d * m_h, -1, -1), y.view(m_d * m_h, t_w, -1))
    y = y.view(m_d, m_h, m_w, products.shape[1], samples, *counts).permute(4, 3, 5, 0, 6, 1, 7, 2)
    return y.reshape(samples, products.shape[1], *(t * m for t, m in zip(counts, (m_d, m_h, m_w))))


def inverse_transform_adjoint(grad: Tensor, at: tuple[Tensor, Tensor, Tensor], counts: Triple) -> Tensor:
    """∂L/∂M from the gradient of the cropped output: [N, C_o, D', H', W'] -> [n, C_o, P] (section 2.5)."""
    sizes = [matrix.shape[0] for matrix in at]
    missing = [t * m - s for t, m, s in zip(counts, sizes, grad.shape[2:])]
    grad = F.pad(grad, [amount for end in missing[::-1] for amount in (0, end)])
    split = [extent for t, m in zip(counts, sizes) for extent in (t, m)]
    grad = grad.reshape(*grad.shape[:2], *split).permute(3, 5, 7, 1, 0, 2, 4, 6)  # m_d, m_h, m_w, C_o, N, tiles
    channels, (t_d, t_h, t_w) = grad.shape[3], (matrix.shape[1] for matrix in at)
    rows = sizes[0] * sizes[1]
    grad = torch.bmm(at[2].T.expand(rows, -1, -1), grad.reshape(rows, sizes[2], -1))
    grad = torch.bmm(at[1].T.expand(sizes[0], -1, -1), grad.view(sizes[0], sizes[1], -1))
    grad = at[0].T @ grad.view(sizes[0], -1)
    return grad.view(t_d * t_h * t_w, channels, -1)


def crop(y: Tensor, size: Triple) -> Tensor:
    """The first D', H', W' samples: what lies beyond belongs to tiles that reach outside."""
    return y[..., : size[0], : size[1], : size[2]]


def equivalent_kernel(weight: Tensor, at: tuple, bt: tuple) -> Tensor:
    """Any Winograd-domain weight as a stride-m convolution: [C_o, C_i, n] -> E [C_o·m³, C_i, T_d, T_h, T_w].

    Rows are ordered (o, i, j, k); depth-to-space puts the m³ outputs of a tile in place. Off the range of G₃ the layer
    is no 3x3x3 kernel and is shift-invariant by multiples of m only (section 2.2).
    """
    split = weight.unflatten(2, [matrix.shape[0] for matrix in bt])
    kernel = torch.einsum("ocpqr,ip,jq,kr,pa,qb,rd->oijkcabd", split, *at, *bt)
    return kernel.flatten(0, 3)
