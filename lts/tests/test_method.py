"""Closed forms and invariants of quantisers, layers, schedule and scratcher."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lts.method import (
    QuantConv2d,
    QuantLinear,
    Schedule,
    Scratcher,
    collapsed,
    initialise,
    layers,
    narrowest,
    quantise,
    quantised_layers,
    quantiser_parameters,
    quantisers,
)
from lts.method.quantisers import (
    ActivationFunction,
    BoundedActivation,
    BoundedWeight,
    StepActivation,
    StepWeight,
    TanhWeight,
    UnitActivation,
    WeightFunction,
)

DOUBLE = torch.float64


def official(x, lower, upper, n):
    """round(n·clamp(x̂)) / n step by step, as the release's autograd differentiates it."""
    clipped = ((x - lower) / (upper - lower)).clamp(0, 1)
    return quantisers.nearest(n * clipped) / n


def gradients(function, *inputs):
    """A function's value and its gradients for a fixed random upstream gradient."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*inputs)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=value.dtype)
    return value, *torch.autograd.grad(value, inputs, upstream)


def network(**options) -> nn.Sequential:
    """Two convolutions and a linear layer, quantised and initialised."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, stride=2)]
    model = nn.Sequential(*parts, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4))
    model = quantise(model, **options)
    initialise(model, images())
    return model


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(5))


def step(model, scratcher, optimiser) -> None:
    loss = F.cross_entropy(model(images()), torch.arange(6) % 4)
    optimiser.zero_grad()
    loss.backward()
    scratcher.observe()
    with scratcher.held():
        optimiser.step()


def frozen_network(share: int = 2, **options):
    """A network whose every `share`-th weight is frozen from now on, with its scratcher."""
    model = network()
    scratcher = Scratcher(model, Schedule("constant", 1, 0, 100, 1e-9), **options)
    for layer in scratcher.layers.values():
        place = torch.arange(layer.weight.numel()).view_as(layer.weight)
        layer.ticket.distance = torch.where(place % share == 0, -torch.ones(()), torch.ones(()))
        layer.ticket.level = layer.integer_weight()[0]
        layer.ticket.live = True
    return model, scratcher


# -- quantisers ------------------------------------------------------------------------------------------------------


def test_the_values_of_two_bits():
    w = torch.tensor([-2.0, -0.9, -0.4, 0.4, 0.9, 2.0])
    q = WeightFunction.apply(w, torch.tensor(-1.0), torch.tensor(1.0), 3)
    assert torch.allclose(q, torch.tensor([-1, -1, -1 / 3, 1 / 3, 1, 1]))
    code = ActivationFunction.apply(w, torch.tensor(0.0), torch.tensor(1.0), 3)
    assert code.tolist() == [0, 0, 0, 1, 3, 3]


