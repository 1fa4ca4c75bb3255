"""The verdict rules against t intervals worked out by hand (quantiles 4.302653 for 2 and 2.776445 for 4 degrees)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci import verdict

ZERO = [0.0] * 3
numbers = st.floats(-100, 100, allow_nan=False)


@pytest.mark.parametrize(
    ("differences", "mean", "half"),
    [
        ([1.0, 2.0, 3.0], 2.0, 4.302653 / math.sqrt(3)),
        ([1.9, 2.0, 2.1], 2.0, 4.302653 * 0.1 / math.sqrt(3)),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 2.776445 * math.sqrt(2.5 / 5)),
    ],
)
def test_interval_is_student_t(differences, mean, half):
    assert verdict.paired_interval(differences) == pytest.approx((mean, mean - half, mean + half), rel=1e-6)


def test_interval_without_spread_is_one_point():
    assert verdict.paired_interval([0.1] * 3) == (0.1, 0.1, 0.1)


def test_interval_needs_two_differences():
    with pytest.raises(ValueError, match="at least two differences, got 1"):
        verdict.paired_interval([1.0])


@pytest.mark.parametrize(
    ("a", "higher_is_better", "word"),
    [
        ([1.9, 2.0, 2.1], True, verdict.SHOWN),
        ([1.9, 2.0, 2.1], False, verdict.CONTRADICTED),
        ([-1.9, -2.0, -2.1], True, verdict.CONTRADICTED),
        ([-1.9, -2.0, -2.1], False, verdict.SHOWN),
        ([1.0, 2.0, 3.0], True, verdict.NOT_RESOLVED),
        ([1.0, 2.0, 3.0], False, verdict.NOT_RESOLVED),
        ([2.0, 2.0, 2.0], True, verdict.SHOWN),
        ([0.0, 0.0, 0.0], True, verdict.NOT_RESOLVED),
    ],
)
def test_direction(a, higher_is_better, word):
    assert verdict.judge("direction", a, ZERO, higher_is_better).word == word


def test_direction_is_paired():
    """Seeds differ by far more than the arms do; only pairing resolves it."""
    a, b = [10.1, 50.0, 90.0], [10.0, 49.9, 89.9]
    assert verdict.judge("direction", a, b).word == verdict.SHOWN
    assert verdict.judge("direction", a, [49.9, 89.9, 10.0]).word == verdict.NOT_RESOLVED


@pytest.mark.parametrize(
    ("a", "margin", "word"),
    [
        ([1.9, 2.0, 2.1], 2.3, verdict.SHOWN),  # [1.75, 2.25]
        ([1.9, 2.0, 2.1], 2.1, verdict.NOT_RESOLVED),
        ([1.9, 2.0, 2.1], 1.7, verdict.CONTRADICTED),
        ([-1.9, -2.0, -2.1], 1.7, verdict.CONTRADICTED),
        ([-1.9, -2.0, -2.1], 2.3, verdict.SHOWN),
        ([-3.0, 0.0, 3.0], 1.0, verdict.NOT_RESOLVED),  # wider than the margin on both sides
        ([0.0, 0.0, 0.0], 0.0, verdict.SHOWN),
    ],
)
def test_equivalence(a, margin, word):
    assert verdict.judge("equivalence", a, ZERO, margin=margin).word == word


@pytest.mark.parametrize("margin", [None, -1.0, math.nan])
def test_equivalence_needs_a_margin(margin):
    with pytest.raises(ValueError, match="needs a margin"):
        verdict.judge("equivalence", [1.0, 2.0], [1.0, 2.0], margin=margin)


@pytest.mark.parametrize(
    ("a", "word"),
    [([1.0, 2.0, 3.0], verdict.SHOWN), ([1.0, 2.0, 3.0 + 1e-15], verdict.CONTRADICTED)],
)
def test_exact(a, word):
    assert verdict.judge("exact", a, [1.0, 2.0, 3.0]).word == word


@pytest.mark.parametrize("kind", ["direction", "equivalence"])
def test_one_seed_resolves_nothing(kind):
    found = verdict.judge(kind, [5.0], [1.0], margin=1.0)
    assert (found.word, found.mean, found.interval) == (verdict.NOT_RESOLVED, 4.0, None)
    assert "one seed" in found.reason


@pytest.mark.parametrize("kind", verdict.KINDS)
@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_missing_number_resolves_nothing(kind, missing):
    found = verdict.judge(kind, [5.0, missing, 5.0], [1.0, 1.0, 1.0], margin=10.0)
    assert (found.word, found.differences) == (verdict.NOT_RESOLVED, [4.0, None, 4.0])
    assert "1 of 3 pairs" in found.reason


def test_no_seed_resolves_nothing():
    assert verdict.judge("exact", [], []).word == verdict.NOT_RESOLVED


def test_unequal_lengths_and_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="3 seeds and b has 2"):
        verdict.judge("direction", ZERO, [0.0, 0.0])
    with pytest.raises(ValueError, match="better is not one of"):
        verdict.judge("better", ZERO, ZERO)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8), st.booleans())
def test_swapping_the_arms_swaps_shown_and_contradicted(pairs, higher):
    a, b = map(list, zip(*pairs))
    swapped = {verdict.SHOWN: verdict.CONTRADICTED, verdict.CONTRADICTED: verdict.SHOWN}
    word = verdict.judge("direction", a, b, higher).word
    assert verdict.judge("direction", b, a, higher).word == swapped.get(word, word)
    assert verdict.judge("direction", a, b, not higher).word == swapped.get(word, word)
