import common  # noqa: F401
from common.fold import fold_batchnorm

import pytest
import torch
import torch.nn.functional as F
from torch import nn

TOLERANCE = 1e-5


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine parameters that a forgotten or misapplied term would show in."""
    generator = torch.Generator().manual_seed(seed)
    for bn in module.modules():
        if isinstance(bn, nn.modules.batchnorm._BatchNorm):
            if bn.running_mean is not None:
                bn.running_mean.normal_(generator=generator)
                bn.running_var.uniform_(0.3, 2, generator=generator)
            if bn.affine:
                nn.init.normal_(bn.weight, generator=generator)
                nn.init.normal_(bn.bias, generator=generator)
    return module


def normalisations(module: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def assert_folds(module: nn.Module, *inputs: torch.Tensor, left: int) -> nn.Module:
    """The folded copy has `left` normalisations, computes the same and shares nothing with the module."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    training = module.training
    folded = fold_batchnorm(module)
    assert normalisations(folded) == left
    assert module.training == training and not folded.training
    own = {t.data_ptr() for t in module.state_dict().values()}
    assert own.isdisjoint(t.data_ptr() for t in folded.state_dict().values())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    module.eval()
    torch.testing.assert_close(folded(*inputs), module(*inputs), rtol=TOLERANCE, atol=TOLERANCE)
    module.train(training)
    return folded


LAYERS = {
    "linear": (nn.Linear(6, 4), nn.BatchNorm1d(4), (5, 6)),
    "linear without bias": (nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), (5, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, dilation=2), nn.BatchNorm1d(4), (2, 6, 9)),
    "conv2d": (nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 6, 7, 7)),
    "conv2d, reflected border": (
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), (2, 6, 7, 7),
    ),
    "conv2d, grouped, strided": (nn.Conv2d(6, 4, 3, 2, groups=2), nn.BatchNorm2d(4), (2, 6, 7, 7)),
    "conv2d, constant BN": (nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, affine=False, eps=0.1), (2, 6, 7, 7)),
    "conv2d, synchronised": (nn.Conv2d(6, 4, 3), nn.SyncBatchNorm(4), (2, 6, 7, 7)),
    "conv3d": (nn.Conv3d(6, 4, 3), nn.BatchNorm3d(4), (2, 6, 5, 5, 5)),
    "transposed 1d": (nn.ConvTranspose1d(6, 4, 3), nn.BatchNorm1d(4), (2, 6, 9)),
    "transposed 2d": (nn.ConvTranspose2d(6, 4, 4, stride=2, bias=False), nn.BatchNorm2d(4), (2, 6, 5, 5)),
    "transposed 2d, grouped": (nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d(4), (2, 6, 5, 5)),
    "transposed 3d, grouped": (nn.ConvTranspose3d(6, 8, 3, groups=2), nn.BatchNorm3d(8), (2, 6, 3, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_kind_is_folded(kind):
    layer, bn, shape = LAYERS[kind]
    folded = assert_folds(randomise(nn.Sequential(layer, bn, nn.ReLU())), torch.randn(shape), left=0)
    assert all(p.is_leaf and p.requires_grad for p in folded.parameters())


def test_a_frozen_layer_stays_frozen_and_keeps_its_precision():
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()).requires_grad_(False)
    folded = assert_folds(module, torch.randn(1, 3, 5, 5, dtype=torch.float64), left=0)
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in folded.parameters())


class Net(nn.Module):
    """One layer and one BN, called by the forward that a test gives."""

    def __init__(self, forward, **others: nn.Module):
        super().__init__()
        self.conv = others.pop("conv", nn.Conv2d(3, 3, 3, padding=1))
        self.bn = others.pop("bn", nn.BatchNorm2d(3))
        self.call = forward
        for name, module in others.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.call(self, x)


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).abs()


def hooked() -> nn.Conv2d:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    conv.register_forward_hook(lambda module, inputs, output: output.abs())
    return conv


def features_too(net, x):
    out = net.conv(x)
    return net.bn(out), out


UNTOUCHED = {
    "BN first": Net(lambda net, x: net.conv(net.bn(x))),
    "activation between": Net(lambda net, x: net.bn(F.relu(net.conv(x)))),
    "output used twice": Net(lambda net, x: net.bn(out := net.conv(x)) + out),
    "output returned too": Net(features_too),
    "layer called twice": Net(lambda net, x: net.bn(net.conv(net.conv(x)))),
    "weight used elsewhere": Net(lambda net, x: net.bn(net.conv(x)) + net.conv.weight.sum()),
    "layer with a hook": Net(lambda net, x: net.bn(net.conv(x)), conv=hooked()),
    "subclass": Net(lambda net, x: net.bn(net.conv(x)), conv=OwnConv(3, 3, 3, padding=1)),
    "statistics of the batch": Net(lambda net, x: net.bn(net.conv(x)), bn=nn.BatchNorm2d(3, track_running_stats=False)),
    "other axis": Net(lambda net, x: net.bn(net.conv(x)), conv=nn.Linear(6, 6)),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_a_layer_that_is_not_alone_before_its_bn_stays(case):
    assert_folds(randomise(UNTOUCHED[case]), torch.randn(2, 3, 6, 6), left=1)


def test_one_bn_after_two_layers_is_folded_into_both():
    net = Net(lambda net, x: net.bn(net.conv(x)) + net.bn(net.other(x)), other=nn.Conv2d(3, 3, 1))
    assert_folds(randomise(net), torch.randn(2, 3, 6, 6), left=0)


def test_two_bns_in_a_row_are_both_folded():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    assert_folds(randomise(net), torch.randn(2, 3, 6, 6), left=0)


def test_layers_that_share_a_weight_are_folded_apart():
    tied = nn.Conv2d(3, 3, 3, padding=1)
    net = Net(lambda net, x: net.other(net.bn(net.conv(x))), other=tied)
    tied.weight = net.conv.weight
    assert_folds(randomise(net), torch.randn(2, 3, 6, 6), left=0)


class TwoWays(nn.Module):
    """Residual; the raw convolution is seen from outside only if asked for."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x, raw=False):
        return (x + self.body(x), self.body[0](x)) if raw else x + self.body(x)


class Raw(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x, raw=True)


def test_optional_arguments_keep_their_defaults_and_a_wrapper_folds_another_use():
    model = randomise(TwoWays())
    folded = assert_folds(model, torch.randn(2, 3, 6, 6), left=0)
    with pytest.raises(AssertionError, match="raw"):
        folded(torch.randn(2, 3, 6, 6), True)
    assert_folds(Raw(model), torch.randn(2, 3, 6, 6), left=1)


def test_a_branch_on_the_data_is_refused():
    with pytest.raises(torch.fx.proxy.TraceError):
        fold_batchnorm(Net(lambda net, x: net.bn(net.conv(x)) if x.sum() > 0 else x))
