"""The equations against their definitions, closed forms and numerical gradients."""

import random
from collections import Counter

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smmix import method
from smmix.method import SMMix
from smmix.mixing import Baseline


def brute(attention: torch.Tensor, r: int) -> torch.Tensor:
    """Window sums by definition, float64 [B, R - r + 1, C - r + 1]."""
    return attention.double().unfold(1, r, 1).unfold(2, r, 1).sum((3, 4))


grids = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6))


@given(grids)
@settings(max_examples=40, deadline=None)
def test_regions_are_the_extreme_windows_also_of_rectangular_grids(case):
    rows, columns, seed = case
    attention = torch.rand(4, rows, columns, generator=torch.Generator().manual_seed(seed))
    sizes = torch.randint(1, min(rows, columns) + 1, (4,), generator=torch.Generator().manual_seed(seed))
    scores, inside = method.region_scores(attention, sizes)
    for b, r in enumerate(sizes.tolist()):
        expected = brute(attention[b : b + 1], r)[0]
        assert inside[b].sum() == expected.numel()
        torch.testing.assert_close(scores[b][: rows - r + 1, : columns - r + 1], expected)
        for how, place in (("max", expected.argmax()), ("min", expected.argmin())):
            corner = method.choose_region(scores, inside, how)[b]
            assert corner.tolist() == [int(place) // expected.shape[1], int(place) % expected.shape[1]]


def test_equal_regions_tie_exactly_and_the_first_is_taken():
    attention = torch.full((2, 7, 5), 0.1)
    scores, inside = method.region_scores(attention, torch.tensor([3, 2]))
    assert all(len(scores[b][inside[b]].unique()) == 1 for b in range(2))
    assert method.choose_region(scores, inside, "max").tolist() == [[0, 0], [0, 0]]


def test_random_regions_are_uniform_over_what_lies_inside():
    scores, inside = method.region_scores(torch.rand(6000, 3, 4), torch.full((6000,), 2))
    corners = method.choose_region(scores, inside, "random", torch.rand(6000, 3, 4))
    counts = Counter(map(tuple, corners.tolist()))
    assert set(counts) == {(i, j) for i in range(2) for j in range(3)}
    assert all(abs(count - 1000) < 150 for count in counts.values())


@given(grids, st.booleans())
@settings(max_examples=25, deadline=None)
def test_mixing_copies_windows_bit_for_bit(case, channels_last):
    rows, columns, seed = case
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, rows * 2, columns * 3, generator=g)  # tokens of 2 x 3 pixels
    images[0, 0, 0, 0] = float("nan")
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    r = int(torch.randint(1, min(rows, columns) + 1, (), generator=g))
    paste, cut = (
        torch.stack([torch.randint(n - r + 1, (4,), generator=g) for n in (rows, columns)], 1) for _ in range(2)
    )
    mixed = method.mix_regions(images, paste, cut, torch.full((4,), r), rows, columns)
    expected = images.clone()
    for b in range(4):
        (top, left), (y, x) = paste[b].tolist(), cut[3 - b].tolist()
        window = images[3 - b, :, y * 2 : (y + r) * 2, x * 3 : (x + r) * 3]
        expected[b, :, top * 2 : (top + r) * 2, left * 3 : (left + r) * 3] = window
    assert torch.equal(mixed.nan_to_num(7), expected.nan_to_num(7))
    assert mixed.is_contiguous(memory_format=torch.channels_last) == images.is_contiguous(
        memory_format=torch.channels_last
    )
    assert torch.equal(images.nan_to_num(7), before.nan_to_num(7))


def test_one_channel_and_integers_mix_as_well():
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    corner = torch.tensor([[0, 0], [2, 2]])
    mixed = method.mix_regions(images, corner, corner, torch.tensor([2, 2]), 4, 4)
    assert torch.equal(mixed[0, :, :4, :4], images[1, :, 4:, 4:]) and torch.equal(mixed[0, :, 4:], images[0, :, 4:])


@pytest.mark.parametrize(
    ("side", "sizes"),
    [
        (14, [*range(3, 11)]),
        (7, [*range(1, 6)]),
        (16, [*range(4, 13)]),
        (4, [1, 2, 3]),
        (2, [1]),
        (24, [*range(6, 19)]),
    ],
)
def test_region_sizes(side, sizes):
    assert method.region_sizes(side) == sizes


@pytest.mark.parametrize(
    ("tokens", "height", "width", "grid"), [(196, 224, 224, (14, 14)), (49, 32, 32, (7, 7)), (98, 112, 224, (7, 14))]
)
def test_infer_grid(tokens, height, width, grid):
    assert method.infer_grid(tokens, height, width) == grid


@pytest.mark.parametrize(("tokens", "height", "width"), [(197, 224, 224), (50, 224, 224), (98, 224, 112 + 16)])
def test_scores_that_fit_no_grid(tokens, height, width):
    with pytest.raises(ValueError, match=f"{tokens} attention scores fit no grid"):
        method.infer_grid(tokens, height, width)