def test_half_way_goes_to_the_even_level():
    half = torch.tensor([1 / 6, 0.5, 5 / 6])
    assert quantisers.levels(torch.tensor([0.5, 1.5, 2.5]) / 3, 3).tolist() == [0, 2, 2]
    assert quantisers.levels(half, 1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_weight_gradients_are_the_official_ones_in_double(bits):
    n, w = 2**bits - 1, torch.randn(5, 4, 3, 3, dtype=DOUBLE)
    bounds = torch.tensor(-1.1, dtype=DOUBLE), torch.tensor(0.9, dtype=DOUBLE)
    ours = gradients(lambda w, lower, upper: WeightFunction.apply(w, lower, upper, n), w, *bounds)
    theirs = gradients(lambda w, lower, upper: 2 * (official(w, lower, upper, n) - 0.5), w, *bounds)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided", "flat"])
@pytest.mark.parametrize("block", [7, 1 << 17])
def test_activation_gradients_are_the_official_ones_in_double(layout, block, monkeypatch):
    monkeypatch.setattr(quantisers, "BLOCK", block)
    x = torch.randn(4, 6, 5, 5, dtype=DOUBLE)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    view = {"strided": lambda x: x[..., ::2, ::2], "flat": lambda x: x.flatten(1)}.get(layout, lambda x: x)
    bounds = torch.tensor(-0.3, dtype=DOUBLE), torch.tensor(1.2, dtype=DOUBLE)
    ours = gradients(lambda x, lower, upper: ActivationFunction.apply(view(x), lower, upper, 7) / 7, x, *bounds)
    theirs = gradients(lambda x, lower, upper: official(view(x), lower, upper, 7), x, *bounds)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_the_interval_of_the_gradient_is_closed():
    x = torch.tensor([-0.5, -1e-6, 0.0, 1.0, 1 + 1e-6, 2.0], requires_grad=True)
    ActivationFunction.apply(x, torch.tensor(0.0), torch.tensor(1.0), 3).sum().backward()
    assert x.grad.tolist() == [0, 0, 3, 3, 0, 0]
    w = x.detach().clone().requires_grad_()
    WeightFunction.apply(w, torch.tensor(0.0), torch.tensor(1.0), 3).sum().backward()
    assert w.grad.tolist() == [0, 0, 2, 2, 0, 0]


def test_activations_keep_only_their_input():
    kept = []
    x = torch.rand(2, 3, 4, 4, requires_grad=True) * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ActivationFunction.apply(x, torch.tensor(0.0), torch.tensor(1.0), 3)
    assert [t.data_ptr() for t in kept if t.ndim] == [x.data_ptr()]


def test_initial_bounds():
    w, x = torch.randn(40, 3, 3, 3), torch.relu(torch.randn(8, 5, 4, 4)) - 0.1
    weight, activation = BoundedWeight(2), BoundedActivation(2)
    assert weight.upper.isnan() and activation.lower.isnan()  # what is forgotten cannot pass for a value
    weight.initialise(w)
    activation.initialise(x)
    assert weight.upper == 3 * w.std() and weight.lower == -3 * w.std()
    assert activation.upper == x.std() / math.sqrt(1 - 2 / math.pi) * 3 and activation.lower == x.min()


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_learned_step_is_that_of_lsq(bits):
    quantiser, w, low = StepWeight(bits), torch.randn(6, 5), 2 ** (bits - 1)
    quantiser.initialise(w)
    s = quantiser.step.item()
    assert s == pytest.approx(2 * w.abs().mean().item() / math.sqrt(low - 1))
    q, grad_w, grad_s = gradients(lambda w, step: step_with(quantiser, step, w), w, quantiser.step)
    assert torch.allclose(q, (w / s).round().clamp(-low, low - 1) * s)
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(3))
    inside = (w / s >= -low) & (w / s <= low - 1)
    assert torch.allclose(grad_w, upstream * inside)
    slope = torch.where(inside, (w / s).round() - w / s, (w / s).clamp(-low, low - 1))
    assert grad_s.item() == pytest.approx((upstream * slope).sum().item() / math.sqrt(w.numel() * (low - 1)), rel=1e-4)


def step_with(quantiser, step_size, x):
    quantiser.step.data, held = step_size.data, quantiser.step
    del quantiser._parameters["step"]
    quantiser.step = step_size
    try:
        return quantiser(x)
    finally:
        del quantiser.step
        quantiser.register_parameter("step", held)


def test_lsq_levels_of_inputs_with_and_without_a_sign():
    x = torch.randn(16, 5)
    signed, unsigned = StepActivation(2), StepActivation(2)
    signed.initialise(x)
    unsigned.initialise(x.relu())
    assert signed.low == 2 and unsigned.low == 0
    assert {*(signed(x) / signed.step).round().tolist()[0]} <= {-2, -1, 0, 1}
    assert (unsigned(x.relu()) / unsigned.step).round().max() <= 3


def test_dorefa():
    w = torch.tensor([-5.0, -0.1, 0.1, 5.0])
    q = TanhWeight(2)(w)
    assert torch.allclose(q, torch.tensor([-1, -1 / 3, 1 / 3, 1])) or torch.allclose(q.abs(), q.flip(0).abs())
    assert q[0] == -1 and q[-1] == 1
    assert torch.allclose(UnitActivation(2)(torch.tensor([-1.0, 0.2, 0.6, 3.0])), torch.tensor([0, 1 / 3, 2 / 3, 1]))


