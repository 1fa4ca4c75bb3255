"""The equations against closed forms and PyTorch's own arithmetic, in float64; γ and oscillation step by step."""

import functools
import math

from common.cost import saved_for_backward

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rebnn import Balance, BinaryConv2d, RPReLU, RSign, convert
from rebnn.method import (
    balanced_gamma,
    binarise,
    binarise_reactnet,
    binarise_released,
    cam,
    decay_groups,
    distribution_loss,
    flip_fraction,
    kl_divergence,
    label_smoothing_loss,
    learning_rate,
    reconstruction_loss,
    rprelu,
    rsign,
)
from rebnn.method.balance import RULES, pack, packed_signs, popcount, unpack
from rebnn.method.binariser import round_pass_intended, round_pass_released

DOUBLE = torch.float64


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# -- activations -----------------------------------------------------------------------------------------------------


def test_rsign_is_the_sign_with_the_slope_of_the_piecewise_quadratic():
    x = torch.tensor([-2.0, -1.0, -0.75, -0.5, 0.0, 0.25, 0.75, 1.0, 3.0], dtype=DOUBLE).view(1, 1, 3, 3)
    x.requires_grad_()
    bias = torch.zeros(1, 1, 1, 1, dtype=DOUBLE, requires_grad=True)
    y = rsign(x, bias)
    assert y.flatten().tolist() == [-1, -1, -1, -1, 0, 1, 1, 1, 1]
    y.sum().backward()
    assert x.grad.flatten().tolist() == [0, 0, 0.5, 1, 2, 1.5, 0.5, 0, 0]
    assert bias.grad.item() == 5.5


def test_rsign_is_the_derivative_of_the_quadratic_that_it_stands_for():
    """The surrogate -1 | 2z + z² | 2z - z² | 1, differentiated by autograd, gives what backward returns."""
    x, bias, grad = randn(3, 4, 5, 5).requires_grad_(), randn(1, 4, 1, 1).requires_grad_(), randn(3, 4, 5, 5)
    z = (x + bias).clamp(-1, 1)
    wanted = torch.autograd.grad(torch.where(z < 0, 2 * z + z * z, 2 * z - z * z), (x, bias), grad)
    found = torch.autograd.grad(rsign(x, bias), (x, bias), grad)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b)


