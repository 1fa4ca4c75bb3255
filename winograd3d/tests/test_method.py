"""The equations against closed forms, theorems and each other."""

import itertools
from fractions import Fraction as Q

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from winograd3d.method import (
    StraightThroughMask,
    compose,
    cook_toom,
    crop,
    cubic_sparsity,
    effective_gradient,
    global_masks,
    gram,
    importance,
    input_transform,
    input_transform_adjoint,
    inverse_transform,
    inverse_transform_adjoint,
    is_exact,
    keep_largest,
    kept_channels,
    kept_columns,
    kept_count,
    kept_positions,
    kernel_factors,
    layer_mask,
    matricise,
    pad_to_tiles,
    position_gain,
    product_macs,
    svd_factors,
    tensors,
    tile_counts,
    tile_rank,
    weight_transform,
    winograd,
)
from winograd3d.method.matrices import POINTS

DOUBLE = torch.float64


def rows(text: str) -> tuple:
    return tuple(tuple(Q(word) for word in row.split()) for row in text.split(";"))


TABLES = {  # section 2.1, as Lavin & Gray print them
    1: ("1 1 1", "1 0 0; 0 1 0; 0 0 1", "1 0 0; 0 1 0; 0 0 1"),
    2: (
        "1 1 1 0; 0 1 -1 -1",
        "1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1",
        "1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1",
    ),
    4: (
        "1 1 1 1 1 0; 0 1 -1 2 -2 0; 0 1 1 4 4 0; 0 1 -1 8 -8 1",
        "1/4 0 0; -1/6 -1/6 -1/6; -1/6 1/6 -1/6; 1/24 1/12 1/6; 1/24 -1/12 1/6; 0 0 1",
        "4 0 -5 0 1 0; 0 -4 -4 1 1 0; 0 4 -4 -1 1 0; 0 -2 -1 2 1 0; 0 2 -1 -2 1 0; 0 4 0 -5 0 1",
    ),
}


@pytest.mark.parametrize("m", TABLES)
def test_published_tables(m):
    assert winograd(m) == tuple(rows(text) for text in TABLES[m])


@pytest.mark.parametrize(("m", "points"), [(1, "lavin"), *((m, kind) for m in POINTS for kind in ("lavin", "half"))])
def test_every_choice_is_exact(m, points):
    assert is_exact(winograd(m, points))


def test_exactness_notices_a_wrong_entry():
    at, g, bt = winograd(2)
    assert not is_exact((at, g, (bt[0], bt[1], bt[2], bt[0])))


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_any_different_points_are_exact(m, r, data):
    fractions = st.fractions(min_value=-4, max_value=4, max_denominator=4)
    points = data.draw(st.lists(fractions, min_size=m + r - 2, max_size=m + r - 2, unique=True))
    assert is_exact(cook_toom(m, r, points))


@pytest.mark.parametrize("points", [(0, 1), (0, 1, 1), (0, 1, -1, 2)])
def test_wrong_points_are_refused(points):
    with pytest.raises(ValueError, match="3 different points"):
        cook_toom(2, 3, points)
    with pytest.raises(ValueError, match="no points for m = 5"):
        winograd(5)


@pytest.mark.parametrize("tile", [(2, 2, 2), (4, 4, 4), (2, 4, 4), (1, 2, 2)])
def test_a_transformed_kernel_has_rank_27(tile):
    kernel = torch.randn(40, 2, 3, 3, 3, dtype=DOUBLE)
    weight = weight_transform(kernel, tensors(tile).G)
    assert torch.linalg.matrix_rank(matricise(weight, "kernel")) == 27
    p, q = kernel_factors(kernel, tensors(tile).G, 30)
    assert torch.allclose(compose(p, q, tuple(weight.shape)), weight, rtol=0, atol=1e-13)


@pytest.mark.parametrize("view", ["kernel", "filter"])
def test_the_svd_gap_shrinks_with_the_rank(view):
    weight = weight_transform(torch.randn(16, 8, 3, 3, 3, dtype=DOUBLE), tensors((2, 2, 2)).G)
    gaps = [
        (compose(*svd_factors(weight, view, s), tuple(weight.shape)) - weight).norm() for s in (1, 4, 8, 12, 16, 27)
    ]
    assert all(after < before for before, after in itertools.pairwise(gaps) if before > 1e-10)
    assert gaps[-1] < 1e-10