@pytest.mark.parametrize("name", ["lts", "lsq", "dorefa"])
@pytest.mark.parametrize("bits", [2, 4])
def test_integer_codes_are_the_quantised_values(name, bits):
    model = network(quantiser=name, weight_bits=bits, activation_bits=bits)
    for layer in quantised_layers(model).values():
        codes, scale, offset = layer.integer_weight()
        assert codes.dtype == torch.uint8 and codes.max() < 2**bits
        assert torch.allclose(codes.float() * scale + offset, layer.quantised_weight(), atol=1e-6)
        grid, x = layer.input_grid(), torch.randn(9, 8) * 3
        code = (grid.n * ((x - grid.lower) / (grid.upper - grid.lower)).clamp(0, 1)).round()
        quantiser = layer.activation_quantiser
        assert torch.allclose(code * grid.scale + grid.offset, quantiser(x) * quantiser.factor, atol=1e-5)
        position = layer.weight_quantiser.normalise(layer.weight)
        inside = (position > 0.01) & (position < 0.99)
        again = layer.weight_quantiser.restore(position, layer.weight)
        assert torch.allclose(again[inside], layer.weight[inside], atol=1e-5)


# -- layers ----------------------------------------------------------------------------------------------------------


def test_every_layer_is_quantised_where_it_stands():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    weight, keys = model[0].weight, list(model.state_dict())
    assert quantise(model, 3, 4) is model
    assert type(model[0]) is QuantConv2d and type(model[3]) is QuantLinear and model[0].weight is weight
    assert isinstance(model[0], nn.Conv2d) and (model[0].weight_bits, model[0].activation_bits) == (3, 4)
    assert [k for k in model.state_dict() if "quantiser" not in k] == keys
    assert len([*quantiser_parameters(model)]) == 8


def test_bits_of_single_layers():
    plain = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    bits = lambda m: [(x.weight_bits, x.activation_bits) if isinstance(x, QuantConv2d) else None for x in m]
    assert bits(quantise(plain(), 2, 2, first_last="8bit")) == [(8, 8), (2, 2), (8, 8)]
    assert bits(quantise(plain(), 2, 2, first_last="fp", overrides={"1": (4, 32)})) == [None, (4, 32), None]
    model = quantise(plain(), 32, 32)
    assert bits(model) == [None] * 3 and not [*quantiser_parameters(model)]


@pytest.mark.parametrize("bits", [0, -1, 9, 16])
def test_bits_that_do_not_exist(bits):
    for options in ({"weight_bits": bits}, {"activation_bits": bits}, {"overrides": {"0": (2, bits)}}):
        with pytest.raises(ValueError, match=f"1 to 8, or 32 for none, not {bits}"):
            quantise(nn.Sequential(nn.Conv2d(3, 4, 3)), **options)


