"""Equations: closed forms, gradients, and what batches, devices and copies must not change."""

import copy

import common  # noqa: F401

import pytest
import torch
from torch import nn

from hqss import method
from hqss.config import Synthesis
from hqss.method import Weights, focal_frequency_loss, generator_terms, held
from hqss.models import Discriminator, Encoder, Generator, Refiner, Remover
from hqss.steps import CriticStep, RemovalStep, SynthesisStep

SIDE = 24


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def networks() -> tuple:
    torch.manual_seed(0)
    parts = Encoder(2), Generator(2, 4), Discriminator(2), Discriminator(2)
    encoder, generator, *critics = (part.double() for part in parts)
    return encoder, generator, tuple(critics)


def batch(n: int = 1) -> tuple:
    mask = (draw(n, 1, SIDE, SIDE, seed=9) > 0).double()
    return draw(n, 3, SIDE, SIDE, seed=1), draw(n, 3, SIDE, SIDE, seed=2), mask, 1 - mask


def test_normalised_black_and_back():
    black = method.training_region(draw(3, 4, 4).abs(), torch.zeros(1, 4, 4))
    expected = torch.tensor([-1, 1 / 255, 1 / 255], dtype=torch.float64)
    assert torch.allclose(black, expected.view(3, 1, 1).expand(3, 4, 4), atol=1e-6)
    lab = draw(2, 3, 5, 5) * 50
    assert torch.allclose(method.denormalise(method.normalise(lab)), lab)
    outside = method.test_region(draw(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))
    assert torch.equal(outside[0, :, 0, 0], torch.tensor([-1.0, 0, 0], dtype=torch.float64))


def full_frequency_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The definition, over the whole plane."""
    distance = (torch.fft.fft2(prediction, norm="ortho") - torch.fft.fft2(target, norm="ortho")).abs() ** 2
    root = distance.detach().sqrt()
    weight = (root / root.amax((2, 3), keepdim=True)).nan_to_num(0).clamp(0, 1)
    return (weight * distance).mean()


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (8, 5), (6, 10)])
def test_half_the_plane_holds_the_focal_frequency_loss(size):
    prediction, target = draw(2, 3, *size).requires_grad_(), draw(2, 3, *size, seed=1)
    losses = focal_frequency_loss(prediction, target), full_frequency_loss(prediction, target)
    gradients = [torch.autograd.grad(loss, prediction)[0] for loss in losses]
    assert torch.allclose(*losses, rtol=1e-12) and torch.allclose(*gradients, atol=1e-14)


def test_equal_images_have_no_frequency_loss_and_no_nan_gradient():
    image = draw(1, 3, 8, 8).requires_grad_()
    loss = focal_frequency_loss(image, image.detach().clone())
    loss.backward()
    assert loss == 0 and torch.equal(image.grad, torch.zeros_like(image))


def test_colour_loss_is_the_mean_over_the_region_of_a_and_b():
    one, two, mask, _ = batch(2)
    inside = [m[0] > 0 for m in mask]
    expected = [sum((one[n, c][inside[n]] - two[n, c][inside[n]]).abs().mean() for c in (1, 2)) for n in range(2)]
    assert torch.allclose(method.colour_loss(one, two, mask), sum(expected) / 2)
    assert method.colour_loss(one, two, torch.zeros_like(mask)) == 0


def test_a_batch_is_the_mean_of_its_items():
    encoder, generator, critics = networks()
    images = batch(3)
    together, _, _ = generator_terms(encoder, generator, critics, *images, Weights())
    alone = [
        generator_terms(encoder, generator, critics, *(x[n : n + 1] for x in images), Weights())[0] for n in range(3)
    ]
    for name, value in together.items():
        assert torch.allclose(value, sum(terms[name] for terms in alone) / 3), name


def official_step(encoder, generator, critics, shadow, lit, m_s, m_n) -> torch.Tensor:
    """The generator's loss written out with deep copies, network by network."""
    w = Weights()
    e2, g2 = copy.deepcopy(encoder), copy.deepcopy(generator)
    z_s, z_n = encoder(shadow), encoder(lit)
    s, n, p_s, p_n = generator(z_s, shadow), generator(z_n, lit), generator(z_s, lit), generator(z_n, shadow)
    c_n, c_s = g2(z_n, p_s), g2(z_s, p_n)
    l1 = lambda x, y: (x - y).abs().mean()
    total = l1(s, shadow) + l1(n, lit) + full_frequency_loss(s, shadow) + full_frequency_loss(n, lit)
    total = total + w.adversarial * ((critics[0](p_s) - 1) ** 2 + (critics[1](p_n) - 1) ** 2).sum()
    for image, other, mask in ((p_s, lit, m_n), (p_n, shadow, m_s)):
        for channel in (1, 2):
            total = total + w.colour * l1(image[0, channel][mask[0, 0] > 0], other[0, channel][mask[0, 0] > 0])
    for image, other in ((c_n, lit), (c_s, shadow)):
        total = total + w.cycle_image * l1(image, other) + w.cycle_frequency * full_frequency_loss(image, other)
    return total + w.cycle_feature * (l1(e2(p_s), z_s) + l1(e2(p_n), z_n))


