"""Learning rates of section 4 and the order of the widths."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

__all__ = ["LOWEST_RATE", "multistep", "plateau", "width_of_step"]

LOWEST_RATE = 1e-6  # below it training ends
LONGEST_QUIET = 6  # the first epoch index after which the rate may be halved
CHANGE = 0.001  # in dB of the score's own ratio


def width_of_step(step: int, widths: int = 3) -> int:
    """The index of the width, and of the class of tiles, at optimiser step 0, 1, … (section 2.5)."""
    return step % widths


def multistep(epoch: int, milestones: Sequence[int] = (50, 100), factor: float = 0.1) -> float:
    """The rate used in epoch 0, 1, …, relative to the first."""
    return factor ** sum(epoch >= milestone for milestone in milestones)


def plateau(rate: float, scores: Sequence[float], rule: Literal["intended", "official"] = "intended") -> float:
    """The rate after the epoch whose validation PSNR is the last of `scores`, all of them in order (section 4).

    Intended: halve when none of the last four changes was a rise of more than 0.001. Official: the ratio is upside
    down, so that a rising curve halves the rate in every epoch (section 9, row 7).
    """
    if len(scores) <= LONGEST_QUIET:
        return rate
    last = scores[-5:]
    steps = [10 * math.log10(after / before) for before, after in itertools.pairwise(last)]
    sign = 1 if rule == "intended" else -1
    return rate / 2 if all(sign * change <= CHANGE for change in steps) else rate