def test_other_settings_that_do_not_exist():
    for options, words in (
        ({"quantiser": "pact"}, "not one of lts, lsq, dorefa"),
        ({"first_last": "4bit"}, "not one of same"),
        ({"overrides": {"conv9": (2, 2)}}, "no convolution or linear layer conv9"),
    ):
        with pytest.raises(ValueError, match=words):
            quantise(nn.Sequential(nn.Conv2d(3, 4, 3)), **options)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_padding_is_of_the_quantised_input(mode):
    layer = quantise(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)), 2, 2)[0]
    initialise(nn.Sequential(layer), images())
    a, w = layer.activation_quantiser, layer.weight_quantiser
    q = official(images(), a.lower, a.upper, 3)
    q = F.pad(q, (1,) * 4) if mode == "zeros" else F.pad(q, (1,) * 4, mode)
    expected = F.conv2d(q, w(layer.weight), layer.bias)
    torch.testing.assert_close(layer(images()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_strided_1x1_convolution_looks_at_what_it_uses_only(layout):
    layer = quantise(nn.Sequential(nn.Conv2d(8, 8, 1, stride=2)), 2, 2)[0].to(memory_format=layout)
    x = torch.randn(4, 8, 7, 7).to(memory_format=layout)
    initialise(nn.Sequential(layer), x)
    a = layer.activation_quantiser
    assert a.lower == x.min()  # the bounds are those of the whole input

    def slowly(x, lower, upper):
        return F.conv2d(official(x, lower, upper, 3), layer.quantised_weight(), layer.bias, stride=2)

    theirs = gradients(slowly, x, a.lower, a.upper)
    x = x.clone().requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, theirs[0], rtol=1e-5, atol=1e-5)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    for mine, other in zip(torch.autograd.grad(y, (x, a.lower, a.upper), upstream), theirs[1:]):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_an_evaluation_quantises_weights_once_and_notices_changes(monkeypatch):
    model, calls = network().eval(), []
    quantised = layers.Quantised.quantised_weight
    monkeypatch.setattr(layers.Quantised, "quantised_weight", lambda self: calls.append(1) or quantised(self))
    with torch.inference_mode():
        first, second = model(images()), model(images())
    assert len(calls) == 3 and torch.equal(first, second)
    with torch.no_grad():
        model[0].weight.mul_(-1)
        assert not torch.equal(model(images()), first) and len(calls) == 4
        model[0].weight.mul_(-1)
        model[0].weight_quantiser.upper.mul_(2)
        assert not torch.equal(model(images()), first)
    model.load_state_dict(network().state_dict())
    with torch.inference_mode():
        assert torch.equal(model(images()), first)


def test_initialisation_uses_the_quantised_output_of_the_layers_before():
    model, plain = network(), network()
    expected = plain[:3](images())  # batch statistics, quantised first layer
    assert torch.equal(model[3].activation_quantiser.lower, expected.min())
    assert int(model[1].num_batches_tracked) == 1
    assert not any(layer.initialising for layer in quantised_layers(model).values())


def test_collapsed_bounds_are_named():
    model = network()
    assert collapsed(model) == [] and narrowest(model) > 0
    model[3].activation_quantiser.upper.data.copy_(model[3].activation_quantiser.lower.data)
    assert collapsed(model) == ["3.activation"] and narrowest(model) == 0
    model[6].weight_quantiser.lower.data.fill_(math.nan)
    assert collapsed(model) == ["3.activation", "6.weight"]


# -- partial weight gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 3], []])
def test_only_the_asked_rows_have_a_weight_gradient(groups, rows):
    torch.manual_seed(0)
    layer = QuantConv2d(4, 4, 3, stride=2, padding=1, groups=groups).double()
    x = torch.randn(3, 4, 6, 6, dtype=DOUBLE)
    whole = gradients(lambda x, w, b: F.conv2d(x, w, b, 2, 1, 1, groups), x, layer.weight, layer.bias)
    layer.rows = torch.tensor(rows, dtype=torch.int64)

    def partly(x, w, b):
        settings = (2, 2), (1, 1), (1, 1), groups
        return layers.PartialConvolution.apply(x, w, b, *settings, layer.rows)

    part = gradients(partly, x, layer.weight, layer.bias)
    for index in (0, 1, 3):
        assert torch.allclose(part[index], whole[index])
    assert torch.allclose(part[2][rows], whole[2][rows])
    if groups == 1:
        skipped = [row for row in range(4) if row not in rows]
        assert not part[2][skipped].any()


def test_only_the_asked_rows_of_a_linear_layer():
    x, w, b = (torch.randn(*shape, dtype=DOUBLE) for shape in ((5, 3), (4, 3), (4,)))
    rows = torch.tensor([0, 2])
    whole = gradients(F.linear, x, w, b)
    part = gradients(lambda x, w, b: layers.PartialLinear.apply(x, w, b, rows), x, w, b)
    assert torch.allclose(part[2][rows], whole[2][rows]) and not part[2][[1, 3]].any()
    for index in (0, 1, 3):
        assert torch.allclose(part[index], whole[index])


def test_rows_are_dropped_when_they_are_wholly_frozen():
    model, scratcher = frozen_network(bounds_gradient=False)
    reference, _ = frozen_network(bounds_gradient=False)
    for m in (model, reference):
        conv, linear = m[0], m[6]
        conv.ticket.distance[[0, 2]] = -1.0
        linear.ticket.distance[:] = -1.0
    scratcher.find_rows()
    assert model[0].rows.tolist() == [1, 3, 4, 5, 6, 7] and model[6].rows.tolist() == [] and model[3].rows is None
    for m in (model, reference):
        F.cross_entropy(m(images()), torch.arange(6) % 4).backward()
    for (name, p), (_, other) in zip(model.named_parameters(), reference.named_parameters()):
        assert torch.allclose(p.grad, other.grad, atol=1e-6), name
    dense, watcher = frozen_network(share=1)
    watcher.find_rows()  # the bounds still learn from every weight
    assert all(layer.rows is None for layer in quantised_layers(dense).values())


def test_partial_gradients_under_autocast():
    model, scratcher = frozen_network(share=1, bounds_gradient=False)
    scratcher.find_rows()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images()).float().square().mean()
    loss.backward()
    assert not model[0].weight.grad.any() and model[1].weight.grad.any()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# -- schedule --------------------------------------------------------------------------------------------------------