def test_the_effective_gradient_is_what_a_spatial_step_does():
    axes = tensors((2, 4, 4))
    kernel = torch.randn(3, 2, 3, 3, 3, dtype=DOUBLE, requires_grad=True)
    weight = weight_transform(kernel, axes.G)
    grad = torch.randn_like(weight)
    weight.backward(grad)
    moved = weight_transform(kernel - 0.1 * kernel.grad, axes.G) - weight
    assert torch.allclose(moved, -0.1 * effective_gradient(grad, axes.G), atol=1e-12)


# -- scores ----------------------------------------------------------------------------------------------------------


def test_taylor_is_the_first_order_change_of_the_loss():
    weight = torch.randn(4, 3, 64, dtype=DOUBLE, requires_grad=True)
    slope = torch.randn_like(weight)
    loss = lambda w: (slope * w).sum()  # linear, so that first order is all there is
    loss(weight).backward()
    score = importance("taylor", "position", weight.detach(), weight.grad)
    for column in (0, 17, 63):
        zeroed = weight.detach().clone()
        zeroed[..., column] = 0
        assert torch.isclose((loss(weight) - loss(zeroed)).abs(), score[column])


@pytest.mark.parametrize("granularity", ["position", "channel", "element"])
@pytest.mark.parametrize("score", ["taylor", "taylor_abs", "taylor2", "l2_comp", "l2", "l1"])
def test_which_scores_depend_on_the_gauge(score, granularity):
    """Scaling G's rows by s and Aᵀ's columns by 1/s computes the same; only l1 and l2 notice."""
    axes = tensors((4, 4, 4))
    weight, grad = torch.randn(2, 5, 3, 216, dtype=DOUBLE)
    scale = torch.rand(6, dtype=DOUBLE) + 0.5
    whole = torch.einsum("i,j,k->ijk", scale, scale, scale).flatten()
    gains = position_gain(axes.AT, axes.BT), position_gain([at / scale for at in axes.AT], axes.BT)
    before = importance(score, granularity, weight, grad, gains[0])
    after = importance(score, granularity, weight * whole, grad / whole, gains[1])
    assert torch.allclose(before, after) == (score not in ("l2", "l1"))
    assert before.shape == {"position": (216,), "channel": (3, 216), "element": (5, 3, 216)}[granularity]


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match="gram is not a score of weights"):
        importance("gram", "position", torch.ones(1, 1, 64))


@pytest.mark.parametrize("view", ["kernel", "filter"])
@pytest.mark.parametrize("granularity", ["position", "channel"])
def test_gram_is_the_norm_of_a_column_it_never_forms(view, granularity):
    shape = (6, 4, 64)
    p, q = (torch.randn(24, 5), torch.randn(5, 64)) if view == "kernel" else (torch.randn(6, 5), torch.randn(5, 256))
    p, q = p.double(), q.double()
    expected = importance("l2", granularity, compose(p, q, shape))
    assert torch.allclose(gram(p, q, 4, view, granularity), expected)


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "sparsity", "kept"),
    [(64, 0.5, 32), (64, 0.9, 6), (64, 1.0, 1), (5, 0.5, 3), (10, float(torch.tensor(0.7)), 3), (216, 0.0, 216)],
)
def test_kept_count(columns, sparsity, kept):
    assert kept_count(columns, sparsity) == kept


def test_half_columns_round_up_even_when_the_sparsity_was_a_float32():
    assert kept_count(5, float(torch.tensor(0.5))) == 3 and kept_count(15, float(torch.tensor(0.7))) == 5


def test_ties_keep_the_lower_index():
    score = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert keep_largest(score, 2).tolist() == [False, True, True, False, False]
    assert keep_largest(torch.zeros(4, 2), 3, dim=0).sum(0).tolist() == [3, 3]


def test_balanced_masks_keep_equally_many_channels():
    mask = layer_mask(torch.rand(10, 64), 0.7, "channel_balanced")
    assert mask.sum(0).tolist() == [3] * 64 and kept_channels(mask).shape == (64, 3)
    assert kept_columns(mask, 10) == 192
    with pytest.raises(ValueError, match="not balanced"):
        kept_channels(layer_mask(torch.rand(10, 64), 0.7, "channel"))


