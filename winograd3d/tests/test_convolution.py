"""The layer in its parameterisations, and what is done with whole networks: convert, merge, pack, report."""

import copy
import io

from common import cost
from common.errors import InputError

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from winograd3d import WinogradConv3d, convert, merge, pack, report
from winograd3d.api import choose_tile, packed
from winograd3d.costs import Rates, predicted_seconds
from winograd3d.functional import winograd_conv3d
from winograd3d.masks import MaskLearner, warnings, winograd_layers
from winograd3d.method import importance, kept_columns, layer_mask, tensors, weight_transform

DOUBLE = torch.float64
TILES = [(2, 2, 2), (4, 4, 4), (2, 4, 4), (1, 2, 2), (1, 4, 4)]
MODES = ["residual", "factor", "vanilla", "spatial"]


def layer_of(mode: str = "residual", channels: tuple[int, int] = (6, 5), dtype=DOUBLE, **options) -> WinogradConv3d:
    """A layer C_i -> C_o with padding 1 whose parameters are all away from zero."""
    c_in, c_out = channels
    kernel, bias = torch.randn(c_out, c_in, 3, 3, 3, dtype=dtype), torch.randn(c_out, dtype=dtype)
    layer = WinogradConv3d(kernel, bias, (1, 1, 1), mode=mode, **{"rank": 3, **options})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def half_mask(layer: WinogradConv3d) -> torch.Tensor:
    return layer_mask(torch.rand(layer.mask.shape), 0.5, layer.granularity)


class Net(nn.Module):
    """Two eligible layers with norms, and one of each kind that is not."""

    def __init__(self, **last):
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU())
        self.conv = nn.Conv3d(8, 12, 3, padding="same")
        self.norm = nn.BatchNorm3d(12, affine=False)
        self.last = nn.Conv3d(12, 12, 3, padding=1, **last)

    def forward(self, x):
        x = self.norm(self.conv(self.block(self.stem(x))))
        return self.last(F.relu(x)).mean((2, 3, 4))


def net(**last) -> Net:
    network = Net(**{"stride": 2, **last}).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