def test_the_threshold_grows_as_its_name_says():
    rates = {mode: Schedule(mode, 10, 2, 10) for mode in ("constant", "linear", "sine", "cosine", "step")}
    for s in rates.values():
        assert s.threshold(20) is None and s.threshold(21) is not None and s.start == 20
    at = lambda mode: [rates[mode].threshold(s) for s in (40, 60, 80)]
    assert at("constant") == [0.1] * 3 and at("linear") == [0.25, 0.5, 0.75]
    assert at("sine") == pytest.approx([math.sin(math.pi * x / 2) for x in (0.25, 0.5, 0.75)])
    assert at("cosine") == pytest.approx([1 - math.cos(math.pi * x / 2) for x in (0.25, 0.5, 0.75)])
    assert rates["step"].threshold(21) == 0.25 and at("step") == [0.5, 0.75, 1.0]
    assert Schedule("linear", 10, 2, 10).threshold(99) < 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("linear", 0, 0, 10), "an epoch of 0 steps"),
        (("linear", 5, 10, 10), "a warm-up of 10 epochs leaves none of 10"),
        (("linear", 5, -1, 10), "a warm-up of -1"),
        (("fixing", 5, 0, 10), "not one of constant, linear, sine"),
    ],
)
def test_a_schedule_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Schedule(*settings)


# -- scratcher -------------------------------------------------------------------------------------------------------


def test_frozen_weights_have_no_gradient_and_do_not_move():
    model, scratcher = frozen_network()
    optimiser = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.1)
    layer = model[0]
    frozen, before = layer.ticket.frozen(), layer.weight.detach().clone()
    for _ in range(3):
        step(model, scratcher, optimiser)
        assert not layer.weight.grad[frozen].any()
    assert torch.equal(layer.weight[frozen], before[frozen])
    assert (layer.weight[~frozen] != before[~frozen]).all()
    codes, scale, offset = layer.integer_weight()
    assert not torch.equal(before[frozen], (codes * scale + offset)[frozen])  # latent, not snapped to the level


@pytest.mark.parametrize("teaches", [True, False])
def test_frozen_weights_teach_the_bounds_unless_told_not_to(teaches):
    model, _ = frozen_network(share=1, bounds_gradient=teaches)
    F.cross_entropy(model(images()), torch.arange(6) % 4).backward()
    for layer in quantised_layers(model).values():
        assert not layer.weight.grad.any()
        assert bool(layer.weight_quantiser.upper.grad) == teaches
        assert layer.activation_quantiser.upper.grad != 0


@pytest.mark.parametrize("frozen", ["latent", "level"])
def test_what_a_frozen_weight_keeps_when_the_bounds_move(frozen):
    model, scratcher = frozen_network(frozen=frozen)
    layer = model[0]
    still, before = layer.ticket.frozen(), layer.integer_weight()[0]
    with scratcher.held():
        layer.weight_quantiser.upper.data.mul_(3)
    same = torch.equal(layer.integer_weight()[0][still], before[still])
    assert same == (frozen == "level")
    assert scratcher.dense == (frozen == "latent")


