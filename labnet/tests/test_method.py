"""The equations by closed forms, and what must hold whatever the input."""

import math

import pytest
import torch
import torch.nn.functional as F

from labnet.method import (
    ECA,
    LSA,
    ConvLayer,
    attend,
    binarise,
    dilate,
    gradient_loss,
    initialise,
    learning_rate,
    losses,
    perceptual_loss,
    regions,
)


def square(size: int = 24, first: int = 8, last: int = 16) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., first:last, first:last] = 1
    return mask


def test_thresholds_are_strict():
    assert binarise(torch.tensor([0.5, 0.51, 0.9, 0.91]), 0.5).tolist() == [0, 1, 1, 1]
    assert binarise(torch.tensor([0.5, 0.51, 0.9, 0.91]), 0.9).tolist() == [0, 0, 0, 1]


def test_the_ring_is_five_pixels_wide():
    mask = square()
    ring = dilate(mask) - mask
    assert dilate(mask).sum() == 18 * 18 and ring.min() == 0
    assert ring[0, 0, 3, 12] == 1 and ring[0, 0, 2, 12] == 0


def test_conv_layer_pads_by_reflection_and_ends_in_leaky_relu():
    layer = ConvLayer(1, 1, 3, 4)
    with torch.no_grad():
        layer.conv2d.weight.zero_()
        layer.conv2d.weight[..., 0, 0] = -1  # minus the pixel 4 above and 4 to the left
        layer.conv2d.bias.zero_()
    x = torch.arange(64.0).view(1, 1, 8, 8) + 1
    assert torch.equal(layer(x)[0, 0, 0, 0], -0.2 * x[0, 0, 4, 4])
    assert ConvLayer(1, 1, 1, linear=True)(-x).shape == x.shape


def test_eca_weighs_by_the_spread_of_high_frequencies():
    module = ECA(8, "laplacian-fixed").double()
    flat = torch.full((1, 8, 9, 9), 3.0, dtype=torch.float64, requires_grad=True)
    assert module.spread(flat).abs().max() == 0
    module(flat).sum().backward()
    assert flat.grad.isfinite().all()  # the square root at 0
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    filtered = F.conv2d(x, module.convop.weight, groups=8)
    mean = filtered.mean((2, 3), keepdim=True)
    assert torch.allclose(module.spread(x) ** 2, ((filtered - mean) ** 2).sum((2, 3)) / (7 * 7 - 1))
    assert not module.convop.weight.requires_grad and ECA(8).convop.weight.requires_grad
    initialise(module)
    assert module.convop.weight[3, 0].tolist() == [[0, -1, 0], [-1, 4, -1], [0, -1, 0]]


@pytest.mark.parametrize("chunked", [False, True])
def test_attention_is_the_softmax_of_section_2(chunked, monkeypatch):
    monkeypatch.setattr("labnet.method.CHUNK", 64)  # several chunks
    query, value = torch.randn(2, 11, 6, dtype=torch.float64), torch.randn(2, 7, 6, dtype=torch.float64)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    found = attend(query, value, valid, chunked)
    for item, n in enumerate((7, 4)):
        keys = value[item, :n]
        expected = (query[item] @ keys.T / math.sqrt(6)).softmax(1) @ keys
        assert torch.allclose(found[item], expected, atol=1e-12)
    inputs = query[:, :3].clone().requires_grad_(), value.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, v: attend(q, v, valid, chunked), inputs)


def by_hand(module: LSA, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Section 2 for one image, with boolean indexing."""
    query, value = module.conv_s(x)[0].flatten(1).T, module.conv_ns(x)[0].flatten(1).T.clone()
    shadow = mask.flatten() > 0
    ring = (dilate(mask) - mask).flatten() > 0
    if shadow.any():
        attention = (query[shadow] @ value[ring].T / math.sqrt(query.shape[1])).softmax(1)
        value[shadow] = attention @ value[ring] if ring.any() else 0.0
    return module.convfinal(torch.cat([x, value.T.view(1, -1, *x.shape[2:])], 1))


def test_a_batch_of_ragged_masks_is_each_image_alone():
    module = LSA(4).double()
    x = torch.randn(4, 4, 24, 24, dtype=torch.float64)
    masks = torch.cat([square(), square(24, 3, 20), torch.zeros(1, 1, 24, 24), torch.ones(1, 1, 24, 24)]).double()
    found = module(x, regions(masks, dilate(masks), (24, 24)), (24, 24))
    for item in range(4):
        assert torch.allclose(found[item], by_hand(module, x[item : item + 1], masks[item : item + 1])[0], atol=1e-12)


@pytest.mark.parametrize("mask", [torch.zeros(2, 1, 20, 20), torch.ones(2, 1, 20, 20)], ids=["empty", "full"])
def test_empty_and_full_masks_stay_finite_with_a_gradient_for_every_weight(mask):
    module, x = LSA(4), torch.randn(2, 4, 20, 20, requires_grad=True)
    y = module(x, regions(mask, dilate(mask), (20, 20)), (20, 20))
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    # None would make DistributedDataParallel wait for a gradient that never comes.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_attention_leaves_lit_pixels_as_they_were():
    module, mask = LSA(4), square()
    query, value = torch.randn(1, 6, 24, 24), torch.randn(1, 6, 24, 24)
    found = module.rewrite(query, value, regions(mask, dilate(mask), (24, 24)))
    outside = mask[0, 0] == 0
    assert torch.equal(found[..., outside], value[..., outside])
    assert not torch.isclose(found[..., ~outside], value[..., ~outside]).all(1).any()


def test_losses_by_hand():
    pred, target = torch.rand(2, 3, 9, 9), torch.rand(2, 3, 9, 9)
    terms = losses(pred, target)
    assert torch.allclose(terms["perceptual"], (pred - target).abs().mean())
    assert torch.allclose(terms["squared"], 100 * (pred - target).square().mean())
    ramp = torch.arange(9.0).expand(1, 3, 9, 9)
    inner = gradient_loss(F.pad(ramp, (0, 0)), torch.zeros_like(ramp))
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    responses = [F.conv2d(ramp[:, :1], k.view(1, 1, 3, 3), padding=1).abs().mean() for k in (kernel, kernel.T)]
    assert torch.allclose(inner, sum(responses))
    levels = [torch.ones(2, 3)] * 6
    expected = sum(1 / d for d in (1.0, 2.6, 4.8, 3.7, 5.6, 0.15))
    assert torch.allclose(perceptual_loss(levels, [torch.zeros(2, 3)] * 6), torch.tensor(expected))


def test_pixels_that_do_not_count_change_no_loss():
    pred, target = torch.rand(1, 3, 9, 9), torch.rand(1, 3, 9, 9)
    counted = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    counted[..., :3, :3] = False
    other = pred.clone()
    other[..., :3, :3] = 7.0
    one, two = (losses(p, target, counted=counted) for p in (pred, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_rate_is_flat_and_then_falls_to_one_step_above_zero():
    rates = [learning_rate(2e-4, epoch, 50, 250) for epoch in range(1, 301)]
    assert rates[0] == rates[49] == 2e-4 and rates[50] < 2e-4
    assert rates[-1] == pytest.approx(2e-4 / 251)