# -- the layer -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_size_padding_and_batch_equal_conv3d(data):
    tile = data.draw(st.sampled_from(TILES))
    padding = data.draw(st.tuples(*[st.integers(0, 3)] * 3))
    size = tuple(data.draw(st.integers(max(1, 3 - 2 * p), 9)) for p in padding)
    batch, c_in, c_out = (data.draw(st.integers(1, 3)) for _ in range(3))
    points = data.draw(st.sampled_from(["lavin", "half"]))
    x, kernel = torch.randn(batch, c_in, *size, dtype=DOUBLE), torch.randn(c_out, c_in, 3, 3, 3, dtype=DOUBLE)
    axes = tensors(tile, points)
    y = winograd_conv3d(x, weight_transform(kernel, axes.G), None, tile, padding, axes)
    assert torch.allclose(y, F.conv3d(x, kernel, padding=padding), atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("tile", "options"),
    [
        ((2, 2, 2), {}),
        ((2, 2, 2), {"view": "filter", "granularity": "channel"}),
        ((1, 2, 2), {"granularity": "channel_balanced"}),
        ((2, 4, 4), {"granularity": "element"}),
    ],
)
def test_gradients_of_every_parameterisation(mode, tile, options):
    layer = layer_of(mode, (3, 4), tile=tile, **options)
    layer.set_mask(half_mask(layer))
    names, values = zip(*((name, value.detach().requires_grad_()) for name, value in layer.named_parameters()))
    x = torch.randn(2, 3, 3, 2, 5, dtype=DOUBLE, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_conversion_keeps_the_function(mode):
    conv = nn.Conv3d(6, 5, 3, padding=(0, 1, 2)).double()
    x = torch.randn(2, 6, 4, 5, 6, dtype=DOUBLE)
    layer = WinogradConv3d.from_conv(conv, mode=mode, rank=27)
    assert torch.allclose(layer(x), conv(x), atol=1e-12)
    wanted = {"residual": 27 * (30 + 64), "factor": 27 * (30 + 64), "vanilla": 30 * 64, "spatial": 30 * 27}
    assert layer.trainables() == wanted[mode]


def test_a_small_rank_is_the_best_approximation():
    conv = nn.Conv3d(6, 5, 3).double()
    exact = WinogradConv3d.from_conv(conv, mode="vanilla").unmasked_weight()
    values = torch.linalg.svdvals(exact.view(30, 64))
    for rank in (2, 8):
        gap = WinogradConv3d.from_conv(conv, mode="factor", rank=rank).unmasked_weight() - exact
        assert torch.isclose(gap.norm(), values[rank:].norm())


def test_directions_beyond_rank_27_can_move():
    layer = WinogradConv3d(torch.randn(5, 6, 3, 3, 3), None, (1, 1, 1), mode="factor", rank=30)
    (layer.unmasked_weight() * torch.randn(5, 6, 64)).sum().backward()
    assert layer.P.grad[:, 27:].abs().min() > 0


def test_the_first_step_of_residual_moves_p_alone():
    layer = WinogradConv3d(torch.randn(5, 6, 3, 3, 3), None, (1, 1, 1), mode="residual", rank=4)
    layer(torch.randn(1, 6, 4, 4, 4)).square().sum().backward()
    assert layer.P.grad.abs().sum() > 0 and not layer.Q.grad.any()


def test_the_large_transformed_input_is_not_kept_for_backward():
    layer = layer_of(dtype=torch.float32)
    x = torch.randn(2, 6, 8, 8, 8)
    kept = cost.saved_for_backward(lambda: layer(x), [*layer.parameters(), layer.W0])
    weight = 4 * layer.columns * layer.out_channels
    assert kept <= 4 * x.numel() + 2 * weight + 1024  # V alone would be 8 times x


def test_hard_and_straight_through_masks():
    hard = layer_of("vanilla")
    hard.set_mask(half_mask(hard))
    soft = copy.deepcopy(hard)
    soft.straight_through = True
    x = torch.randn(1, 6, 4, 4, 4, dtype=DOUBLE)
    assert torch.equal(hard(x), soft(x))
    for layer in (hard, soft):
        layer(x).square().sum().backward()
    removed = ~hard.mask
    assert not hard.W.grad[..., removed].any() and soft.W.grad[..., removed].abs().min() > 0
    assert torch.allclose(hard.W.grad[..., hard.mask], soft.W.grad[..., hard.mask])


@pytest.mark.parametrize("mode", ["vanilla", "residual", "factor"])
def test_precondition_is_a_spatial_step(mode):
    """With (GGᵀ)^⊗3 D in D's place, the gradients of the parameters are those of D's spatial step."""
    plain = layer_of(mode)
    steep = copy.deepcopy(plain)
    steep.precondition = True
    x = torch.randn(1, 6, 4, 4, 4, dtype=DOUBLE)
    for layer in (plain, steep):
        layer(x).square().sum().backward()
    squares = [g @ g.T for g in plain.axes.G]
    gain = torch.einsum("ap,bq,cr->abcpqr", *squares).reshape(64, 64)
    if mode == "vanilla":
        assert torch.allclose(steep.W.grad, plain.W.grad @ gain)
    else:
        weight = plain.unmasked_weight().detach().requires_grad_()
        winograd_conv3d(x, weight, plain.bias, padding=(1, 1, 1)).square().sum().backward()
        moved = (weight.grad @ gain).view(30, 64)
        assert torch.allclose(steep.P.grad, moved @ plain.Q.T) and torch.allclose(steep.Q.grad, plain.P.T @ moved)


@pytest.mark.parametrize("tile", [(2, 2, 2), (4, 4, 4)])
def test_autocast_lowers_products_of_small_tiles_only(tile):
    layer = layer_of(dtype=torch.float32, tile=tile)
    x = torch.randn(1, 6, 8, 8, 8)
    exact = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    rounded = torch.equal(low, exact.bfloat16())
    assert rounded == (max(tile) > 2)
    assert torch.allclose(low.float(), exact, atol=0.1 * float(exact.abs().max()))


def test_double_rounds_the_transforms_anew():
    layer = layer_of("spatial", dtype=torch.float32, tile=(4, 4, 4)).double()
    assert layer.axes.G[0][1, 0] == -1 / 6
    x = torch.randn(1, 6, 5, 5, 5, dtype=DOUBLE)
    assert torch.allclose(layer(x), F.conv3d(x, layer.K, layer.bias, padding=1), atol=1e-10)


def test_the_state_tells_its_conventions():
    stored = layer_of(tile=(4, 4, 4), points="half").state_dict()
    layer_of(tile=(4, 4, 4), points="half").load_state_dict(stored)
    with pytest.raises(InputError, match=r"gauge half \(here lavin\)"):
        layer_of(tile=(4, 4, 4)).load_state_dict(stored)
    assert {"W0", "P", "Q", "mask", "score", "bias"} < set(stored)
    torch.save(stored, io.BytesIO())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: layer_of(rank=31), "rank 31 is above 30"),
        (lambda: layer_of(view="filter", rank=6), "rank 6 is above 5, the most that a 5 x 384 matrix"),
        (lambda: layer_of("spatial", precondition=True), "leave precondition off"),
        (lambda: layer_of().set_mask(torch.zeros(64, dtype=torch.bool)), "empties the layer"),
        (lambda: layer_of().set_mask(torch.ones(6, 64, dtype=torch.bool)), "does not fit granularity position"),
        (lambda: layer_of()(torch.zeros(1, 5, 4, 4, 4, dtype=DOUBLE)), r"takes \[N, 6, D, H, W\]"),
        (lambda: winograd_conv3d(torch.zeros(1, 1, 2, 9, 9), torch.zeros(1, 1, 64)), "smaller than the kernel"),
    ],
)
def test_what_a_layer_refuses(call, words):
    with pytest.raises(InputError, match=words):
        call()