def test_a_freezing_weight_keeps_the_value_of_the_forward_that_froze_it():
    model = network()
    scratcher = Scratcher(model, Schedule("linear", 4, 0, 5))
    optimiser = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    values, steps = {}, 0
    for _ in range(16):
        used = {name: layer.weight.detach().clone() for name, layer in scratcher.layers.items()}
        was = {name: layer.ticket.distance.signbit() for name, layer in scratcher.layers.items()}
        step(model, scratcher, optimiser)
        for name, layer in scratcher.layers.items():
            now = layer.ticket.distance.signbit()
            assert (now | ~was[name]).all()  # a weight never thaws
            fresh = now & ~was[name]
            steps += int(fresh.any())
            values[name] = torch.where(fresh, used[name], values.get(name, torch.zeros(())))
            assert torch.equal(layer.weight.detach()[now], values[name][now])
    assert steps > 10


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 8), st.sampled_from(["linear", "sine", "cosine"]))
def test_static_weights_freeze_as_the_closed_form_says(bits, mode):
    """Of uniformly spread offsets a share min(1, 2ρ) lies below the threshold: 0.75 on average when ρ is linear."""
    model = quantise(nn.Sequential(nn.Linear(60, 60, bias=False)), bits, 32)
    model[0].weight_quantiser.lower.data.fill_(-1)
    model[0].weight_quantiser.upper.data.fill_(1)
    n = 2**bits - 1
    # every level with its whole half-way neighbourhood, but for the outer ends
    model[0].weight.data = torch.linspace(-1, 1, 3600).view(60, 60)
    scratcher = Scratcher(model, Schedule(mode, 10, 1, 12), ema=0.0)
    shares = []
    for _ in range(120):
        scratcher.observe()
        rate = scratcher.schedule.threshold(scratcher.step)
        share = int(scratcher.frozen_counts()) / 3600
        if rate is None:
            assert share == 0
        else:
            assert share == pytest.approx(min(1, 2 * rate), abs=n / 1000)
            shares.append(share)
    mean = {"linear": 0.75, "sine": 0.837}.get(mode)
    assert mean is None or sum(shares) / len(shares) == pytest.approx(mean, abs=0.02)


def test_a_level_transition_resets_the_distance_to_a_whole_gap():
    model = quantise(nn.Sequential(nn.Linear(1, 1, bias=False)), 2, 32)
    layer = model[0]
    layer.weight_quantiser.lower.data.fill_(0)
    layer.weight_quantiser.upper.data.fill_(1)
    scratcher = Scratcher(model, Schedule("linear", 100, 50, 100), ema=0.5)
    seen = []
    for value in (0.35, 0.35, 0.35, 0.6, 0.6):
        layer.weight.data.fill_(value)
        scratcher.observe()
        seen.append(layer.ticket.distance.item())
    off = 0.35 - 1 / 3
    assert seen == pytest.approx([1 / 3, off, off, 1 / 3, 0.5 / 3 + 0.5 * (2 / 3 - 0.6)], abs=1e-6)
    clean = Scratcher(model, Schedule("linear", 100, 50, 100), clean_start=True)
    layer.weight.data.fill_(0.35)
    clean.observe()
    assert layer.ticket.distance.item() == pytest.approx(off, abs=1e-6)
    layer.weight.data.fill_(0.6)
    clean.observe()
    assert layer.ticket.distance.item() == pytest.approx(1 / 3)


def test_the_state_is_one_float_and_one_byte_a_weight():
    scratcher = Scratcher(network(), Schedule("linear", 5, 1, 10))
    for layer in scratcher.layers.values():
        tensors = [value for value in vars(layer.ticket).values() if isinstance(value, torch.Tensor)]
        assert sum(t.nbytes for t in tensors) == 5 * layer.weight.numel()
    assert all(x.numel() == 1 for layer in scratcher.layers.values() for x in layer.buffers())


