"""The digits canvas: what section 11 says of it, and that it is a function of seed and position alone."""

from types import SimpleNamespace

from common.labelled import Labelled, batches

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from smmix.canvas import SIDE, load


@pytest.fixture(scope="module")
def sets():
    return load(SimpleNamespace(limit=0), 3)


def values(part) -> torch.Tensor:
    """Canvases [N, 16, 16] before the network's normalisation."""
    images, _ = part.fetch(torch.arange(len(part)), 0)
    return images[:, 0] / 3 + 0.3


def test_every_digit_is_on_one_canvas(sets):
    train, test = sets
    assert (len(train), len(test), len(train.classes)) == (1200, 597, 10)
    assert torch.equal(torch.cat([train.labels, test.labels]), torch.from_numpy(load_digits().target))
    images, labels = test.fetch(torch.tensor([5, 1]), 0)
    assert images.shape == (2, 1, SIDE, SIDE) and labels.tolist() == load_digits().target[[1205, 1201]].tolist()


def test_the_digit_is_pasted_unchanged_at_an_even_offset(sets):
    digits = torch.from_numpy(load_digits().images / 16).float()
    for part, own in zip(sets, (digits[:1200], digits[1200:])):
        index = torch.arange(len(part))
        offsets, ink, canvas = part.offset(index), part.ink(index), values(part)
        assert offsets.unique().tolist() == [0, 2, 4, 6, 8]
        for i in range(0, len(part), 37):
            y, x = offsets[i].tolist()
            assert torch.equal(ink[i, y : y + 8, x : x + 8], own[i])
            torch.testing.assert_close(canvas[i, y : y + 8, x : x + 8], own[i])
        assert torch.equal(ink.sum((1, 2)), own.sum((1, 2)))


def test_offsets_and_noise_have_the_stated_distributions(sets):
    train, _ = sets
    index = torch.arange(len(train))
    counts = torch.stack([torch.bincount(column // 2, minlength=5) for column in train.offset(index).T])
    assert ((counts / 1200 - 0.2).abs() < 0.05).all()  # four standard errors
    outside = torch.ones(len(train), SIDE, SIDE, dtype=torch.bool)
    for i, (y, x) in enumerate(train.offset(index).tolist()):
        outside[i, y : y + 8, x : x + 8] = False
    noise = values(train)[outside].double()
    n = len(noise)
    assert abs(noise.mean() - 0.1) < 5 * 0.08 / n**0.5
    assert abs(noise.std() - 0.08) < 5 * 0.08 / (2 * n) ** 0.5
    standard = (noise - 0.1) / 0.08
    assert abs((standard**3).mean()) < 0.03 and abs((standard**4).mean() - 3) < 0.06  # it is Gaussian
    pairs = (values(train)[:, :-1] - 0.1) * (values(train)[:, 1:] - 0.1)
    assert abs(pairs[outside[:, :-1] & outside[:, 1:]].mean()) < 2e-4  # and white


def test_a_canvas_depends_on_seed_and_number_alone(sets):
    train, test = sets
    index = torch.tensor([7, 300, 7])
    images, _ = train.fetch(index, 0)
    assert torch.equal(images, train.fetch(index, 4)[0]) and torch.equal(images[0], images[2])
    assert torch.equal(images[1], train.fetch(torch.tensor([300]), 0)[0][0])
    again, _ = load(SimpleNamespace(limit=0), 3)
    assert torch.equal(images, again.fetch(index, 0)[0]) and again.fingerprint() == train.fingerprint()
    other, _ = load(SimpleNamespace(limit=0), 4)
    assert not torch.equal(images, other.fetch(index, 0)[0]) and other.fingerprint() != train.fingerprint()
    assert train.fingerprint() != test.fingerprint()
    index = torch.arange(100)  # the first test digits have canvases of their own
    assert not torch.equal(train.offset(index), test.offset(index))
    assert (values(train)[:100] == values(test)[:100]).float().mean() < 0.4  # black beside both digits' ink
    few, few_tests = load(SimpleNamespace(limit=10), 3)
    assert (len(few), len(few_tests)) == (10, 10)
    assert torch.equal(few_tests.fetch(torch.arange(10), 0)[0], test.fetch(torch.arange(10), 0)[0])


def test_the_loop_of_common_feeds_it(sets):
    train, _ = sets
    settings = Labelled(batch_size=60)
    (batch,) = next(batches(train, torch.arange(1200), 1, settings, torch.device("cpu")))
    assert batch.images.shape == (60, 1, 16, 16) and np.array_equal(batch.labels, train.labels[:60])