def test_global_masks_compare_layers_and_empty_none():
    weak, strong = torch.full((64,), 1e-3), torch.zeros(64)
    strong[:3] = 5.0
    masks = global_masks([weak, strong, torch.zeros(64)], 0.9)
    assert [int(mask.sum()) for mask in masks] == [15, 3, 1]  # 19 of 192; S/‖S‖: 1/8 each, then 1/√3 thrice, then 0
    assert masks[1][:3].all()


def test_kept_columns_of_every_kind_of_mask():
    position = torch.zeros(64, dtype=torch.bool)
    position[[3, 7]] = True
    element = torch.zeros(4, 5, 64, dtype=torch.bool)
    element[:2, 1, 9] = True
    assert kept_columns(position, 5) == 10 and kept_columns(element, 5) == 1
    assert kept_positions(element).tolist() == [9] and kept_positions(position).tolist() == [3, 7]
    assert product_macs(10, 4, 100) == 4000


def test_fewer_than_eight_positions_cannot_express_a_tile():
    at = tensors((2, 2, 2)).AT
    for count in (1, 7):
        mask = torch.zeros(64, dtype=torch.bool)
        mask[:: 64 // count] = True
        assert tile_rank(mask, at) <= mask.sum()
    assert tile_rank(torch.ones(64, dtype=torch.bool), at) == 8
    plane = torch.zeros(4, 4, 4, dtype=torch.bool)
    plane[0] = True  # 16 positions that all feed the first depth slice
    assert tile_rank(plane.flatten(), at) == 4


def test_cubic_schedule():
    assert cubic_sparsity(0, 0.1, 0.9, 0, 70) == pytest.approx(0.1)
    assert cubic_sparsity(35, 0.0, 0.8, 0, 70) == pytest.approx(0.8 * (1 - 0.5**3))
    assert cubic_sparsity(70, 0.1, 0.9, 0, 70) == cubic_sparsity(500, 0.1, 0.9, 0, 70) == 0.9
    assert cubic_sparsity(0, 0.1, 0.9, 0, 0) == 0.9


def test_straight_through_passes_what_the_mask_removes():
    weight, mask = torch.randn(4, requires_grad=True), torch.tensor([True, False, True, False])
    masked = StraightThroughMask.apply(weight, mask)
    masked.backward(torch.ones(4))
    assert torch.equal(masked, weight * mask) and torch.equal(weight.grad, torch.ones(4))


# -- the adjoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [(2, 2, 2), (2, 4, 4), (1, 2, 4)])
def test_adjoints_are_adjoint(tile):
    """<T x, z> = <x, Tᵀ z> for the input and the inverse transform."""
    axes, size = tensors(tile), (5, 7, 6)
    x = pad_to_tiles(torch.randn(2, 3, *size, dtype=DOUBLE), (1, 1, 1), tile)
    v = input_transform(x, axes.BT, tile)
    z = torch.randn_like(v)
    back = input_transform_adjoint(z, axes.BT, tile, tuple(x.shape))
    assert back.shape == x.shape and torch.isclose((v * z).sum(), (x * back).sum())
    counts = tile_counts(size, (1, 1, 1), tile)
    y = crop(inverse_transform(v, axes.AT, 2, counts), size)
    dy = torch.randn_like(y)
    back = inverse_transform_adjoint(dy, axes.AT, counts)
    assert back.shape == v.shape and torch.isclose((y * dy).sum(), (v * back).sum())


# -- padding ---------------------------------------------------------------------------------------------------------


def test_each_axis_is_padded_by_its_own_amount():
    x = torch.ones(1, 1, 5, 6, 7)
    padded = pad_to_tiles(x, (1, 0, 2), (2, 4, 2))
    assert tile_counts((5, 6, 7), (1, 0, 2), (2, 4, 2)) == (3, 1, 5)
    assert padded.shape[2:] == (8, 6, 12)
    assert torch.equal(padded[0, 0, 1:6, :, 2:9], x[0, 0]) and padded.sum() == x.sum()
