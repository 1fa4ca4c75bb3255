"""The equations: prior, tiles, class split, routes, losses, slimmable layers, learning rates."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dda.method import losses, prior, routing, schedule
from dda.method.slimmable import SlimConv2d, columns, slim
from dda.method.tiles import blend, covering, cut, offsets, stitch


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# -- prior -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (65, 48), (31, 33)])
def test_the_high_pass_is_the_shifted_complex_transform(size):
    grey = noise(1, *size)
    u, v = (np.arange(n) - n / 2 for n in size)
    mask = (1 - np.exp(-(u[:, None] ** 2 + v**2) / 50)).astype(np.float32)
    spectrum = np.fft.fftshift(np.fft.fft2(grey[0].numpy())) * mask
    expected = np.minimum(255, np.rint(np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum)))))
    assert np.array_equal(prior.high_pass(grey)[0].numpy(), expected)


def test_single_precision_moves_the_score_by_a_millionth():
    tiles = noise(3, 3, 128, 160)
    torch.testing.assert_close(
        prior.moire_prior(tiles, dtype=torch.float32), prior.moire_prior(tiles), rtol=2e-5, atol=0
    )


def test_a_batch_scores_as_its_tiles_do():
    tiles = noise(4, 3, 64, 96)
    for mode in ("paper", "official_train", "official_test"):
        alone = torch.cat([prior.moire_prior(tile[None], mode) for tile in tiles])
        assert torch.equal(prior.moire_prior(tiles, mode), alone)


def test_grey_has_no_colour_and_a_flat_tile_no_frequency():
    grey = noise(1, 1, 64, 64).expand(-1, 3, -1, -1)
    assert prior.colourfulness(grey) == 0 and prior.frequency(grey) > 0
    flat = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    assert prior.frequency(flat) == 0 and prior.moire_prior(flat) == 0


def test_stripes_of_colour_raise_the_score():
    ramp = torch.arange(128, dtype=torch.float32)
    smooth = (100 + ramp[None, :, None] / 4 + ramp / 4).expand(3, -1, -1)
    stripes = 25 * torch.stack([torch.sin(0.4 * (c + 1) * ramp) for c in range(3)])[:, None]
    tiles = torch.stack([smooth, smooth + stripes]).round().to(torch.uint8)
    before, after = prior.moire_prior(tiles)
    assert after > 2 * before


def test_relative_cut_off_is_the_fixed_one_at_512():
    tiles = noise(1, 3, 512, 512)
    assert torch.equal(prior.moire_prior(tiles, relative_d0=True), prior.moire_prior(tiles))
    small = noise(1, 3, 128, 128)
    assert prior.moire_prior(small, relative_d0=True) > prior.moire_prior(small)


@pytest.mark.parametrize("tiles", [torch.zeros(1, 3, 8, 8), noise(3, 8, 8), noise(1, 4, 8, 8), noise(1, 3, 1, 8)])
def test_what_is_no_tile_is_refused(tiles):
    with pytest.raises(ValueError, match="uint8"):
        prior.moire_prior(tiles)


@pytest.mark.parametrize("size", [(256, 256), (100, 37), (300, 500), (77, 65), (154, 130)])
def test_resizing_is_opencv_s(size):
    import cv2

    picture = noise(1, 3, 77, 130)
    expected = cv2.resize(picture[0].permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(prior.resize_linear(picture, size)[0].permute(1, 2, 0).numpy(), expected)


# -- tiles -----------------------------------------------------------------------------------------------------------


def test_offsets_drop_a_small_rest_and_cover_a_large_one():
    assert offsets(608, 512) == [0] and offsets(609, 512) == [0, 97]
    with pytest.raises(ValueError, match="does not fit"):
        offsets(500, 512)


@settings(deadline=None)
@given(st.integers(1, 900), st.integers(16, 256), st.integers(0, 15))
def test_covering_leaves_nothing_out_and_overlaps_enough(length, tile, overlap):
    starts = covering(length, tile, overlap)
    assert starts[0] == 0 and (len(starts) == 1 or starts[-1] + tile == length)
    assert all(a < b <= a + tile - overlap for a, b in itertools.pairwise(starts))


def test_stitching_undoes_cutting():
    image = torch.rand(3, 64, 96)
    rows, wide = offsets(64, 32), offsets(96, 32)
    assert torch.equal(stitch(cut(image, rows, wide, 32, 32), rows, wide, (64, 96)), image)


@settings(deadline=None, max_examples=30)
@given(st.integers(40, 120), st.integers(40, 120), st.integers(0, 24))
def test_blending_tiles_of_one_picture_gives_it_back(height, width, overlap):
    image = torch.rand(3, height, width)
    rows, wide = covering(height, 40, overlap), covering(width, 40, overlap)
    whole = blend(cut(image, rows, wide, 40, 40), rows, wide, (height, width))
    torch.testing.assert_close(whole, image, rtol=1e-5, atol=1e-6)


def test_blending_has_no_seam():
    rows, wide = [0], covering(96, 48, 16)
    tiles = torch.arange(len(wide), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 48).clone()
    line = blend(tiles, rows, wide, (8, 96))[0, 0]
    assert line.diff().abs().max() < 0.2 and line[0] == 0 and line[-1] == len(wide) - 1


# -- routes ----------------------------------------------------------------------------------------------------------

SCORES = torch.tensor([5.0, 1.0, 9.0, 7.0])


def test_ranks_keep_the_order_of_ties():
    assert routing.ranks(torch.tensor([2.0, 1.0, 2.0, 1.0])).tolist() == [2, 0, 3, 1]


def test_the_shares_are_the_protocol_s():
    assert routing.share_out(6) == [2, 2, 2] and routing.share_out(4) == [1, 2, 1]
    assert sum(routing.share_out(5)) == 5 and routing.share_out(24) == [8, 8, 8]


def test_routes_of_four_tiles():
    assert routing.by_rank(SCORES).tolist() == [1, 2, 0, 1]
    assert routing.released(SCORES).tolist() == [0, 2, 0, 0]
    assert routing.inverse(SCORES).tolist() == [1, 0, 2, 1]


def test_global_thresholds_give_every_width_its_share():
    scores = torch.rand(999, generator=torch.Generator().manual_seed(0))
    limits = routing.calibrate(scores, 3)
    assert limits == sorted(limits, reverse=True)
    assert torch.bincount(routing.by_threshold(scores, limits)).tolist() == [333, 333, 333]
    assert routing.by_threshold(torch.zeros(4), limits).tolist() == [2, 2, 2, 2]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=9), st.floats(0, 1))
def test_a_budget_is_kept_used_and_given_to_high_scores(scores, share):
    costs = [100, 40, 10]
    scores = torch.tensor(scores)
    budget = len(scores) * (10 + 90 * share)
    choice = routing.by_budget(scores, costs, budget)
    spent = sum(costs[c] for c in choice.tolist())
    assert spent <= budget
    assert share < 1 or choice.sum() == 0
    levels = choice[scores.argsort(dim=0, descending=True, stable=True)].tolist()
    assert levels == sorted(levels)
    if 2 in levels:
        assert spent + 30 > budget


def test_a_budget_below_the_narrowest_is_refused():
    with pytest.raises(ValueError, match="narrowest"):
        routing.by_budget(SCORES, [100, 40, 10], 39)


def test_rank_five_is_in_two_classes_unless_told_otherwise():
    scores = torch.arange(8.0)
    assert routing.class_membership(scores).sum(0).tolist() == [3, 3, 3]
    assert routing.class_membership(scores)[5].tolist() == [True, True, False]
    clean = routing.class_membership(scores, overlap=False)
    assert clean.sum(0).tolist() == [2, 3, 3] and clean.sum(1).tolist() == [1] * 8


# -- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [losses.l1, losses.asl, losses.sobel_l1, losses.l2, losses.charbonnier])
def test_gradients_of_the_losses(function):
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.rand(2, 3, 6, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: function(x, target), output.requires_grad_())


def test_all_losses_are_divided_by_the_batch_alone_but_sobel():
    output, target = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    twice = [t.repeat(2, 1, 1, 1) for t in (output, target)]
    for function in (losses.l1, losses.asl, losses.l2, losses.charbonnier):
        torch.testing.assert_close(function(*twice), function(output, target))
    torch.testing.assert_close(losses.sobel_l1(*twice), 2 * losses.sobel_l1(output, target))


def test_scales_are_added_up_with_equal_weights():
    target = torch.rand(1, 3, 16, 16)
    outputs = [torch.rand(1, 3, n, n) for n in (4, 8, 16)]
    half = torch.nn.functional.interpolate(target, scale_factor=0.5, mode="bilinear")
    quarter = torch.nn.functional.interpolate(half, scale_factor=0.5, mode="bilinear")
    expected = sum((o - t).abs().sum() for o, t in zip(outputs, (quarter, half, target)))
    terms = losses.multi_scale(outputs, target)
    torch.testing.assert_close(terms["l1"], expected)
    pairs = zip(outputs, (quarter, half, target))
    torch.testing.assert_close(terms["asl"], 0.25 * sum(losses.asl(o, t) for o, t in pairs))
    assert losses.multi_scale(outputs, target, 0).keys() == {"l1"}


# -- slimmable layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "used"), [(32, [24, 19, 16, 12, 8]), (64, [48, 38, 32, 25, 16]), (128, [96, 76, 64, 51, 32])]
)
def test_the_channels_of_section_2_4(channels, used):
    for width, expected in zip((0.75, 0.6, 0.5, 0.4, 0.25), used):
        assert slim(channels, width) == slim(channels, float(np.float32(width))) == expected
    assert slim(channels, 1.0) == channels


def test_columns_of_a_concatenation():
    assert columns(((3, False), (16, True)), 0.5) == [(0, 3), (3, 8)]
    assert columns(((16, True), (3, False)), 0.5) == [(0, 8), (16, 3)]


def test_unused_weights_get_no_gradient_and_full_width_is_a_plain_convolution():
    layer = SlimConv2d(16, 8, 3, padding=1, segments=((4, True), (12, True)))
    x = torch.rand(1, 16, 5, 5)
    assert torch.equal(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    layer(torch.rand(1, 8, 5, 5), 0.5).sum().backward()
    used = layer.weight.grad.abs().sum((2, 3)) > 0
    rows = torch.arange(8)[:, None] < 4
    wide = torch.isin(torch.arange(16), torch.tensor([0, 1, 4, 5, 6, 7, 8, 9]))
    assert torch.equal(used, rows & wide)


def test_a_slice_has_weights_of_its_own():
    layer = SlimConv2d(8, 8, 3)
    part = layer.slice(0.5)
    with torch.no_grad():
        part.weight.zero_()
    assert layer.weight.abs().min() > 0 and part.weight.is_contiguous() and type(part) is torch.nn.Conv2d


def test_segments_must_add_up():
    with pytest.raises(ValueError, match="do not add up"):
        SlimConv2d(8, 8, 3, segments=((3, False), (4, True)))


# -- schedule --------------------------------------------------------------------------------------------------------


def test_a_flat_curve_halves_the_rate_and_a_rising_one_does_not():
    assert schedule.plateau(1.0, [20.0] * 7) == 0.5 and schedule.plateau(1.0, [20.0] * 6) == 1.0
    rising = [20 + 0.5 * i for i in range(7)]
    assert schedule.plateau(1.0, rising) == 1.0 and schedule.plateau(1.0, rising, "official") == 0.5


def test_multistep_and_the_order_of_widths():
    rates = [schedule.multistep(epoch) for epoch in (0, 49, 50, 99, 100)]
    assert all(math.isclose(a, b) for a, b in zip(rates, [1, 1, 0.1, 0.1, 0.01]))
    assert [schedule.width_of_step(i) for i in range(4)] == [0, 1, 2, 0]
