"""A draw depends on (seed, epoch, index, slot) alone, and nothing about it may ever change unnoticed."""

import random

from common import randomness

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

INDEX = torch.arange(1000)


def reference_bits(seed, epoch, index, slot):
    """The same hash in Python's unbounded integers."""
    mask = 2**32 - 1

    def mix(x):
        x = ((x ^ x >> 16) * 0x7FEB352D) & mask
        x = ((x ^ x >> 15) * 0x846CA68B) & mask
        return x ^ x >> 16

    key = mix(mix((seed % 2**32 + 0x9E3779B9) % 2**32) ^ (seed >> 32) % 2**32)
    key = mix(key ^ epoch % 2**32)
    hashed = mix(key ^ index % 2**32)
    hashed = mix((hashed + (index >> 32) * 0x85EBCA6B) % 2**32)
    return mix(hashed ^ mix((slot * 0x9E3779B1 + 0x2545F491) % 2**32))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((0, 0, 0, 0), 1729071784),
        ((0, 1, 0, 0), 1703911574),
        ((1, 1, 5, 4), 3271575530),
        ((-1, 3, 7, 16), 4194939097),
        ((1099511627785, 200, 49999, 2), 4066155979),
        ((0, 1, 8589934593, 0), 3241285136),
        ((1000000000000000000000000000000, 1, 1, 1), 815341800),
    ],
)
def test_golden_bits(key, expected):
    assert int(randomness.bits(*key)) == expected


def test_golden_order_and_numbers():
    assert randomness.permutation(0, 1, 10).tolist() == [8, 7, 1, 6, 5, 0, 2, 9, 4, 3]
    assert (randomness.uniform(0, 1, torch.arange(4), 16) * 2**24).tolist() == [
        12208302.0,
        10207488.0,
        2811188.0,
        6209062.0,
    ]
    assert randomness.integers(0, 1, torch.arange(8), 16, 9).tolist() == [6, 5, 1, 3, 7, 2, 4, 7]


@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 2**40),
    index=st.integers(0, 2**45),
    slot=st.integers(0, 2**20),
)
@settings(max_examples=100, deadline=None)
def test_tensor_arithmetic_wraps_as_the_hash_wants(seed, epoch, index, slot):
    assert int(randomness.bits(seed, epoch, index, slot)) == reference_bits(seed, epoch, index, slot)


def test_a_draw_does_not_depend_on_the_batch_it_is_in():
    whole = randomness.bits(3, 5, INDEX, 7)
    shuffled = torch.randperm(len(INDEX), generator=torch.Generator().manual_seed(0))
    assert torch.equal(randomness.bits(3, 5, shuffled, 7), whole[shuffled])
    assert torch.equal(torch.cat([randomness.bits(3, 5, part, 7) for part in INDEX.split(37)]), whole)
    assert [int(randomness.bits(3, 5, i, 7)) for i in range(5)] == whole[:5].tolist()
    grid = randomness.bits(3, 5, INDEX[:, None], torch.arange(9)[None])
    assert grid.shape == (1000, 9)
    assert torch.equal(grid[:, 7], whole)


def test_draws_need_no_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = randomness.uniform(1, 1, INDEX, 0)
    torch.rand(5)
    assert torch.equal(randomness.uniform(1, 1, INDEX, 0), first)
    torch.manual_seed(0)
    randomness.permutation(1, 1, 100)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, -(2**63), 2**64 + 3, 10**30])
def test_any_integer_is_a_seed(seed):
    value = randomness.bits(seed, 1, INDEX, 0)
    assert value.dtype == torch.int64
    assert 0 <= int(value.min()) <= int(value.max()) < 2**32
    assert sorted(randomness.permutation(seed, 1, 50).tolist()) == list(range(50))


def test_every_part_of_the_key_counts():
    """Two streams agree in a position with probability 2^-32, whichever part of the key differs."""
    streams = {
        (seed, epoch, slot): randomness.bits(seed, epoch, INDEX, slot)
        for seed in (0, 1, -1, 2, 2**31, 2**32, 2**33, 2**32 + 1)
        for epoch in (0, 1, 2, 300)
        for slot in (0, 1, 2, 15, 16, 40)
    }
    together = torch.stack(list(streams.values()))
    # 192,000 draws: 4.3 coincidences are expected, more than 20 have probability below 1e-8.
    assert together.numel() - len(together.unique()) <= 20
    far = randomness.bits(0, 1, INDEX + 2**32, 0)
    assert (far == streams[0, 1, 0]).sum() == 0