def test_the_step_is_that_of_deep_copies():
    """The feature term weighs 0.01: what is detached in it shows only in an exact comparison."""
    encoder, generator, critics = networks()
    images = batch()
    parameters = [*encoder.parameters(), *generator.parameters()]
    ours = sum(generator_terms(encoder, generator, critics, *images, Weights())[0].values())
    theirs = official_step(encoder, generator, critics, *images)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)):
        assert torch.allclose(a, b, atol=1e-9 * max(1, float(b.abs().max())))


def test_held_networks_pass_gradients_and_take_none():
    network = nn.Linear(3, 3)
    x = torch.randn(2, 3, requires_grad=True)
    held(network)(x).sum().backward()
    assert x.grad is not None and network.weight.grad is None
    assert torch.equal(held(network)(x), network(x))


@pytest.mark.parametrize("name", Weights._fields)
def test_a_weight_of_0_leaves_its_group_out(name):
    encoder, generator, critics = networks()
    every, _, _ = generator_terms(encoder, generator, critics, *batch(), Weights())
    fewer, _, _ = generator_terms(encoder, generator, critics, *batch(), Weights(**{name: 0.0}))
    gone = every.keys() - fewer.keys()
    assert len(gone) == 2 and all(torch.equal(fewer[key], every[key]) for key in fewer)
    stem = {"self_image": "self_", "cycle_image": "cycle_"}.get(name, name)
    assert all(key.startswith(stem) for key in gone)


def test_discriminators_learn_nothing_from_the_generator_and_halving_halves():
    critics = networks()[2]
    real, fake = (draw(1, 3, SIDE, SIDE), draw(1, 3, SIDE, SIDE, seed=1)), (draw(1, 3, SIDE, SIDE, seed=2),) * 2
    whole, half = (method.discriminator_terms(critics, real, fake, weight) for weight in (1.0, 0.5))
    assert all(torch.allclose(half[name] * 2, whole[name]) for name in whole) and len(whole) == 4


def test_removal_joins_by_sum_or_by_mask():
    region, rest, mask, _ = batch()
    seen = []
    refine = lambda image, m: seen.append((image, m)) or image
    for clear in (False, True):
        method.remove(lambda x: x, refine, region, rest, mask, clear)
    assert torch.equal(seen[0][0], region + rest) and torch.equal(seen[0][1], 2 * mask - 1)
    assert torch.equal(seen[1][0], torch.where(mask > 0, region, rest))


def test_border_loss_is_that_of_black_outsides():
    first, image, mask, _ = batch()
    black = lambda x: torch.cat([(x[:, :1] + 1) * mask - 1, x[:, 1:] * mask], 1)
    found = method.removal_terms(first, first, first, image, mask)
    assert torch.allclose(found["border"], (black(first) - black(image)).abs().mean())


def test_the_rate_falls_along_a_line():
    assert [method.rate_factor(e, 100, 50) for e in (0, 50, 51, 99)] == pytest.approx([1, 1, 0.98, 0.02])
    assert method.rate_factor(3, 4, 50) == 1


def test_donors_with_a_ratio_on_the_bound_and_empty_masks():
    masks = torch.zeros(4, 20)
    masks[0, :10], masks[1, 10:18], masks[2, 10:17] = 1, 1, 1
    ratio = method.area_ratios(masks)
    assert torch.allclose(ratio[0], torch.tensor([0, 0.8, 0.7, 0], dtype=torch.float64))
    assert method.admissible(ratio)[0].tolist() == [False, True, False, False]
    assert not method.admissible(ratio)[3].any()


def test_the_gain_control_darkens_by_the_ratio_of_means():
    image = torch.zeros(1, 3, 2, 2)
    image[:, :1] = torch.tensor([[-0.5, -0.5], [0.5, 0.5]])  # L + 1 is 0.5 in the shadow, 1.5 outside
    shadow = torch.tensor([[1.0, 1], [0, 0]]).view(1, 1, 2, 2)
    dark = method.gain_shadow(image, 1 - shadow, image, shadow)
    assert torch.allclose(dark[0, 0], torch.tensor([[-0.5, -0.5], [-0.5, -0.5]]))


def test_no_step_waits_for_the_device():
    """On the meta device there are no values, so whatever reads one fails."""
    with torch.device("meta"):
        encoder, generator, critics = Encoder(2), Generator(2, 4), (Discriminator(2), Discriminator(2))
        image, mask = torch.empty(2, 3, SIDE, SIDE), torch.empty(2, 1, SIDE, SIDE)
        values = {"shadow": image, "lit": image, "rest": image, "image": image}
        values |= {"shadow_mask": mask, "lit_mask": mask, "dilated": mask}
        terms, fakes = SynthesisStep(encoder, generator, critics, Synthesis())(values)
        sum(terms.values()).backward()
        sum(CriticStep(*critics, 1.0)((image, image), fakes).values()).backward()
        pseudo = method.pseudo_shadow(encoder, generator, image, image, mask)
        method.gain_shadow(image, mask, image, mask)
        sum(RemovalStep(Remover(2), Refiner(2), clear=True)(pseudo, values).values()).backward()