def test_attention_scores_leave_out_the_class_token_without_renormalising():
    attention = torch.rand(2, 3, 5, 5).softmax(-1)
    expected = torch.zeros(2, 4)
    for head in range(3):
        for query in range(1, 5):
            expected += attention[:, head, query, 1:] / 12
    torch.testing.assert_close(method.image_attention(attention), expected)
    assert (method.image_attention(attention).sum(1) < 1).all()
    torch.testing.assert_close(method.image_attention(attention, 0).sum(1), torch.ones(2))
    torch.testing.assert_close(method.class_attention(attention), attention[:, :, 0, 1:].mean(1))


def test_smoothed_labels():
    smooth = method.smooth_labels(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(smooth[0], torch.tensor([0.025, 0.025, 0.925, 0.025]))
    torch.testing.assert_close(smooth.sum(1), torch.ones(2))
    mixed = method.mix_labels(smooth, torch.tensor([0.75, 0.75]))
    torch.testing.assert_close(mixed[0], 0.75 * smooth[0] + 0.25 * smooth[1])
    torch.testing.assert_close(mixed.sum(1), torch.ones(2))


@pytest.mark.parametrize("labels", [[0, 4], [-1, 2]])
def test_labels_out_of_range(labels):
    with pytest.raises(ValueError, match=r"not in 0..3"):
        method.smooth_labels(torch.tensor(labels), 4)


def test_gradients_of_the_losses():
    """Closed forms of section 2.6, and numerical gradients in float64 of the same expressions."""
    torch.manual_seed(0)
    b, k = 4, 6
    o, o_t, o_s, u = (torch.randn(b, k, requires_grad=True) for _ in range(4))
    labels = method.smooth_labels(torch.tensor([0, 5, 2, 2]), k)
    own = torch.full((b,), 0.6)
    mixed = method.Mixed(None, labels, own, torch.ones(1), u, own)
    sum(SMMix(k).losses(mixed, o, o_t, o_s).values()).backward()
    m = (0.6 * u + 0.4 * u.flip(0)).detach()
    torch.testing.assert_close(o.grad, (2 * o.softmax(1) - mixed.target - m.softmax(1)).detach() / b)
    torch.testing.assert_close(o_t.grad, (o_t.softmax(1) - labels).detach() / b / 2)
    torch.testing.assert_close(o_s.grad, (o_s.softmax(1) - labels.flip(0)).detach() / b / 2)
    assert u.grad is None
    tokens = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    source = torch.rand(2, 9) < 0.5
    assert torch.autograd.gradcheck(lambda t: method.pool_regions(t, source), tokens)


def test_pooled_regions_are_means():
    tokens, source = torch.randn(2, 4, 3), torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    pooled = method.pool_regions(tokens, source)
    torch.testing.assert_close(pooled[0], tokens[0, 1:].mean(0))
    torch.testing.assert_close(pooled[1], tokens[1, [0, 3]].mean(0))
    torch.testing.assert_close(pooled[2], tokens[0, 0])
    torch.testing.assert_close(pooled[3], tokens[1, 1:3].mean(0))


def test_consistency_is_zero_for_what_is_expected():
    u, own = torch.randn(4, 5), torch.tensor(0.7)
    assert method.consistency(method.mix_labels(u, own), u, own).abs() < 1e-6
    probabilities = method.mix_labels(u.softmax(1), own)
    assert method.consistency(probabilities.log(), u, own, mix_probabilities=True).abs() < 1e-6
    assert method.consistency(method.mix_labels(u, own), u, own, mix_probabilities=True) > 1e-3


def test_losses_are_float32_under_half_precision():
    labels = method.smooth_labels(torch.tensor([0, 1]), 3)
    logits = torch.randn(2, 3).bfloat16()
    own = torch.full((2,), 0.5)
    mixed = method.Mixed(None, labels, own, torch.ones(1), logits, own)
    assert {term.dtype for term in SMMix(3).losses(mixed, logits, logits, logits).values()} == {torch.float32}


def look(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(len(images), 3, generator=g), torch.rand(len(images), 16, generator=g)


def call(rng=None, **options) -> method.Mixed:
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mixer = SMMix(3, **{"switch_prob": 1.0, **options})
    return mixer(images, torch.tensor([0, 1, 2, 0, 1, 2]), look, rng or random.Random(0))


@pytest.mark.parametrize("cut", ["max", "min", "random"])
@pytest.mark.parametrize("paste", ["max", "min", "random"])
def test_nine_choices_of_cut_and_paste(cut, paste):
    mixed = call(cut=cut, paste=paste, low=0.5, high=0.5)
    scores = brute(look(torch.empty(6))[1].unflatten(1, (4, 4)), 2).flatten(1)
    place = lambda corner: corner[:, 0] * 3 + corner[:, 1]
    for how, corner in ((cut, mixed.cut), (paste, mixed.paste)):
        taken = scores.gather(1, place(corner)[:, None])[:, 0]
        if how != "random":
            torch.testing.assert_close(taken, getattr(scores, how)(1).values)
        else:
            assert (taken != scores.max(1).values).any() and (taken != scores.min(1).values).any()


def test_per_pair_sides():
    sides = set()
    for seed in range(8):
        mixed = call(random.Random(seed), per_pair=True)
        assert torch.equal(mixed.size, mixed.size.flip(0))
        torch.testing.assert_close(mixed.area, 1 - mixed.size.float() ** 2 / 16)
        torch.testing.assert_close(mixed.area, 1 - mixed.source.float().mean(1))
        sides.add(tuple(mixed.size.tolist()))
    assert any(len(set(side)) > 1 for side in sides)


def test_attention_labels():
    mixed = call(label="attention")
    scores = look(torch.empty(6))[1].unflatten(1, (4, 4))
    for b in range(6):
        r, partner = int(mixed.size[b]), 5 - b
        window = lambda b, corner, r=r: scores[b, corner[0] : corner[0] + r, corner[1] : corner[1] + r].sum()
        stays = scores[b].sum() - window(b, mixed.paste[b])
        share = stays / (stays + window(partner, mixed.cut[partner]))
        torch.testing.assert_close(mixed.own[b], (mixed.area[b] + share) / 2)
    torch.testing.assert_close(call().own, call().area)


def test_probability_of_mixing_at_all():
    kinds = Counter(SMMix(2, prob=0.5, switch_prob=0.5).branch(random.Random(seed)) for seed in range(2000))
    assert abs(kinds["none"] - 1000) < 120 and abs(kinds["regions"] - 500) < 100
    plain = call(random.Random(0), prob=0.0)
    torch.testing.assert_close(plain.target, plain.labels)


def test_nothing_is_drawn_twice_and_every_draw_is_repeated_from_its_seed():
    one, two, other = (call(random.Random(seed), cut="random") for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, two) if isinstance(a, torch.Tensor))
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("mixer", [SMMix(3), Baseline("cutmix", 3), Baseline("mixup", 3)])
def test_odd_batches_have_no_pairs(mixer):
    with pytest.raises(ValueError, match="batch of 5 images has no pairs"):
        mixer(torch.zeros(5, 3, 16, 16), torch.zeros(5, dtype=torch.int64), look, random.Random(0))


@pytest.mark.parametrize(("grid", "words"), [((4, 2), "4 x 2 tokens does not fit 16"), ((16, 1), None), ((2, 8), None)])
def test_a_stated_grid(grid, words):
    if words:
        with pytest.raises(ValueError, match=words):
            call(grid=grid)
    elif grid == (16, 1):
        with pytest.raises(ValueError, match="no region"):
            call(grid=grid)
    else:
        assert int(call(grid=grid).size[0]) == 1


def test_a_region_larger_than_the_grid_is_not_drawn():
    with pytest.raises(ValueError, match=r"no region between 0\.9 and 0\.6"):
        method.region_sizes(4, 0.9, 0.6)
    for side in (0, 5):
        with pytest.raises(ValueError, match=f"{side} tokens a side does not lie in a grid of 4 x 6"):
            method.region_scores(torch.rand(2, 4, 6), torch.tensor([side, side]))


def test_compiled_once_for_every_draw():
    """Sides are data, not shapes: no draw makes torch.compile trace anew."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    mixer = SMMix(3, switch_prob=1.0)
    compiled = torch.compile(mixer.apply, backend=counter, fullgraph=True)
    images, (logits, scores) = torch.randn(6, 3, 16, 16), look(torch.empty(6))
    labels = method.smooth_labels(torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    for r in (1, 2, 3):
        size = torch.full((6,), r)
        ours = compiled(images, labels, logits, scores.unflatten(1, (4, 4)), size)
        plain = mixer.apply(images, labels, logits, scores.unflatten(1, (4, 4)), size)
        assert torch.equal(ours.images, plain.images) and torch.equal(ours.source, plain.source)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_baselines_leave_the_given_images_alone_and_mix_by_area():
    images = torch.randn(4, 1, 8, 8)
    before = images.clone()
    for seed in range(20):
        mixed = Baseline("cutmix", 3)(images, torch.tensor([0, 1, 2, 0]), None, random.Random(seed))
        changed = (mixed.images != images).any(1)
        top, bottom, left, right = mixed.box
        assert not changed[:, :top].any() and not changed[:, bottom:].any()
        assert changed[:, top:bottom, left:right].all()
        assert float(mixed.own) == pytest.approx(1 - (bottom - top) * (right - left) / 64)
    assert torch.equal(images, before)
    assert Baseline("none", 3)(images, torch.tensor([0, 1, 2, 0]), None, random.Random(0)).images is images


def test_soft_cross_entropy_is_torchs():
    logits, target = torch.randn(4, 5), torch.rand(4, 5).softmax(1)
    torch.testing.assert_close(method.soft_cross_entropy(logits, target), F.cross_entropy(logits, target))
