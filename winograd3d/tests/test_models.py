import re

import common  # noqa: F401
from common import cost
from common.errors import CheckpointError, InputError
from common.testing import hostile

import pytest
import torch
import torchvision
from torch import nn

from winograd3d import convert, models
from winograd3d.models import C3D, R3D18, build, load_weights
from winograd3d.models.r3d import SubsampledConv1x1
from winograd3d.tests.oracle_networks import fill

C3D_SHAPE = {"width": 4, "clip": (16, 32, 32)}
SPORTS1M = dict(zip(("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7"),
                    ("features.0", "features.3", "features.6", "features.8", "features.11", "features.13",
                     "features.16", "features.18", "classifier.0", "classifier.3")))  # fmt: skip
MMACTION = {
    **{f"conv{n}": f"backbone.conv{n}.conv" for n in ("3a", "3b", "4a", "4b", "5a", "5b")},
    "conv1": "backbone.conv1a.conv",
    "conv2": "backbone.conv2a.conv",
    "fc6": "backbone.fc6",
    "fc7": "backbone.fc7",
    "fc8": "cls_head.fc_cls",
}


def meta(name: str, classes: int, **options) -> nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return build(name, classes, **options)


def renamed(network: nn.Module, names: dict[str, str], prefix: str = "") -> dict[str, torch.Tensor]:
    """The network's parameters under another layout's names; layers that the layout lacks are left out."""
    parts = ((key.rpartition("."), value) for key, value in network.state_dict().items())
    return {f"{prefix}{names[layer]}.{what}": value for (layer, _, what), value in parts if layer in names}


# -- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, classes, parameters",
    [
        ("c3d", 101, 78_409_573),
        ("c3d", 51, 78_204_723),
        ("r3d18", 101, 33_218_085),
        ("r3d18", 51, 33_192_435),
        ("r3d18", 400, 33_371_472),
    ],
)
def test_parameters_are_those_of_section_3(name, classes, parameters):
    assert cost.parameters(meta(name, classes)).total == parameters


@pytest.mark.parametrize("name, giga", [("c3d", 38.547), ("r3d18", 40.696)])
def test_multiply_adds_are_those_of_section_3(name, giga):
    clip = torch.empty(1, 3, 16, 112, 112, device="meta")
    assert cost.macs(meta(name, 101), clip) / 1e9 == pytest.approx(giga, abs=6e-4)


# The specification says 98.7 % for C3D; its own table of multiply-adds gives 37,456 / 38,547 = 97.2 %.
@pytest.mark.parametrize("name, pairs, share", [("c3d", 1_024_000, 0.9717), ("r3d18", 1_048_576, 0.9033)])
def test_what_can_be_converted_is_what_section_3_says(name, pairs, share):
    network = meta(name, 101)
    clip = torch.empty(1, 3, 16, 112, 112, device="meta")
    sizes = {}
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda m, _, y: sizes.update({m: y[0, 0].numel()}))
    network.eval()(clip)
    chosen = [m for m in sizes if m.kernel_size == (3, 3, 3) and m.stride == (1, 1, 1) and m.in_channels > 3]
    assert sum(m.in_channels * m.out_channels for m in chosen) == pairs
    macs = sum(27 * m.in_channels * m.out_channels * sizes[m] for m in chosen)
    assert macs / cost.macs(network, clip) == pytest.approx(share, abs=6e-4)
    modules = dict(network.named_modules())
    assert {modules[layer] for layer in convert(meta(name, 101)).converted if layer in modules} == set(chosen)


def test_layers_lie_where_the_tables_have_them():
    network, sizes = meta("c3d", 101).eval(), {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, given, y, name=name: sizes.update({name: tuple(given[0].shape[1:])}))
    network(torch.empty(1, 3, 16, 112, 112, device="meta"))
    assert sizes["conv2"] == (64, 16, 56, 56) and sizes["conv4b"] == (512, 4, 14, 14)
    assert sizes["conv5b"] == (512, 2, 7, 7) and sizes["fc6"] == (8192,)