def test_indices_of_an_epoch_never_collide_within_a_slot():
    """For a fixed key the hash is a bijection of the index's 32 bits."""
    assert len(randomness.bits(5, 2, torch.arange(200_000), 3).unique()) == 200_000


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("slot", [0, 4, 16])
@pytest.mark.parametrize(
    "draws",
    [
        lambda slot: randomness.uniform(1, 1, torch.arange(64_000), slot),  # along a data set
        lambda slot: torch.cat([randomness.uniform(1, e, torch.arange(64), slot) for e in range(1000)]),  # epochs
        lambda slot: torch.cat([randomness.uniform(s, 1, torch.arange(64), slot) for s in range(1000)]),  # seeds
    ],
    ids=["indices", "epochs", "seeds"],
)
def test_numbers_are_uniform(draws, slot):
    """Chi-square with 63 degrees of freedom stays inside its 1e-6 tails (quantiles 19.7 and 134)."""
    values = draws(slot)
    assert values.dtype == torch.float32
    assert 0 <= float(values.min()) < float(values.max()) < 1
    assert 19 < chi_square(torch.bincount((values * 64).long(), minlength=64).double()) < 134


def test_neighbours_are_independent():
    """Pairs (index, index + 1), (slot, slot + 1) and (epoch, epoch + 1) fill an 8 x 8 table evenly."""
    base = randomness.uniform(1, 1, torch.arange(64_001), 4)
    others = {
        "index": base[1:],
        "slot": randomness.uniform(1, 1, torch.arange(64_000), 5),
        "epoch": randomness.uniform(1, 2, torch.arange(64_000), 4),
        "seed": randomness.uniform(2, 1, torch.arange(64_000), 4),
    }
    for name, other in others.items():
        cell = (base[:-1] * 8).long() * 8 + (other * 8).long()
        assert 19 < chi_square(torch.bincount(cell, minlength=64).double()) < 134, name


def test_every_bit_is_fair():
    ones = torch.stack([(randomness.bits(1, 1, torch.arange(100_000), 0) >> k & 1).sum() for k in range(32)])
    assert ((ones - 50_000).abs() < 5 * 158).all()  # five standard deviations of a fair coin


@given(seed=st.integers(0, 2**40), slot=st.integers(0, 63), high=st.integers(1, 2**31 - 1))
@settings(max_examples=100, deadline=None)
def test_integers_stay_below_their_bound(seed, slot, high):
    values = randomness.integers(seed, 1, INDEX, slot, high)
    assert values.dtype == torch.int64
    assert int(values.min()) >= 0
    assert int(values.max()) < high


def test_integers_reach_every_value_evenly():
    values = randomness.integers(1, 1, torch.arange(64_000), 16, 64)
    assert 19 < chi_square(torch.bincount(values, minlength=64).double()) < 134
    bounds = torch.tensor([1, 2, 9])
    each = randomness.integers(1, 1, INDEX[:, None], 16, bounds)
    assert each.max(0).values.tolist() == [0, 1, 8]


@pytest.mark.parametrize("n", [0, 1, 2, 1797, 50_000])
def test_an_order_is_a_permutation(n):
    order = randomness.permutation(7, 3, n)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))


def test_orders_differ_by_epoch_and_seed():
    orders = [randomness.permutation(seed, epoch, 500) for seed in (0, 1) for epoch in (1, 2, 3)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 15  # one coincidence is expected


def test_every_place_is_equally_likely():
    """Orders of four, over 1,600 epochs and the 24 orders: chi-square inside its 1e-6 tails."""
    orders = torch.stack([randomness.permutation(0, epoch, 4) for epoch in range(1600)])
    code = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.bincount(code, minlength=256)
    counts = counts[counts > 0].double()
    assert len(counts) == 24
    assert 2.5 < chi_square(counts) < 73  # 23 degrees of freedom


def test_ties_of_keys_are_broken_by_index(monkeypatch):
    monkeypatch.setattr(randomness, "bits", lambda seed, epoch, index, slot: torch.zeros_like(index))
    assert randomness.permutation(0, 0, 5).tolist() == [0, 1, 2, 3, 4]


def test_seed_everything_reaches_every_generator():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    randomness.seed_everything(2**40 + 5)
    first = draw()
    assert draw() != first
    randomness.seed_everything(2**40 + 5)
    assert draw() == first
    randomness.seed_everything(6)
    assert all(a != b for a, b in zip(draw(), first))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares the CPU with CUDA")
def test_cuda_draws_the_same():
    for slot in (0, 16):
        there = randomness.bits(2**35 + 1, 9, (INDEX + 2**33).cuda(), slot)
        assert torch.equal(there.cpu(), randomness.bits(2**35 + 1, 9, INDEX + 2**33, slot))
    assert torch.equal(randomness.permutation(3, 4, 5000, "cuda").cpu(), randomness.permutation(3, 4, 5000))
