"""Which tile goes to which width: the class split for training and the routes of inference (sections 2.3 and 2.7).

A width is named by its index in the descending list of widths: 0 is the widest, 2 the narrowest of three.
"""

import torch
from torch import Tensor

__all__ = [
    "by_budget",
    "by_rank",
    "by_threshold",
    "calibrate",
    "class_membership",
    "inverse",
    "ranks",
    "released",
    "share_out",
    "shuffled",
]


def ranks(scores: Tensor) -> Tensor:
    """The rank of each tile within its image, 0 for the lowest score; ties keep their order. [..., N] -> int64."""
    return scores.argsort(dim=-1, stable=True).argsort(dim=-1)


def share_out(count: int, widths: int = 3) -> list[int]:
    """How many of `count` ranked tiles each width gets, widest first; what is left over goes to the middle first.

    FHDMi's 6 tiles give 2, 2, 2; LCDMoiré's 4 give 1, 2, 1 (section 2.7).
    """
    each, left = divmod(count, widths)
    middle_first = sorted(range(widths), key=lambda i: (abs(2 * i - widths + 1), i))
    return [each + (i in middle_first[:left]) for i in range(widths)]


def _widths_of_ranks(counts: list[int]) -> Tensor:
    """The width index of rank 0, 1, …: the narrowest first."""
    narrow_first = [index for index in reversed(range(len(counts))) for _ in range(counts[index])]
    return torch.tensor(narrow_first)


def by_rank(scores: Tensor, widths: int = 3) -> Tensor:
    """The method's route: tiles are ranked within their image and the higher third goes to the wider network.

    scores: [..., N] -> width index int64 [..., N].
    """
    return _widths_of_ranks(share_out(scores.shape[-1], widths)).to(scores.device)[ranks(scores)]


def released(scores: Tensor, widths: int = 3) -> Tensor:
    """What the release does: of 4 tiles the lowest is narrow and three are wide; otherwise as intended (row 3)."""
    if scores.shape[-1] != 4:
        return by_rank(scores, widths)
    return torch.where(ranks(scores) == 0, widths - 1, 0)


def inverse(scores: Tensor, widths: int = 3) -> Tensor:
    """The control that gives the worst tiles to the narrowest network."""
    return by_rank(-scores, widths)


def shuffled(draws: Tensor, widths: int = 3) -> Tensor:
    """The control that ranks by chance; draws: uniform [..., N]."""
    return by_rank(draws, widths)


def calibrate(scores: Tensor, widths: int = 3, shares: list[float] | None = None) -> list[float]:
    """Global thresholds from the scores of a calibration set, so that each width gets its share of all tiles.

    scores: any shape. shares: of the widths, widest first, equal by default. Returns widths - 1 falling values.
    """
    shares = shares or [1 / widths] * widths
    above = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    return torch.quantile(scores.flatten().double(), (1 - above).clamp(0, 1).to(scores.device)).tolist()


def by_threshold(scores: Tensor, thresholds: list[float]) -> Tensor:
    """A score of at least thresholds[0] goes to the widest network, and so on; an image may be wholly narrow."""
    limits = torch.tensor(thresholds, dtype=scores.dtype, device=scores.device)
    return (scores[..., None] < limits).sum(-1)


def by_budget(scores: Tensor, costs: list[int], budget: float) -> Tensor:
    """The widest networks that `budget` multiply-adds allow for one image, given to the tiles of high score first.

    scores: [N]; costs: of one tile at each width, falling. Every tile begins narrow; rank by rank from the top, tiles
    are raised by one width as long as the sum stays within the budget, then a second round raises further.
    ValueError if even the narrowest network on every tile exceeds the budget.
    """
    tiles, narrowest = len(scores), len(costs) - 1
    spent = tiles * costs[narrowest]
    if spent > budget:
        raise ValueError(f"{tiles} tiles at the narrowest width need {spent} multiply-adds, more than {budget:.0f}")
    choice = [narrowest] * tiles
    order = scores.argsort(dim=0, descending=True, stable=True).tolist()
    for level in range(narrowest, 0, -1):
        extra = costs[level - 1] - costs[level]
        for tile in order:
            if choice[tile] == level and spent + extra <= budget:
                choice[tile], spent = level - 1, spent + extra
    return torch.tensor(choice, device=scores.device)


def class_membership(scores: Tensor, overlap: bool = True) -> Tensor:
    """The classes a training tile belongs to, bool [..., N, 3], class 1 (wide) first (section 2.3).

    scores: [..., N] of the N tiles of an image. Of 8 tiles (FHDMi) ranks 0-2 are narrow, 3-5 middle and 5-7 wide:
    rank 5 is in two classes as in the release; without overlap it is in the middle one only. Of 4 tiles (LCDMoiré)
    the lowest is narrow, the highest wide. Other counts are shared out as for inference.
    """
    count, rank = scores.shape[-1], ranks(scores)
    if count == 8:
        wide, middle = (rank >= 5) if overlap else (rank >= 6), (rank >= 3) & (rank <= 5)
        return torch.stack([wide, middle, rank <= 2], -1)
    index = _widths_of_ranks(share_out(count)).to(scores.device)[rank]
    return torch.stack([index == number for number in range(3)], -1)