# -- scores over a batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["position", "channel", "element"])
@pytest.mark.parametrize("score", ["taylor", "taylor_abs", "taylor2", "l2", "l1", "l2_comp"])
def test_parts_of_a_batch_score_like_the_whole(score, granularity):
    layer = layer_of("vanilla", granularity=granularity)
    learner = MaskLearner(layer, score, beta=0.5)
    learner.start()
    x = torch.randn(4, 6, 4, 4, 4, dtype=DOUBLE)
    for part in x.split(1):
        layer(part).square().sum().backward()
    learner.update(0.5)
    expected = importance(score, granularity, layer.W.detach(), layer.W.grad, *gain_of(layer, score))
    assert torch.allclose(layer.score, 0.5 * expected)
    assert torch.equal(layer.mask, layer_mask(layer.score, 0.5, granularity))


def gain_of(layer: WinogradConv3d, score: str) -> list:
    if score != "l2_comp":
        return []
    return [
        torch.einsum(
            "a,b,c->abc", *(b.norm(dim=1) * a.norm(dim=0) for a, b in zip(layer.axes.AT, layer.axes.BT))
        ).flatten()
    ]


def test_scores_are_smoothed_and_frozen():
    layer = layer_of("factor")
    learner = MaskLearner(layer, "gram", beta=0.9)
    learner.start()
    layer(torch.randn(1, 6, 4, 4, 4, dtype=DOUBLE)).sum().backward()
    learner.update(0.0)
    first = layer.score.clone()
    learner.update(0.75)
    assert torch.allclose(layer.score, 1.9 * first) and layer.mask.sum() == 16
    learner.freeze()
    assert not layer.straight_through and layer.noted_score is None


def test_learners_refuse_what_contradicts():
    with pytest.raises(InputError, match="needs mode factor"):
        MaskLearner(layer_of(), "gram")
    with pytest.raises(InputError, match="does not go with channel_balanced"):
        MaskLearner(layer_of(granularity="channel_balanced"), scope="global")