# -- the same as others' ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_r3d18_is_torchvision_s():
    reference = fill(torchvision.models.video.r3d_18(num_classes=7)).eval()
    network = build("r3d18", 7).eval()
    assert [*network.state_dict()] == [*reference.state_dict()]
    network.load_state_dict(reference.state_dict())
    clip = torch.randn(1, 3, 4, 24, 30)
    torch.testing.assert_close(network(clip), reference(clip), rtol=1e-5, atol=1e-5 * reference(clip).std().item())


def test_weights_start_with_the_spread_of_section_3():
    torch.manual_seed(0)
    c3d = build("c3d", 5, width=16, clip=(16, 32, 32))
    for name in ("conv2", "conv4b", "conv5b"):
        convolution = c3d.get_submodule(name)
        expected = (2 / (27 * convolution.in_channels)) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.03) and not convolution.bias.any()
    r3d = build("r3d18", 50, width=16)
    for name in ("layer1.0.conv1.0", "layer3.1.conv2.0", "layer4.0.downsample.0"):
        convolution = r3d.get_submodule(name)
        expected = (2 / (convolution.out_channels * convolution.kernel_size[0] ** 3)) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.04)
    assert r3d.fc.weight.std().item() == pytest.approx(0.01, rel=0.05) and not r3d.fc.bias.any()


@pytest.mark.parametrize(
    "name, options, clip",
    [("c3d", C3D_SHAPE, (3, 16, 32, 32)), ("r3d18", {"width": 4}, (3, 8, 20, 26)), ("digits3d", {}, (1, 8, 12, 12))],
)
def test_gradients_reach_every_parameter(name, options, clip):
    torch.manual_seed(0)
    network = build(name, 6, channels=clip[0], **options)
    logits = network(torch.randn(4, *clip))
    assert logits.shape == (4, 6)
    grads = torch.autograd.grad(logits.square().sum(), [*network.parameters()])
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


def test_c3d_flattens_channels_first_in_any_memory_format():
    network = build("c3d", 3, **C3D_SHAPE).eval()
    clip = torch.randn(2, 3, 16, 32, 32)
    other = clip.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(network.to(memory_format=torch.channels_last_3d)(other), network(clip))


def test_a_narrow_shortcut_computes_what_torch_s_does():
    own = SubsampledConv1x1(3, 5, 1, 2, bias=False)
    clip = torch.randn(2, 3, 5, 6, 7)
    torch.testing.assert_close(own(clip), nn.Conv3d.forward(own, clip))
    assert isinstance(R3D18(2, width=4).layer2[0].downsample[0], SubsampledConv1x1)
    assert type(R3D18(2, width=8).layer2[0].downsample[0]) is nn.Conv3d


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("r3d", 5), "did you mean r3d18"),
        (("r2plus1d18", 5), "factorises.*nothing three-dimensional"),
        (("c3d", 0), "classes 0"),
        (("r3d18", 5, 0), "width 0"),
        (("c3d", 5, None, (8, 112, 112)), "leave nothing of a clip"),
        (("digits3d", 5, None, (1, 12, 12)), "leave nothing of a clip"),
    ],
)
def test_a_network_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        build(*arguments)


