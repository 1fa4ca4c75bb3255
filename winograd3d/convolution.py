"""A 3-D convolution that lives in the Winograd domain: parameterised, masked, scored, and exact in its gradients."""

import functools
import json
from collections.abc import Callable
from typing import Literal

from common.errors import InputError

import torch
from torch import Tensor, nn

from winograd3d.functional import Triple, full_precision, winograd_conv3d
from winograd3d.method import (
    BY_GRADIENT,
    Axes,
    StraightThroughMask,
    column_sums,
    compose,
    effective_gradient,
    expand,
    gram,
    importance,
    kept_columns,
    kernel_factors,
    matrix_shape,
    position_gain,
    svd_factors,
    taylor,
    tensors,
    weight_transform,
)
from winograd3d.method.lowrank import View
from winograd3d.method.pruning import Granularity, Score

Mode = Literal["residual", "factor", "vanilla", "spatial"]
Points = Literal["lavin", "half"]
TRANSFORM_RANK = 27  # rank of G₃: what a 3x3x3 kernel can fill of the n positions


class WinogradConv3d(nn.Module):
    """A 3x3x3 convolution, stride 1, with Winograd-domain weight Ŵ = M ⊙ (W₀ + P·Q) (sections 2.4 to 2.7).

    mode: `residual` trains P, Q around frozen W₀ = G₃K; `factor` trains P, Q alone from an SVD of G₃K; `vanilla` trains
    Ŵ; `spatial` trains K. tile: (m_d, m_h, m_w). view, rank: how Ŵ becomes a matrix and s. granularity: what the mask
    removes. precondition: gradients of Ŵ as a spatial step would move it. State: `W0`, `P`, `Q`, `W` or `K` as the mode
    has them, `mask`, `score`, `bias`, and the conventions they were computed under. Errors: InputError for a rank above
    min(R, C) and for options that contradict each other.
    """

    def __init__(
        self,
        kernel: Tensor,
        bias: Tensor | None,
        padding: Triple,
        *,
        tile: Triple = (2, 2, 2),
        points: Points = "lavin",
        mode: Mode = "residual",
        rank: int = 16,
        view: View = "kernel",
        granularity: Granularity = "position",
        precondition: bool = False,
    ):
        super().__init__()
        self.out_channels, self.in_channels = kernel.shape[:2]
        self.tile, self.points, self.padding = tuple(tile), points, tuple(padding)
        self.mode, self.rank, self.view, self.granularity = mode, rank, view, granularity
        self.precondition = precondition
        self.straight_through = False  # whether backward passes masked columns too: stage 1
        self.noted_score: Score | None = None  # what to note of D in backward, if anything
        self.noted: Tensor | None = None
        if precondition and mode == "spatial":
            raise InputError("precondition: mode spatial already moves by (GGᵀ)^⊗3 D; leave precondition off")
        exact = tensors(self.tile, points, torch.float64, kernel.device)
        self.positions = exact.BT[0].shape[0] * exact.BT[1].shape[0] * exact.BT[2].shape[0]
        self.shape = (self.out_channels, self.in_channels, self.positions)
        self._set_weight(kernel.detach(), exact)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        columns = {"position": self.shape[2:], "element": self.shape}.get(granularity, self.shape[1:])
        self.register_buffer("mask", torch.ones(columns, dtype=torch.bool, device=kernel.device))
        self.register_buffer("score", torch.zeros(columns, dtype=kernel.dtype, device=kernel.device))
        self._round_matrices(kernel)

    @classmethod
    def from_conv(cls, conv: nn.Conv3d, **options) -> "WinogradConv3d":
        """The layer that computes what an eligible Conv3d does (see `api.refusal`)."""
        padding = {"same": (1, 1, 1), "valid": (0, 0, 0)}.get(conv.padding, conv.padding)
        layer = cls(conv.weight, conv.bias, padding, **options)
        return layer.train(conv.training)

    def _set_weight(self, kernel: Tensor, exact: Axes) -> None:
        """Initialise so that the network computes what it did before; G₃K in float64, then rounded (section 2.8)."""
        wide = kernel.double()
        weight = weight_transform(wide, exact.G)
        if self.mode == "spatial":
            self.K = nn.Parameter(kernel.clone())
            return
        if self.mode == "vanilla":
            self.W = nn.Parameter(weight.to(kernel.dtype))
            return
        rows, columns = matrix_shape(self.shape, self.view)
        if not 1 <= self.rank <= min(rows, columns):
            raise InputError(
                f"rank {self.rank} is above {min(rows, columns)}, the most that a {rows} x {columns} matrix "
                f"(view {self.view}, {self.in_channels} -> {self.out_channels} channels) can have; give a smaller rank"
            )
        noise = torch.randn(self.rank, columns, dtype=kernel.dtype, device=kernel.device) * self.rank**-0.5
        if self.mode == "residual":
            self.register_buffer("W0", weight.to(kernel.dtype))
            p, q = kernel.new_zeros(rows, self.rank), noise
        elif self.view == "kernel" and self.rank >= TRANSFORM_RANK:
            p, q = kernel_factors(wide, exact.G, self.rank)
            q[TRANSFORM_RANK:] = noise[TRANSFORM_RANK:]  # both factors zero would never move
        else:
            p, q = svd_factors(weight, self.view, self.rank)
        self.P, self.Q = nn.Parameter(p.to(kernel.dtype)), nn.Parameter(q.to(kernel.dtype))

    # -- the weight --------------------------------------------------------------------------------------------------

    def transformed(self, kernel: Tensor) -> Tensor:
        """G₃K of a spatial kernel [C_o, C_i, 3, 3, 3] in this layer's conventions, computed in float64."""
        exact = tensors(self.tile, self.points, torch.float64, kernel.device)
        return weight_transform(kernel.double(), exact.G).to(kernel.dtype)

    def unmasked_weight(self) -> Tensor:
        """W₀ + P·Q, Ŵ or G₃K as the mode has it: [C_o, C_i, n]."""
        if self.mode == "spatial":
            return weight_transform(self.K, self.axes.G)
        if self.mode == "vanilla":
            return self.W.view(self.shape)
        return compose(self.P, self.Q, self.shape, self.W0 if self.mode == "residual" else None)

    def effective_weight(self) -> Tensor:
        """M ⊙ Ŵ [C_o, C_i, n]; in stage 1 with the gradient of every column."""
        weight = self.unmasked_weight()
        if self.precondition and weight.requires_grad:
            weight.register_hook(functools.partial(effective_gradient, g=self.axes.G))
        mask = expand(self.mask)
        masked = StraightThroughMask.apply(weight, mask) if self.straight_through else weight * mask
        if self.noted_score in BY_GRADIENT and masked.requires_grad:
            masked.register_hook(functools.partial(self._note, weight.detach()))
        return masked

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device.type):
            weight = self.effective_weight()
        return winograd_conv3d(x, weight, self.bias, self.tile, self.padding, self.axes)

    # -- importance --------------------------------------------------------------------------------------------------

    def _note(self, weight: Tensor, grad: Tensor) -> None:
        """Add up over the parts of a batch what the score needs of D; for taylor the column sums suffice."""
        part = column_sums(weight, grad) if self._sums_suffice(self.noted_score) else grad.detach().clone()
        self.noted = part if self.noted is None else self.noted + part

    def _sums_suffice(self, score: Score) -> bool:
        return score == "taylor" and self.granularity != "element"

    @torch.no_grad()
    def update_score(self, score: Score, beta: float, reduce: Callable[[Tensor], Tensor] = lambda total: total) -> None:
        """S ← βS + (1 − β)·score of this step's Ŵ and D (section 2.6); after backward, before the optimiser's step.

        reduce: adds D's part up over processes. Errors: InputError for gram in a mode whose column is not P q_j.
        """
        if score in BY_GRADIENT:
            noted, self.noted = reduce(self.noted), None
        if self._sums_suffice(score):
            now = taylor(noted, self.granularity)
        elif score == "gram":
            if self.mode != "factor":
                raise InputError(f"score gram reads P and Q alone, but mode {self.mode} has more; use l2")
            now = gram(self.P, self.Q, self.in_channels, self.view, self.granularity)
        else:
            gain = position_gain(self.axes.AT, self.axes.BT) if score == "l2_comp" else None
            weight = self.unmasked_weight()
            now = importance(score, self.granularity, weight, noted if score in BY_GRADIENT else None, gain)
        self.score.mul_(beta).add_(now, alpha=1 - beta)

    def trainables(self) -> int:
        """Trained numbers of the weight: P and Q, Ŵ or K; the bias is not counted (section 2.4)."""
        own = (parameter for name, parameter in self.named_parameters() if name != "bias")
        return sum(parameter.numel() for parameter in own if parameter.requires_grad)

    @property
    def columns(self) -> int:
        """All columns, counted over C_i x n."""
        return self.in_channels * self.positions

    def kept(self) -> int:
        """Kept columns, counted over C_i x n."""
        return kept_columns(self.mask, self.in_channels)

    def merged(self) -> "WinogradConv3d":
        """The same function with one frozen tensor M ⊙ Ŵ in the place of its parts (section 2.4)."""
        weight = self.effective_weight().detach()
        kernel = weight.new_zeros(self.out_channels, self.in_channels, 3, 3, 3)
        options = {"tile": self.tile, "points": self.points, "granularity": self.granularity}
        layer = WinogradConv3d(kernel, self.bias, self.padding, mode="vanilla", **options)
        layer.W.data.copy_(weight)
        layer.mask.copy_(self.mask)
        layer.score.copy_(self.score)
        return layer.requires_grad_(False).train(self.training)

    def set_mask(self, mask: Tensor) -> None:
        """Take a mask [n] or [C_i, n]. Errors: InputError for another shape or one that removes everything."""
        if mask.shape != self.mask.shape:
            raise InputError(f"a mask {[*mask.shape]} does not fit granularity {self.granularity} {[*self.mask.shape]}")
        if not bool(mask.any()):
            raise InputError("the mask removes every column, which empties the layer; keep at least one")
        self.mask.copy_(mask)

    # -- state -------------------------------------------------------------------------------------------------------

    def _round_matrices(self, like: Tensor) -> None:
        self.axes = tensors(self.tile, self.points, like.dtype, like.device)

    def _apply(self, fn, recurse: bool = True) -> "WinogradConv3d":
        """Move or convert; the transforms are rounded anew from their rationals, never from a lower precision."""
        super()._apply(fn, recurse)
        self._round_matrices(self.score)
        return self

    def conventions(self) -> dict:
        """What the stored numbers mean; under another gauge they would be silently wrong (section 8)."""
        return {
            "tile": list(self.tile),
            "gauge": self.points,
            "order": "dhw",
            "mode": self.mode,
            "view": self.view,
            "granularity": self.granularity,
        }

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(json.dumps(self.conventions()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        stored, own = json.loads(bytes(state.tolist()).decode()), self.conventions()
        differing = [f"{key} {stored.get(key)} (here {own[key]})" for key in own if stored.get(key) != own[key]]
        if differing:
            raise InputError(f"the stored Winograd layer has {', '.join(differing)}; build the layer as it was stored")

    def extra_repr(self) -> str:
        tile = "x".join(map(str, self.tile))
        rank = f", rank={self.rank}" if self.mode in ("residual", "factor") else ""
        return f"{self.in_channels}, {self.out_channels}, tile={tile}, mode={self.mode}{rank}, {self.granularity}"