def test_few_positions_are_warned_of():
    layer = layer_of()
    assert not warnings(nn.Sequential(layer))
    layer.set_mask(torch.arange(64) < 7)
    (warning,) = warnings(nn.Sequential(layer))
    assert "0: 7 kept positions span only" in warning


# -- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("granularity", ["position", "channel", "channel_balanced", "element"])
def test_merged_and_packed_networks_compute_the_same(mode, granularity):
    network, x = net().double(), torch.randn(2, 3, 5, 6, 7, dtype=DOUBLE)
    conversion = convert(network, mode=mode, rank=27, granularity=granularity)
    assert conversion.converted == ["block.0", "conv"]
    for layer in winograd_layers(network).values():
        layer.set_mask(half_mask(layer))
    with torch.no_grad():
        expected = network(x)
        kept = [layer.kept() for layer in winograd_layers(network).values()]
        merge(network)
        assert isinstance(network.block[1], nn.Identity) and isinstance(network.norm, nn.Identity)
        assert torch.allclose(network(x), expected, atol=1e-10)
        assert not any(p.requires_grad for layer in winograd_layers(network).values() for p in layer.parameters())
        pack(network)
        assert torch.allclose(network(x), expected, atol=1e-10)
    assert [network.block[0].kept, network.conv.kept] == kept and not winograd_layers(network)


