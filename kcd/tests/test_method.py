"""Closed forms and invariants of value estimation, ranking, partition and blending."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kcd.method import Condenser, balanced, entropy, kept_size, learning_rate, margin, mix, rank, sample_visits, score


def test_entropy_of_known_distributions():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, -1e4, -1e4]])
    expected = [math.log(4), 0.0, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)]
    assert torch.allclose(entropy(logits), torch.tensor(expected), atol=1e-6)


def test_entropy_ignores_a_common_shift_and_survives_bf16():
    logits = torch.randn(8, 10)
    assert torch.allclose(entropy(logits), entropy(logits + 50), atol=1e-5)
    assert entropy(logits.bfloat16()).dtype == torch.float32


def test_margin_is_zero_gap_for_a_tie():
    assert torch.allclose(
        margin(torch.tensor([[5.0, 5.0, -9.0], [20.0, -20.0, -20.0]])), torch.tensor([1.0, 0.0]), atol=1e-4
    )


def test_score_is_the_mean_times_a_power_of_the_visits():
    total, visits = torch.tensor([6.0, 6.0, 0.0], dtype=torch.float64), torch.tensor([2, 3, 0])
    value = score(total, visits, alpha=0.5)
    assert torch.allclose(value[:2], torch.tensor([3 * (2 / 40) ** 0.5, 2 * (3 / 40) ** 0.5], dtype=torch.float64))
    assert value[2] == -torch.inf


def test_rank_breaks_ties_by_position_and_puts_the_unvisited_last():
    value = torch.tensor([1.0, -torch.inf, 2.0, 1.0, 0.0])
    assert rank(value).tolist() == [2, 0, 3, 4, 1]


@settings(deadline=None)
@given(st.integers(6, 5000), st.floats(0.05, 1.0), st.integers(1, 12))
def test_kept_sizes_fall_to_the_floor_and_stay(n, tau, stages):
    kept = [n]
    for _ in range(3 * stages):
        kept.append(kept_size(n, kept[-1], tau, stages))
    assert all(a >= b for a, b in itertools.pairwise(kept))
    step = int(n * (1 - tau) / stages)
    assert kept[-1] == int(tau * n) or step == 0 or kept[-1] - step >= int(tau * n)
    assert min(kept) >= int(tau * n)


def test_the_papers_sizes_and_visits():
    kept, sizes = 50_000, []
    for _ in range(6):
        kept = kept_size(50_000, kept, 0.7)
        sizes.append(kept)
    assert sizes == [47_500, 45_000, 42_500, 40_000, 37_500, 35_000]
    assert sample_visits(50_000, 0.7, 40, 240) == pytest.approx(0.875)
    assert sample_visits(50_000, 0.6, 40, 240) == pytest.approx(0.8333, abs=1e-4)
    assert sample_visits(50_000, 0.5, 40, 240) == pytest.approx(0.7917, abs=1e-4)


def test_mix_rates_fall_from_one():
    kept = torch.full((3, 1), 200, dtype=torch.uint8)
    lost = torch.zeros(3, 1, dtype=torch.uint8)
    # r = 1, 0.9, 0.8, truncated
    assert mix(kept, lost).flatten().tolist() == [200, 180, 160]


def test_mix_truncates_and_never_leaves_the_byte():
    torch.manual_seed(0)
    kept, lost = torch.randint(0, 256, (2, 64, 5), dtype=torch.uint8)
    blended = mix(kept, lost).int()
    low, high = torch.minimum(kept, lost).int() - 1, torch.maximum(kept, lost).int()
    assert ((blended >= low) & (blended <= high)).all()


def feed(condenser: Condenser, value: torch.Tensor) -> None:
    condenser.note(condenser.kept, value[condenser.kept])
    condenser.merge()


def test_condense_pairs_the_least_kept_with_the_lost_in_place():
    n = 12
    images = torch.arange(n, dtype=torch.uint8).repeat_interleave(2).view(n, 2) * 20
    original = images.clone()
    condenser = Condenser(n, tau=0.5, stages=2)
    feed(condenser, torch.arange(n, 0, -1).double())  # point 0 is the most valuable
    change = condenser.condense(images)
    assert change["kept"].tolist() == list(range(9)) and change["lost"].tolist() == [9, 10, 11]
    assert torch.equal(images[6:9], mix(original[6:9], original[9:12]))
    assert torch.equal(images[:6], original[:6]) and torch.equal(images[9:], original[9:])


def test_a_removed_point_comes_back_when_the_others_fall():
    condenser = Condenser(6, tau=0.5, stages=3, alpha=0.0, version="remove")
    feed(condenser, torch.tensor([6.0, 5, 4, 3, 2, 1]))
    assert condenser.condense()["kept"].tolist() == [0, 1, 2, 3, 4]
    for _ in range(9):
        feed(condenser, torch.full((6,), 0.01))  # what is kept becomes easy; point 5 keeps its mean
    change = condenser.condense()
    assert 5 in change["kept"].tolist() and int(change["reentered"]) == 1 and int(condenser.reentries) == 1


def test_nothing_lost_is_no_summary():
    images = torch.randint(0, 256, (10, 3), dtype=torch.uint8)
    before = images.clone()
    condenser = Condenser(10, tau=1.0)
    feed(condenser, torch.rand(10))
    change = condenser.condense(images)
    assert len(change["lost"]) == 0 and torch.equal(images, before) and condenser.history == []


def test_more_is_lost_than_stays():
    images = torch.arange(10, dtype=torch.uint8)[:, None] * 20
    original = images.clone()
    condenser = Condenser(10, tau=0.3, stages=1)
    feed(condenser, torch.arange(10, 0, -1).double())
    change = condenser.condense(images)
    assert change["kept"].tolist() == [0, 1, 2] and len(change["lost"]) == 7
    assert torch.equal(images[:3], mix(original[:3], original[3:6])) and torch.equal(images[3:], original[3:])


def test_recording_none_is_free():
    condenser = Condenser(4, version="none")
    condenser.record(torch.arange(4), torch.randn(4, 3), torch.randn(4, 3), torch.zeros(4).long())
    condenser.merge()
    assert not condenser.visits.any() and not condenser.due(40, 240)


def test_when_knowledge_is_condensed():
    due = [e for e in range(1, 241) if Condenser(10).due(e, 240)]
    assert due == [40, 80, 120, 160, 200]
    assert [e for e in range(1, 241) if Condenser(10, at_last_epoch=True, warmup=100).due(e, 240)] == [
        120,
        160,
        200,
        240,
    ]


def test_the_scope_of_the_record():
    for scope, visits in (("run", 2), ("stage", 1)):
        condenser = Condenser(6, tau=0.9, record_scope=scope, version="remove")
        feed(condenser, torch.rand(6))
        condenser.condense()
        feed(condenser, torch.rand(6))
        assert int(condenser.visits.max()) == visits


@pytest.mark.parametrize("criterion", ["entropy", "lowest", "loss", "margin", "teacher_entropy", "random"])
def test_criteria_order_as_their_names_say(criterion):
    torch.manual_seed(1)
    student, teacher, labels = torch.randn(20, 5) * 3, torch.randn(20, 5) * 3, torch.randint(0, 5, (20,))
    condenser = Condenser(20, version="remove", criterion=criterion, tau=0.5, stages=1, random=torch.rand(20))
    condenser.record(torch.arange(20), student, teacher, labels)
    condenser.merge()
    value = {
        "entropy": entropy(student),
        "lowest": -entropy(student),
        "loss": torch.nn.functional.cross_entropy(student, labels, reduction="none"),
        "margin": margin(student),
        "teacher_entropy": entropy(teacher),
        "random": condenser.random,
    }[criterion]
    assert condenser.condense()["kept"].tolist() == rank(value)[:10].tolist()


def test_random_needs_its_numbers():
    with pytest.raises(ValueError, match="random"):
        Condenser(5, criterion="random")


def test_class_balance_keeps_the_same_share_of_every_class():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    condenser = Condenser(100, version="remove", tau=0.5, stages=1, balance=labels)
    feed(condenser, (labels == 0).double() * 10 + torch.rand(100))  # class 0 looks most valuable
    kept = condenser.condense()["kept"]
    assert torch.bincount(labels[kept]).tolist() == [30, 15, 5]
    order = rank(condenser.total)
    within = [balanced(order, labels).tolist().index(i) for i in order[labels[order] == 1].tolist()]
    assert within == sorted(within)  # inside a class the order is that of the value


def test_a_condenser_survives_its_state_dict():
    torch.manual_seed(0)
    original = torch.randint(0, 256, (40, 4), dtype=torch.uint8)
    images = original.clone()
    one = Condenser(40, tau=0.5)
    for _ in range(4):
        feed(one, torch.rand(40))
        one.condense(images)
    two, replayed = Condenser(40, tau=0.5), original.clone()
    two.load_state_dict(one.state_dict())
    two.replay(replayed)
    assert torch.equal(images, replayed) and len(one.history) == 4
    value = torch.rand(40)
    feed(one, value), feed(two, value)
    assert torch.equal(one.condense(images)["kept"], two.condense(replayed)["kept"]) and torch.equal(images, replayed)


def test_learning_rate_falls_after_the_named_epochs():
    rates = {epoch: learning_rate(0.05, epoch, (150, 180, 210)) for epoch in (150, 151, 180, 181, 210, 211)}
    assert np.allclose(list(rates.values()), [0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5])
