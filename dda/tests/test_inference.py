"""Routed inference: grids, routes, batching, folding, blending, and what it refuses."""

from common.errors import InputError

import numpy as np
import pytest
import torch

from dda import models
from dda.config import Prior, Routing
from dda.inference import Demoirer, check_widths, mirror, overlay, plan
from dda.metrics import psnr_fitted

WIDTHS = (0.75, 0.5, 0.25)


def network(name: str = "dmcnn", channels: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(name, channels=channels).eval()


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Tiles of very different strength of colour and detail."""
    generator = torch.Generator().manual_seed(seed)
    image = 255 * torch.rand(3, height, width, generator=generator)
    return (image * torch.linspace(0.05, 1, width)).to(torch.uint8)


@pytest.mark.parametrize("name", ["dmcnn", "mbcnn"])
def test_it_is_the_supernet_tile_by_tile(name):
    net, image = network(name), picture(64, 96)
    result = Demoirer(net, WIDTHS, tile=(32, 32))(image)
    assert sorted(result.choice.tolist()) == [0, 0, 1, 1, 2, 2]
    for number, width in enumerate(WIDTHS[i] for i in result.choice.tolist()):
        top, left = 32 * (number // 3), 32 * (number % 3)
        tile = image[None, :, top : top + 32, left : left + 32] / 255
        with torch.no_grad():
            expected = net(tile, width)[-1][0]
        torch.testing.assert_close(result.image[:, top : top + 32, left : left + 32], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (31, 33), (64, 64), (100, 70)])
@pytest.mark.parametrize("overlap", [0, 12])
def test_any_size_comes_back_at_its_size(size, overlap):
    result = Demoirer(network(), WIDTHS, tile=(32, 48), overlap=overlap)(picture(*size))
    assert result.image.shape == (3, *size) and result.image.isfinite().all()
    assert overlay(picture(*size), result).shape == (3, *size)


def test_a_small_image_is_continued_by_reflection():
    assert mirror(4, 11).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]
    assert mirror(1, 3).tolist() == [0, 0, 0]


def test_batches_and_layouts_do_not_matter():
    net, image = network(), picture(64, 96)
    one = Demoirer(net, WIDTHS, tile=(32, 32), batch=1, channels_last=False)(image)
    many = Demoirer(net, WIDTHS, tile=(32, 32), batch=8)(image)
    torch.testing.assert_close(one.image, many.image, rtol=1e-4, atol=1e-5)


def test_multiply_adds_are_those_of_the_tiles():
    net = network()
    result = Demoirer(net, WIDTHS, tile=(32, 32))(picture(64, 96))
    assert result.macs == 2 * sum(models.macs(net, width, (32, 32)) for width in WIDTHS)


@pytest.mark.parametrize(
    ("routing", "expected"),
    [
        (Routing("rank"), [2, 1, 1, 0]),
        (Routing("inverse"), [0, 1, 1, 2]),
        (Routing("released"), [2, 0, 0, 0]),
        (Routing("fixed", fixed=1), [1, 1, 1, 1]),
        (Routing("budget", budget=1.0), [0, 0, 0, 0]),
        (Routing("threshold"), [2, 2, 1, 0]),
    ],
    ids=lambda value: value.kind if isinstance(value, Routing) else "",
)
def test_routes(routing, expected):
    image = picture(32, 128)
    scores = Demoirer(network(), WIDTHS, tile=(32, 32))(image).scores
    assert scores.tolist() == sorted(scores.tolist())
    limits = [float(scores[2:].mean()), float(scores[1:3].mean())]
    limits = limits if routing.kind == "threshold" else ()
    result = Demoirer(network(), WIDTHS, tile=(32, 32), routing=routing, thresholds=limits)(image)
    assert result.choice.tolist() == expected


def test_random_routes_follow_seed_and_image():
    routes = [
        Demoirer(network(), WIDTHS, tile=(16, 16), routing=Routing("random"), seed=seed)(picture(64, 96), number)
        for seed, number in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    first, again, other_seed, other_image = (route.choice.tolist() for route in routes)
    assert first == again and first != other_seed and first != other_image
    assert sorted(first) == [0] * 8 + [1] * 8 + [2] * 8


def test_the_oracle_follows_the_truth_and_needs_it():
    routed = Demoirer(network(), WIDTHS, tile=(32, 32), routing=Routing("oracle"))
    truth = torch.linspace(1, 0, 128).expand(32, 128)
    assert routed(picture(32, 128), hardness=truth).choice.tolist() == [0, 1, 1, 2]
    with pytest.raises(InputError, match="true strength"):
        routed(picture(32, 128))


def test_the_prior_s_modes_reach_the_scores():
    image = picture(32, 128)
    modes = ("paper", "official_test")
    found = [Demoirer(network(), WIDTHS, tile=(32, 32), prior=Prior(mode))(image).scores for mode in modes]
    assert not torch.allclose(*found)


def test_overlapping_tiles_are_blended():
    """Where neighbouring tiles of a flat picture go through other widths, an overlap takes the step out."""
    image, steps = torch.full((3, 32, 96), 128, dtype=torch.uint8), {}
    for overlap in (0, 24):
        routed = Demoirer(network(), (1.0, 0.25), tile=(32, 48), overlap=overlap)
        routed.choose = lambda tiles, *_: (torch.arange(len(tiles)) % 2, None)
        result = routed(image).image
        steps[overlap] = (result[:, :, 48] - result[:, :, 47]).mean().abs()
    assert steps[24] < steps[0] / 2


@pytest.mark.parametrize("widths", [(), (0.5, 0.75), (0.5, 0.5), (1.2, 0.5), (0.5, 0.0), (0.5, -1)])
def test_widths_must_fall_within_their_range(widths):
    with pytest.raises(InputError, match="widths"):
        check_widths(widths)


def test_what_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="multiple of 16"):
        plan((64, 64), (40, 48), 16)
    with pytest.raises(InputError, match="overlap"):
        plan((64, 64), (32, 32), 16, 32)
    with pytest.raises(InputError, match="only 3 widths"):
        Demoirer(network(), WIDTHS, routing=Routing("fixed", fixed=3))
    with pytest.raises(InputError, match="need 2 thresholds"):
        Demoirer(network(), WIDTHS, routing=Routing("threshold"), thresholds=[1.0])
    with pytest.raises(InputError, match="below the narrowest"):
        Demoirer(network(), WIDTHS, tile=(32, 32), routing=Routing("budget", budget=0.01))(picture(32, 64))


def test_the_map_is_red_where_wide_and_green_where_narrow():
    image = picture(32, 96)
    result = Demoirer(network(), WIDTHS, tile=(32, 32))(image)
    grey = torch.full((3, 32, 96), 128, dtype=torch.uint8)
    red, green, _ = overlay(grey, result).float().unbind(0)
    assert result.choice.tolist() == [2, 1, 0]
    assert red[16, 80] > green[16, 80] and green[16, 16] > red[16, 16]


def test_the_fitted_baseline_is_the_straight_line_of_least_squares():
    """Against numpy's fit of a line, and exact for a picture that only its tone tells from the clean one."""
    image, clean = torch.randint(40, 200, (2, 2, 3, 9, 11), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for number, found in enumerate(psnr_fitted(image, clean).tolist()):
        x, y = (t[number].flatten().double().numpy() for t in (image, clean))
        error = np.square(np.polyval(np.polyfit(x, y, 1), x) - y).mean()
        assert found == pytest.approx(10 * np.log10(255**2 / error), abs=1e-9)
    assert psnr_fitted(clean // 2 * 2, clean // 4 * 2 + 10).min() > 40 > psnr_fitted(image, clean).max()