REFUSED = {
    "stride": ({"stride": 2}, "its stride is 2x2x2"),
    "dilation": ({"dilation": 2}, "its dilation is 2x2x2"),
    "groups": ({"groups": 3}, "it has 3 groups"),
    "padding": ({"padding_mode": "replicate"}, "it pads with replicate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_stays_and_says_why(name):
    options, words = REFUSED[name]
    network = net(stride=options.pop("stride", 1), **options)
    last, x = network.last, torch.randn(1, 3, 6, 6, 6)
    expected = network(x)
    conversion = convert(network, mode="vanilla")
    assert words in conversion.refused["last"] and "3 channels" in conversion.refused["stem"]
    assert network.last is last and torch.allclose(network(x), expected, atol=1e-4)


def test_other_kernels_subclasses_and_parametrizations_stay():
    class Doubled(nn.Conv3d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Simple(nn.Conv3d):
        pass

    network = nn.Sequential(
        nn.Conv3d(8, 8, (1, 3, 3)),
        Doubled(8, 8, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv3d(8, 8, 3)),
        Simple(8, 8, 3),
    )
    conversion = convert(network)
    assert conversion.converted == ["3"]
    for name, words in {"0": "kernel is 1x3x3", "1": "forward of its own", "2": "parametrization"}.items():
        assert words in conversion.refused[name]


def test_a_factorised_network_is_left_as_it_is():
    network = nn.Sequential(nn.Conv3d(8, 8, (1, 3, 3)), nn.Conv3d(8, 8, (3, 1, 1)))
    conversion = convert(network)
    assert not conversion.converted and conversion.refused.keys() == {"0", "1"}


def test_a_layer_used_twice_stays_one():
    conv = nn.Conv3d(8, 8, 3, padding=1)
    network = nn.Sequential(conv, nn.BatchNorm3d(8), conv).eval()
    network[1].running_var.fill_(0.3)
    x = torch.randn(1, 8, 4, 4, 4)
    expected = network(x)
    assert convert(network).converted == ["0", "2"]
    assert network[0] is network[2]
    merge(network)
    assert network[0] is network[2] and network[0].mode == "vanilla"
    assert torch.allclose(network(x), expected, atol=1e-4), "a norm that follows one of two uses must not be folded"
    pack(network)
    assert network[0] is network[2] and torch.allclose(network(x), expected, atol=1e-4)


def test_a_network_that_cannot_be_traced_keeps_its_norms():
    class Branching(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    network = Branching().eval()
    x = torch.randn(1, 3, 4, 4, 4)
    convert(network)
    expected = network(x)
    with pytest.warns(UserWarning, match="cannot be traced"):
        merge(network)
    assert isinstance(network.norm, nn.BatchNorm3d) and torch.allclose(network(x), expected, atol=1e-5)


def test_a_rank_that_is_too_large_leaves_the_network_alone():
    network = net()
    with pytest.raises(InputError, match=r"block.0: rank 65 is above 64"):
        convert(network, rank=65)
    assert not winograd_layers(network)


def test_auto_tiles_follow_the_size():
    wide, deep = nn.Conv3d(64, 64, 3, padding=1), nn.Conv3d(512, 512, 3, padding=1)
    assert choose_tile(wide, (16, 56, 56)) == (4, 4, 4)
    assert choose_tile(deep, (1, 4, 4)) == (1, 2, 2)
    network, example = net(), torch.randn(1, 3, 8, 12, 12)
    expected = network(example)
    convert(network, tile="auto", example=example, mode="vanilla")
    assert torch.allclose(network(example), expected, atol=1e-3)
    with pytest.raises(InputError, match="needs an example"):
        convert(net(), tile="auto")


def test_pack_refuses_an_empty_layer():
    network = net()
    convert(network)
    network.conv.mask.fill_(False)
    with pytest.raises(InputError, match="conv: the mask removes every column"):
        pack(network)


def test_report_counts_and_measures():
    network, x = net(), torch.randn(2, 3, 5, 6, 7)
    convert(network, rank=8)
    network.conv.set_mask(torch.arange(64) % 2 == 0)
    first, second = report(network, x, rounds=1)
    tiles = 2 * 3 * 3 * 4  # samples, then tiles of the border counted whole
    assert (first.name, first.trainables, first.kept, first.sparsity) == ("block.0", 8 * (64 + 64), 512, 0)
    assert first.macs == 512 * 8 * tiles and first.macs_direct == 27 * 64 * 2 * 5 * 6 * 7
    assert (second.kept, second.columns, second.sparsity) == (256, 512, 0.5)
    assert second.macs == 256 * 12 * tiles and second.stored == 256 * 12 + 12
    assert second.reduction == pytest.approx(second.macs_direct / second.macs)
    for row in (first, second):
        assert min(row.predicted_ms, row.packed_ms, row.dense_ms, row.direct_ms) > 0 and row.error < 1e-5
    with pytest.raises(InputError, match="convert it first"):
        report(nn.Sequential(nn.Conv3d(4, 4, 3)), torch.zeros(1, 4, 4, 4, 4))


def test_predicted_time_falls_with_the_columns():
    layer = layer_of(dtype=torch.float32)
    times = []
    for sparsity in (0.0, 0.5, 0.9):
        layer.set_mask(layer_mask(torch.rand(64), sparsity, "position"))
        times.append(predicted_seconds(layer.kept(), layer, (8, 8, 8), 1, Rates(1e9, 1e9)))
    assert times[0] > times[1] > times[2]
    products = layer.kept() * 5 * 64 / 1e9
    assert times[2] > products


def test_a_dense_copy_packs_every_column():
    layer = layer_of("vanilla")
    layer.set_mask(half_mask(layer))
    x = torch.randn(1, 6, 4, 4, 4, dtype=DOUBLE)
    sparse, dense = packed(layer), packed(layer, dense=True)
    assert dense.kept == layer.columns and sparse.kept == kept_columns(layer.mask, 6)
    assert torch.allclose(sparse(x), layer(x).detach(), atol=1e-10)
    layer.mask.fill_(True)
    assert torch.allclose(dense(x), layer(x).detach(), atol=1e-10)


def test_a_merged_network_exports_to_onnx():
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = net(), torch.randn(1, 3, 4, 6, 6)
    convert(network, rank=8)
    merge(network)
    file = io.BytesIO()
    torch.onnx.export(network, (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(y), network(x).detach(), atol=1e-4)