def test_rprelu_equals_bias_prelu_bias():
    x, slope = randn(3, 4, 5, 5).requires_grad_(), randn(4).requires_grad_()
    biases = [randn(1, 4, 1, 1).requires_grad_() for _ in range(2)]
    inputs, grad = (x, biases[0], slope, biases[1]), randn(3, 4, 5, 5)
    wanted = F.prelu(x + biases[0], slope) + biases[1]
    found = rprelu(*inputs)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, inputs, grad)):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(rprelu, inputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_activations_keep_one_tensor_and_the_layout(layout):
    x = torch.randn(2, 8, 6, 6, requires_grad=True).to(memory_format=layout)
    for module in (RSign(8), RPReLU(8)):
        kept = saved_for_backward(functools.partial(module, x), module.parameters())
        assert kept == x.untyped_storage().nbytes(), "one map of the input's size"
        y = module(x)
        assert y.is_contiguous(memory_format=layout)
        y.sum().backward()
        assert all(p.grad.shape == p.shape for p in module.parameters())


def test_activations_compute_in_fp32_under_autocast():
    """A threshold of 2^-12 beside an activation of 1 is lost in bf16; the sign must not lose it."""
    x = torch.full((1, 1, 1, 1), -1.0, dtype=torch.bfloat16)
    bias = torch.full((1, 1, 1, 1), 1 + 2.0**-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert rsign(x, bias.requires_grad_()).item() == 1


# -- binariser -------------------------------------------------------------------------------------------------------


def shapes(m: tuple[int, ...] = (5, 3, 3)) -> tuple[torch.Tensor, ...]:
    """w with values beyond 1 and an exact zero, α > 0, γ, and a gradient of ŵ, for four channels."""
    weight = randn(4, *m)
    weight.view(4, -1)[1, :3] = torch.tensor([0, 1, -1])  # 1{|w| ≤ 1} is 1 at both edges
    column = (4, *[1] * len(m))
    return weight.requires_grad_(), (randn(*column).abs() + 0.1).requires_grad_(), randn(*column).abs(), randn(4, *m)


@pytest.mark.parametrize("m", [(5, 3, 3), (7,), (3, 1, 1)])
def test_binarise_is_the_straight_through_estimator_plus_the_gradient_of_the_reconstruction_loss(m):
    weight, alpha, gamma, grad = shapes(m)
    found = binarise(weight, alpha, gamma)
    b = weight.detach().sign()
    torch.testing.assert_close(found, alpha * b)
    through = alpha * (weight.clamp(-1, 1) - (weight.clamp(-1, 1) - b).detach())  # STE by autograd: value α b
    loss = (through * grad).sum() + reconstruction_loss(weight, alpha, gamma)
    wanted = list(torch.autograd.grad(loss, (weight, alpha)))
    for a, b in zip(torch.autograd.grad(found, (weight, alpha), grad), wanted):
        torch.testing.assert_close(a, b)


def test_the_printed_and_the_rearranged_weight_gradient_agree():
    """Equation 3.144 has two lines; where the mask is 1 both are the same."""
    weight, alpha, gamma, grad = shapes()
    (found,) = torch.autograd.grad(binarise(weight, alpha, gamma), weight, grad)
    b, inside = weight.detach().sign(), weight.detach().abs() <= 1
    second_line = alpha * (grad - gamma * b) + gamma * weight
    torch.testing.assert_close(found[inside], second_line.detach()[inside])


def test_released_gradients_have_no_mask_and_use_latent_weights():
    weight, a, gamma, grad = shapes()
    found = binarise_released(weight, a, gamma)
    quantised = 0.02 * weight.detach().sign()
    torch.testing.assert_close(found, a * quantised)
    grad_weight, grad_a = torch.autograd.grad(found, (weight, a), grad)
    residual = (weight - a * quantised).detach()
    torch.testing.assert_close(grad_weight, (a * grad + gamma * residual).detach())
    wanted = (grad * weight).sum((1, 2, 3)) - gamma.flatten() * (residual * quantised).sum((1, 2, 3))
    torch.testing.assert_close(grad_a.flatten(), wanted.detach())


def test_reactnet_has_no_gradient_through_the_scale():
    weight, _, _, grad = shapes()
    found = binarise_reactnet(weight)
    torch.testing.assert_close(found, cam(weight) * weight.sign())
    (grad_weight,) = torch.autograd.grad(found, weight, grad)
    torch.testing.assert_close(grad_weight, grad * (weight.abs() <= 1))


def test_the_released_clamp_is_constant_and_the_intended_one_is_not():
    p = torch.logspace(-9, 2, 50, dtype=DOUBLE)
    assert set(round_pass_released(p).tolist()) == {2e-4}
    assert round_pass_intended(p).tolist() == [min(max(x, 1e-5), 2e-4) for x in p.tolist()]


def test_cam_minimises_the_reconstruction_error():
    weight = randn(3, 4, 3, 3)
    best = reconstruction_loss(weight, cam(weight), torch.ones(3, 1, 1, 1, dtype=DOUBLE))
    for factor in (0.9, 1.1):
        assert reconstruction_loss(weight, cam(weight) * factor, torch.ones(3, 1, 1, 1, dtype=DOUBLE)) > best


@pytest.mark.parametrize("binarizer", ["paper", "released", "reactnet"])
@pytest.mark.parametrize(
    "geometry",
    [{"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 1}, {"kernel_size": 3, "dilation": 2, "groups": 3}],
    ids=["strided", "1x1", "grouped and dilated"],
)
def test_binary_convolution_is_a_convolution_with_two_values_a_channel(binarizer, geometry):
    layer = BinaryConv2d(3, 9, **geometry, bias=True, binarizer=binarizer)
    x = torch.randn(2, 3, 9, 9).sign()
    weight = layer.binary_weight()
    assert all(len(channel.abs().unique()) == 1 for channel in weight)
    torch.testing.assert_close(weight.abs().amax((1, 2, 3)), layer.alpha().flatten())
    wanted = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    torch.testing.assert_close(layer(x), wanted)
    layer(x).sum().backward()
    assert (layer.scaling_factor is None) == (binarizer == "reactnet")


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_padding_continues_the_signs(value):
    layer = BinaryConv2d(2, 3, 3, padding=1, pad_value=value)
    x = torch.randn(1, 2, 5, 5).sign()
    torch.testing.assert_close(layer(x), F.conv2d(F.pad(x, (1, 1, 1, 1), value=value), layer.binary_weight()))
    assert not torch.allclose(layer(x), F.conv2d(x, layer.binary_weight(), padding=1))


def test_scales_start_from_the_mean_or_at_random_and_a_negative_one_acts_by_its_size():
    for binarizer, level in (("paper", 1.0), ("released", 0.02)):
        layer = BinaryConv2d(4, 500, 3, binarizer=binarizer)
        torch.testing.assert_close(layer.alpha(), cam(layer.weight))
        layer.reset_scale("randn")
        assert 0.9 < layer.scaling_factor.std() < 1.1 and (layer.scaling_factor < 0).any()
        torch.testing.assert_close(layer.alpha(), level * layer.scaling_factor.abs())
        layer(torch.ones(1, 4, 3, 3)).sum().backward()
        mirrored = BinaryConv2d(4, 500, 3, binarizer=binarizer)
        mirrored.load_state_dict(layer.state_dict() | {"scaling_factor": -layer.scaling_factor.data})
        mirrored(torch.ones(1, 4, 3, 3)).sum().backward()
        torch.testing.assert_close(mirrored.scaling_factor.grad, -layer.scaling_factor.grad)
    with pytest.raises(ValueError, match="alpha_init 'mean'"):
        layer.reset_scale("mean")
    with pytest.raises(ValueError, match="binarizer 'xnor'"):
        BinaryConv2d(1, 1, 1, binarizer="xnor")


# -- packed signs ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_loses_nothing(rows, m, seed):
    bits = torch.rand(rows, m, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(bits)
    assert packed.shape == (rows, math.ceil(m / 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, m), bits)
    assert torch.equal(popcount(packed).sum(1), bits.sum(1))
    first = [sum(int(bits[0, 8 * k + j]) << j for j in range(8) if 8 * k + j < m) for k in range(packed.shape[1])]
    assert packed[0].tolist() == first


def test_popcount_of_every_byte():
    assert popcount(torch.arange(256, dtype=torch.uint8)).tolist() == [bin(byte).count("1") for byte in range(256)]


def test_flip_fraction_counts_a_zero_on_one_side_only():
    before = torch.tensor([[1.0, -1.0, 0.0, 0.0, 2.0]])
    after = torch.tensor([[-1.0, -3.0, 0.0, 1.0, 0.0]])
    assert flip_fraction(before, after).tolist() == pytest.approx([3 / 5])
    signs = (before.sign() != after.sign()).float().mean(1)
    assert flip_fraction(before, after).tolist() == signs.tolist()


# -- γ and oscillation -----------------------------------------------------------------------------------------------


def small() -> tuple[nn.Sequential, torch.Tensor]:
    """Two binary layers, 3 x 3 and 1 x 1, with 27 and 5 weights a channel, and a batch."""
    network = nn.Sequential(
        *(RSign(3), BinaryConv2d(3, 5, 3), nn.BatchNorm2d(5), RSign(5), BinaryConv2d(5, 4, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return network.double(), randn(6, 3, 6, 6)


class Spied(BinaryConv2d):
    """A binary layer that lets a test see G by a way of its own."""

    def binary_weight(self) -> torch.Tensor:
        self.used = super().binary_weight()
        if self.used.requires_grad:
            self.used.retain_grad()
        return self.used


def train_by_hand(network, x, steps: int, rate: float = 0.5):
    """Yields (weights before, gradients of ŵ, weights after) of SGD steps, with a Balance's γ in the backward pass."""
    layers = [m for m in network.modules() if isinstance(m, BinaryConv2d)]
    for layer in layers:
        layer.__class__ = Spied
    optimiser = torch.optim.SGD(network.parameters(), rate)
    target = randn(len(x), 4)
    for _ in range(steps):
        before = [layer.weight.detach().clone() for layer in layers]
        optimiser.zero_grad()
        F.mse_loss(network(x), target).backward()
        grads = [layer.used.grad.clone() for layer in layers]
        optimiser.step()
        yield before, grads, [layer.weight.detach().clone() for layer in layers]


@pytest.mark.parametrize("rule", ["paper", "max"])
def test_gamma_follows_the_equation_at_every_iteration(rule):
    network, x = small()
    balance = Balance(network, rule)
    assert not balance.gamma.any(), "nothing has flipped before the first iteration"
    changed = 0
    for before, grads, after in train_by_hand(network, x, 6):
        balance.step()
        if rule == "paper":
            wanted = torch.cat([balanced_gamma(*triple) for triple in zip(before, after, grads)])
        else:
            wanted = torch.cat([grad.abs().flatten(1).amax(1) for grad in grads])
        torch.testing.assert_close(balance.gamma, wanted)
        changed += int(wanted.any())
    assert changed >= 3, "the test's steps are large enough to flip signs"


@pytest.mark.parametrize("value", [0.0, 1e-4, 3e-2])
def test_constant_gamma_enters_the_gradient(value):
    network, x = small()
    Balance(network, "none")
    network(x).square().sum().backward()
    plain = {n: p.grad.clone() for n, p in network.named_parameters()}
    network.zero_grad()
    balance = Balance(network, "constant", value)
    network(x).square().sum().backward()
    for name, layer in balance.layers.items():
        residual = layer.weight - layer.alpha() * layer.weight.sign()
        torch.testing.assert_close(layer.weight.grad, (plain[f"{name}.weight"] + value * residual).detach())
    torch.testing.assert_close(
        balance.reconstruction(),
        sum(0.5 * value * (m.weight - m.alpha() * m.weight.sign()).square().sum() for m in balance.layers.values()),
    )


def test_micro_batches_add_up_to_the_gradient_and_gamma_of_the_whole_batch():
    network, x = small()
    network.eval()  # so that a sample does not see the others through BatchNorm
    whole = Balance(network, "constant", 0.1)
    network(x).square().sum().backward()
    wanted = {n: p.grad.clone() for n, p in network.named_parameters()}
    network.zero_grad()
    Balance(network, "constant", 0.1, parts=2)
    for part in x.chunk(2):
        network(part).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])
    gammas = []
    for parts in (1, 3):
        balance = Balance(network, "max", parts=parts)
        for part in x.chunk(parts):
            network(part).square().sum().backward()
        balance.step()
        gammas.append(balance.gamma.clone())
    torch.testing.assert_close(*gammas)
    assert whole.layers.keys() == balance.layers.keys()


def test_gamma_of_averaged_and_scaled_gradients():
    """mean averages G over processes before the maximum is taken; a loss scale is divided out."""
    network, x = small()
    balance = Balance(network, "max")
    network(x).square().sum().mul(1024).backward()
    grads = [layer.gradient.clone() for layer in balance.layers.values()]
    balance.step(mean=lambda tensor: tensor / 4, loss_scale=1024)
    wanted = torch.cat([grad.abs().flatten(1).amax(1) for grad in grads]) / 4096
    torch.testing.assert_close(balance.gamma, wanted)
    assert all(layer.gradient is None for layer in balance.layers.values())


def test_evaluation_leaves_gamma_and_signs_alone():
    network, x = small()
    balance = Balance(network, "paper")
    for _ in train_by_hand(network, x, 2):
        balance.step()
    before = balance.gamma.clone()
    network.eval()
    with torch.no_grad():
        network(x)
    assert torch.equal(balance.gamma, before) and all(m.gradient is None for m in balance.layers.values())


def test_oscillation_is_counted_as_defined():
    """Against a straightforward count over the whole history of signs (section 2.10)."""
    network, x = small()
    balance = Balance(network, "paper")
    history = [[m.weight.detach().clone() for m in balance.layers.values()]]
    for _, _, after in train_by_hand(network, x, 7):
        balance.step()
        history.append(after)
    report = balance.report()
    for number, weights in enumerate(zip(*history)):
        signs = torch.stack([w.flatten(1) < 0 for w in weights])
        flips = signs[1:] != signs[:-1]
        sequential = flips[1:] & flips[:-1]
        assert report["flip_ratio"][number] == pytest.approx(flips.double().mean().item())
        assert report["sequential_ratio"][number] == pytest.approx(sequential.double().mean().item())
        assert report["epoch_flip_ratio"][number] == pytest.approx((signs[0] != signs[-1]).double().mean().item())
        assert report["flip_channels"][number] == pytest.approx(flips.double().mean((0, 2)).tolist(), rel=1e-3)
    assert report["flip"] > 0 and report["sequential"] > 0
    assert balance.report()["flip"] == 0, "an epoch starts anew"


def test_the_state_of_balance_is_plain_and_complete():
    straight, x = small()
    copied = Balance(straight, "paper")
    for _ in train_by_hand(straight, x, 3):
        copied.step()
    state = copied.state_dict()
    assert state["signs"]["1"].dtype == torch.uint8 and state["signs"]["1"].shape == (2, 5, 4)  # 27 weights, 4 bytes
    fresh = Balance(straight, "paper")
    fresh.load_state_dict(state)
    assert torch.equal(fresh.gamma, copied.gamma)
    assert all(torch.equal(m.gamma.flatten(), copied.gamma[p]) for m, p in fresh.places())
    assert fresh.report() == copied.report()
    with pytest.raises(ValueError, match="another network"):
        Balance(nn.Sequential(BinaryConv2d(1, 1, 1)), "paper").load_state_dict(state)


def test_balance_refuses_what_it_cannot_balance():
    network, _ = small()
    with pytest.raises(ValueError, match="no binary layer"):
        Balance(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="'oscillate' is not one of"):
        Balance(network, "oscillate")
    for value in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="not a finite number"):
            Balance(network, "constant", value)
    with pytest.raises(ValueError, match="ReActNet's scale"):
        Balance(nn.Sequential(BinaryConv2d(1, 1, 1, binarizer="reactnet")), "paper")
    with pytest.raises(ValueError, match="in one part"):
        Balance(network, "released_intended", parts=2)


def test_gamma_is_the_threshold_of_the_proposition():
    """Near zero a weight that was pushed over by G and is pushed back by -G stays when γ exceeds |G| (section 2.3)."""
    for gamma, flips in ((0.0, True), (0.5, True), (1.5, False)):
        weight = torch.tensor([[-1e-4]], dtype=DOUBLE, requires_grad=True)
        alpha = torch.ones(1, 1, dtype=DOUBLE)
        binary = binarise(weight, alpha, torch.full_like(alpha, gamma))
        (grad,) = torch.autograd.grad(binary, weight, -torch.ones_like(weight))  # pushes upwards
        assert ((weight - 0.01 * grad).item() > 0) == flips


# -- objective, conversion -------------------------------------------------------------------------------------------


def test_losses():
    student, teacher, labels = randn(5, 7), randn(5, 7), torch.arange(5)
    p, log_q = teacher.softmax(1), student.log_softmax(1)
    torch.testing.assert_close(distribution_loss(student, teacher), -(p * log_q).sum() / 5)
    entropy = -(p * p.log()).sum() / 5
    torch.testing.assert_close(kl_divergence(student, teacher), distribution_loss(student, teacher) - entropy)
    assert abs(kl_divergence(teacher, teacher).item()) < 1e-12
    soft = 0.9 * F.one_hot(labels, 7) + 0.1 / 7
    torch.testing.assert_close(label_smoothing_loss(student, labels), -(soft * log_q).sum() / 5)
    assert distribution_loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


def test_the_last_epoch_runs_at_the_smallest_rate_not_at_zero():
    rates = [learning_rate(1e-3, e, 4) for e in range(4)]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_decay_groups_sort_by_shape_and_name():
    network = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 1), "move": RSign(2), "bn": nn.BatchNorm2d(2)})
    decayed, rest = decay_groups(network.named_parameters())
    assert set(decayed) == {"conv.weight", "conv.bias", "move.bias"} and set(rest) == {"bn.weight", "bn.bias"}
    assert set(decay_groups(network.named_parameters(), decay_norm_bias=False)[0]) == {"conv.weight"}


def test_convert_makes_a_users_network_binary():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sequential(nn.Conv2d(8, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9)),
        nn.Conv2d(9, 4, 1, stride=2),
        nn.Conv2d(4, 5, 3, groups=1),
    )
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convert(network) is network
    assert isinstance(network[0], nn.Conv2d) and isinstance(network[2], nn.Conv2d)
    for converted, weight in ((network[1][0], weights[1]), (network[3], weights[3])):
        assert isinstance(converted[0], RSign) and converted[1].weight is weight
        torch.testing.assert_close(converted[1].alpha(), cam(weight))
    balance = Balance(network)
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(3):
        optimiser.zero_grad()
        network(torch.randn(2, 3, 12, 12)).square().mean().backward()
        optimiser.step()
        balance.step()
    assert list(balance.layers) == ["1.0.1", "3.1"] and balance.report()["flip"] > 0
    with pytest.raises(ValueError, match="nothing to convert"):
        convert(network)
    with pytest.raises(ValueError, match="no convolution of the network"):
        convert(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)), keep=["2"])
    with pytest.raises(ValueError, match="reflect"):
        convert(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_with_odd_channel_counts(rule):
    network = nn.Sequential(RSign(3), BinaryConv2d(3, 7, 3, padding=1), RSign(7), BinaryConv2d(7, 5, 1))
    balance = Balance(network, rule)
    optimiser = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(3):
        optimiser.zero_grad()
        network(torch.randn(2, 3, 5, 5)).square().mean().backward()
        optimiser.step()
        balance.step()
    assert balance.gamma.isfinite().all() and (balance.gamma >= 0).all()
    assert packed_signs(network[1].weight).shape == (2, 7, 4)


def test_released_rules_look_ahead_by_the_last_gradient():
    network, x = small()
    balance = Balance(network, "released_intended")
    assert not balance.gamma.any(), "without a gradient only exact zeros count"
    for _ in train_by_hand(network, x, 1):
        balance.step()
    layers = list(balance.layers.values())
    wanted = [((m.weight - m.weight.grad).sign() != m.weight.sign()).double().flatten(1).mean(1) for m in layers]
    torch.testing.assert_close(balance.gamma, torch.cat(wanted))
    assert set(Balance(network, "released").gamma.tolist()) == {2e-4}