def test_r2plus1d_is_left_as_it_is_with_the_reason():
    with torch.device("meta"):
        network = torchvision.models.video.r2plus1d_18(num_classes=5)
    before = [*network.state_dict()]
    conversion = convert(network)
    assert not conversion.converted and [*network.state_dict()] == before
    assert "its kernel is 1x3x3" in conversion.refused["layer1.0.conv1.0.0"]


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["plain", "module", "sports1m", "mmaction", "torchvision", "ours"])
def test_weights_of_every_layout_load(tmp_path, layout):
    torch.manual_seed(0)
    name, options = ("r3d18", {"width": 4}) if layout == "torchvision" else ("c3d", C3D_SHAPE)
    source, target = build(name, 5, **options), build(name, 5, **options)
    state = source.state_dict()
    content = {
        "plain": lambda: state,
        "module": lambda: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "sports1m": lambda: renamed(source, SPORTS1M),
        "mmaction": lambda: {"state_dict": renamed(source, MMACTION), "meta": {"epoch": 45}},
        "torchvision": lambda: state,
        "ours": lambda: {"state": {"model": state}, "format": 1},
    }[layout]()
    torch.save(content, tmp_path / "weights.pth")
    fresh = target.state_dict()["fc.weight" if name == "r3d18" else "fc8.weight"].clone()
    loaded = load_weights(target, tmp_path / "weights.pth")
    expected = {
        "sports1m": ("sports1m", ("fc8.weight", "fc8.bias"), "c3d_bgr"),
        "mmaction": ("mmaction", (), "mmaction"),
        "torchvision": ("torchvision", (), "kinetics"),
    }
    assert tuple(loaded) == expected.get(layout, ("plain", (), None))
    for key, value in target.state_dict().items():
        assert torch.equal(value, fresh if layout == "sports1m" and key == "fc8.weight" else state[key]) or (
            layout == "sports1m" and key == "fc8.bias"
        ), key


@pytest.mark.parametrize("name, options", [("c3d", C3D_SHAPE), ("r3d18", {"width": 4})])
def test_a_head_of_other_classes_keeps_its_fresh_values(tmp_path, name, options):
    source, target = build(name, 400, **options), build(name, 5, **options)
    head = "fc8" if name == "c3d" else "fc"
    torch.save(source.state_dict(), tmp_path / "kinetics.pth")
    fresh = target.get_submodule(head).weight.clone()
    assert load_weights(target, tmp_path / "kinetics.pth").fresh == (f"{head}.weight", f"{head}.bias")
    assert torch.equal(target.get_submodule(head).weight, fresh)
    for key, value in target.state_dict().items():
        assert key.startswith(f"{head}.") or torch.equal(value, source.state_dict()[key]), key


def test_the_caffe_model_s_487_classes_in_plain_names_load_but_for_the_head(tmp_path):
    torch.manual_seed(0)
    source, target = C3D(487, (4,) * 8, 8, (16, 32, 32)), C3D(101, (4,) * 8, 8, (16, 32, 32))
    torch.save(source.state_dict(), tmp_path / "c3d.pickle")
    assert load_weights(target, tmp_path / "c3d.pickle").fresh == ("fc8.weight", "fc8.bias")
    assert torch.equal(target.conv5b.weight, source.conv5b.weight)


def test_weights_of_another_network_change_nothing(tmp_path):
    network = build("c3d", 5, **C3D_SHAPE)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    wider = build("c3d", 7, width=8, clip=(16, 32, 32)).state_dict()
    unknown = renamed(network, SPORTS1M) | {"features.1.weight": torch.zeros(3)}
    twice = renamed(network, SPORTS1M) | {"conv1.weight": torch.zeros(3)}
    cases = {
        "wider": (wider, r"of another shape \(\d+\): .*conv1.weight \[8, 3, 3, 3, 3\] for \[4"),
        "r3d": (build("r3d18", 5, width=4).state_dict(), "does not fit c3d"),
        "unknown": (unknown, "features.1.weight"),
        "twice": (twice, "twice"),
        "no trunk": ({"fc8.weight": torch.zeros(5, 256)}, "missing"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match=message):
            load_weights(network, tmp_path / f"{name}.pth")
    with pytest.raises(CheckpointError, match="never executed"):
        load_weights(network, hostile(tmp_path / "hostile.pth", tmp_path / "canary"))
    assert not (tmp_path / "canary").exists()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_list_of_networks_builds_on_the_meta_device():
    for name in models.MODELS:
        assert all(value.is_meta for value in meta(name, 4).state_dict().values())
        assert re.fullmatch("[a-z0-9]+", name)