def trained(steps: int, **options):
    model = network()
    scratcher = Scratcher(model, Schedule("sine", 4, 1, 5), **options)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    for _ in range(steps):
        step(model, scratcher, optimiser)
    return model, scratcher, optimiser


def test_a_scratcher_survives_its_state_dict():
    model, scratcher, optimiser = trained(9, record_steps=True)
    other, restored, again = trained(0, record_steps=True)
    for part, saved in ((other, model), (restored, scratcher), (again, optimiser)):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    for _ in range(6):
        step(model, scratcher, optimiser), step(other, restored, again)
    for one, two in zip(scratcher.layers.values(), restored.layers.values()):
        assert torch.equal(one.weight, two.weight) and torch.equal(one.ticket.distance, two.ticket.distance)
        assert torch.equal(one.ticket.frozen_step, two.ticket.frozen_step)
    assert restored.step == scratcher.step == 14


def test_a_legacy_resume_forgets_the_step_but_not_what_is_frozen():
    _, scratcher, _ = trained(12)
    frozen = scratcher.frozen_counts()
    _, restored, _ = trained(0)
    restored.load_state_dict(scratcher.state_dict(), legacy_resume=True)
    assert restored.step == -1 and torch.equal(restored.frozen_counts(), frozen) and frozen.sum() > 0
    assert all(layer.ticket.frozen() is not None for layer in restored.layers.values())
    restored.observe()
    restored.observe()
    assert restored.schedule.threshold(restored.step) is None  # in its warm-up once more
    assert torch.equal(restored.frozen_counts(), frozen)


def test_the_state_of_another_run_is_refused():
    state = Scratcher(network(), Schedule("linear", 4, 1, 5)).state_dict()
    with pytest.raises(ValueError, match="schedule differs: mode linear -> sine"):
        Scratcher(network(), Schedule("sine", 4, 1, 5)).load_state_dict(state)
    with pytest.raises(ValueError, match="schedule differs: warmup 1 -> 2"):
        Scratcher(network(), Schedule("linear", 4, 2, 5)).load_state_dict(state)
    with pytest.raises(ValueError, match="bits differs: 0 2 -> 3"):
        Scratcher(network(weight_bits=3), Schedule("linear", 4, 1, 5)).load_state_dict(state)
    with pytest.raises(ValueError, match="latent, level"):
        Scratcher(network(), Schedule("linear", 4, 1, 5), frozen="value")


def test_the_random_control_freezes_as_many_at_the_same_times_but_others():
    model, scratcher, optimiser = trained(0)
    counts = []
    for _ in range(20):
        step(model, scratcher, optimiser)
        counts.append(scratcher.frozen_counts())
    options = {"counts": torch.stack(counts), "random": lambda number, n: torch.rand(n)}
    control, follower, optimiser = trained(0, **options)
    for expected in counts:
        step(control, follower, optimiser)
        assert torch.equal(follower.frozen_counts(), expected)
    early = trained(8)[1].layers["0"].ticket.distance.signbit()
    chance = trained(8, **options)[1].layers["0"].ticket.distance.signbit()
    assert 0 < early.sum() == chance.sum() and not torch.equal(early, chance)
    with pytest.raises(ValueError, match=r"counts of shape \[4, 3\]"):
        trained(0, counts=torch.zeros(4, 3), random=options["random"])


@pytest.mark.parametrize("name", ["lts", "lsq", "dorefa"])
def test_every_quantiser_trains_under_the_scratcher(name):
    model = network(quantiser=name)
    scratcher = Scratcher(model, Schedule("linear", 5, 1, 6))
    optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    for _ in range(30):
        step(model, scratcher, optimiser)
    assert (scratcher.frozen_counts() > 0).all()
    assert all(p.isfinite().all() for p in model.parameters())


def test_layers_without_levels_are_left_alone():
    model = network(overrides={"3": (32, 2)})
    scratcher = Scratcher(model, Schedule("linear", 5, 1, 6))
    assert [*scratcher.layers] == ["0", "6"]
    step(model, scratcher, SimpleNamespace(zero_grad=lambda: None, step=lambda: None))
