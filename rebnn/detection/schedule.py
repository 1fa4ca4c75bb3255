"""The learning rate of the detectors (section 4)."""

from collections.abc import Sequence

WARM = 0.001
"""factor on the learning rate of the first iteration of a warm-up"""


def multi_step(base: float, position: int, milestones: Sequence[int], step: int, warmup: int) -> float:
    """base, a tenth of it after each milestone that `position` has reached, in a linear warm-up from 0.001 of it.

    position: epochs or iterations that lie behind; step: iterations that lie behind.
    """
    rate = base * 0.1 ** sum(position >= milestone for milestone in milestones)
    return rate * (1 - (1 - step / warmup) * (1 - WARM)) if step < warmup else rate
