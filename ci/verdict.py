"""What a set of paired differences says about a claim; a verdict is computed, never typed in.

Every arm runs with the same seeds, so the difference a - b of one seed removes what the seed does to both.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

SHOWN, NOT_RESOLVED, CONTRADICTED = "shown", "not resolved at this scale", "contradicted"
KINDS = ("direction", "equivalence", "exact")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """The word, the paired differences a - b in the quantity's unit, and their mean and interval."""

    word: str
    reason: str
    differences: list[float | None]
    mean: float | None
    interval: list[float] | None


def paired_interval(differences: list[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean and two-sided t interval of n >= 2 paired differences: mean -+ t(n - 1) · s / sqrt(n).

    Differences that are all equal have no spread and the interval is that one point: right for quantities that do not
    depend on the seed (a count of samples), and what follows from the data otherwise.
    Errors: ValueError for fewer than two differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        raise ValueError(f"an interval needs at least two differences, got {values.size}")
    if np.all(values == values[0]):  # the rounded mean of equal numbers may differ from them
        return float(values[0]), float(values[0]), float(values[0])
    mean = values.mean()
    quantile = stdtrit(values.size - 1, 0.5 + confidence / 2)
    half = quantile * values.std(ddof=1) / math.sqrt(values.size)
    return float(mean), float(mean - half), float(mean + half)


def judge(
    kind: str,
    a: list[float | None],
    b: list[float | None],
    higher_is_better: bool = True,
    margin: float | None = None,
) -> Verdict:
    """The verdict on "a is better than b" (direction), "a is as good as b" (equivalence) or "a equals b" (exact).

    a, b: one value per seed, same order; None or a non-finite number where a run has none, and then nothing is
    resolved: to judge by the seeds that survived would favour the arm that diverges.
    Errors: ValueError for an unknown kind, unequal lengths, or an equivalence without a margin.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind} is not one of {', '.join(KINDS)}")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} seeds and b has {len(b)}; pairs need the same")
    pairs = [(x, y) if _finite(x) and _finite(y) else None for x, y in zip(a, b)]
    differences = [pair[0] - pair[1] if pair else None for pair in pairs]
    there = [d for d in differences if d is not None]
    if not there or len(there) < len(pairs):
        reason = f"{len(pairs) - len(there)} of {len(pairs)} pairs have no number" if pairs else "no seed was run"
        return Verdict(NOT_RESOLVED, reason, differences, None, None)
    mean, *interval = paired_interval(there) if len(there) > 1 else (there[0],)
    interval = interval or None
    if kind == "exact":
        equal = all(x == y for x, y in zip(a, b))
        word, reason = (SHOWN, "every pair is equal") if equal else (CONTRADICTED, "a pair differs")
    elif interval is None:
        word, reason = NOT_RESOLVED, "one seed has no interval; run at least two"
    elif kind == "direction":
        word, reason = _direction(interval, higher_is_better)
    else:
        word, reason = _equivalence(interval, margin)
    return Verdict(word, reason, differences, mean, interval)


def _direction(interval: list[float], higher_is_better: bool) -> tuple[str, str]:
    low, high = interval if higher_is_better else (-interval[1], -interval[0])
    if low > 0:
        return SHOWN, "the interval lies on the claimed side of 0"
    if high < 0:
        return CONTRADICTED, "the interval lies on the other side of 0"
    return NOT_RESOLVED, "the interval contains 0"


def _equivalence(interval: list[float], margin: float | None) -> tuple[str, str]:
    if margin is None or not margin >= 0:
        raise ValueError(f"an equivalence needs a margin of at least 0, got {margin}")
    low, high = interval
    if -margin <= low and high <= margin:
        return SHOWN, "the interval lies inside the margin"
    if low > margin or high < -margin:
        return CONTRADICTED, "the interval lies outside the margin"
    return NOT_RESOLVED, "the interval reaches over the margin"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
