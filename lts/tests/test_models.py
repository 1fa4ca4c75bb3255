import math
import re

from common import cost
from common.errors import InputError

import pytest
import torch
import torchvision
from torch import nn

from lts.accounting import layer_macs
from lts.method import quantise, quantised_layers, quantiser_parameters
from lts.models import MODELS, build
from lts.models.mobilenet import InvertedResidual
from lts.tests.oracle_networks import fill

# classes, side, multiply-adds, parameters with quantisers, quantiser scalars, layers, quantised weights (section 3)
OFFICIAL = {
    "resnet20": [
        (100, 32, 40_818_944, 278_412, 88, 22, 276_656),
        (10, 32, 40_813_184, 272_562, 88, 22, 270_896),
    ],
    "resnet18": [(1000, 224, 1_814_073_344, 11_689_596, 84, 21, 11_678_912)],
    "resnet50": [(1000, 224, 4_089_184_256, 25_557_248, 216, 54, 25_502_912)],
    "mobilenetv1": [(1000, 224, 568_740_352, 4_232_088, 112, 28, 4_209_088)],
    "mobilenetv2": [(1000, 224, 300_774_272, 3_505_084, 212, 53, 3_469_760)],
}
BN = "(weight|bias|running_mean|running_var|num_batches_tracked)"
BLOCK = rf"layer[1-4]\.\d+\.(conv[123]\.weight|bn[123]\.{BN}|NAME\.(0\.weight|1\.{BN}))"
NORM = r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
MOBILE = rf"head\.(0\.weight|1{NORM})|tail\.(0\.weight|1{NORM})|classifier(\.0)?\.(weight|bias)|"
KEYS = {
    "resnet20": rf"conv1\.weight|bn1\.{BN}|fc\.(weight|bias)|" + BLOCK.replace("NAME", "shortcut"),
    "resnet18": rf"conv1\.weight|bn1\.{BN}|linear\.(weight|bias)|" + BLOCK.replace("NAME", "downsample"),
    "resnet50": rf"conv1\.weight|bn1\.{BN}|linear\.(weight|bias)|" + BLOCK.replace("NAME", "downsample"),
    "mobilenetv1": MOBILE + rf"stage_[0-4]_layer_[0-5]\.body\.([03]\.weight|[14]{NORM})",
    "mobilenetv2": MOBILE + rf"stage_[0-6]_layer_[0-3]\.body\.([036]\.weight|[147]{NORM})",
    "digits": rf"conv[1-4]\.weight|bn[1-4]\.{BN}|fc\.(weight|bias)",
}
# State-dict entries in full precision; the release's quantised ones have 5 more a layer, with the scratcher 9.
ENTRIES = {"resnet20": (128, 238, 326), "resnet18": (None, None, 311), "mobilenetv1": (None, None, 416),
           "mobilenetv2": (None, None, 791)}  # fmt: skip


def meta(name: str, classes: int = 10) -> nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return build(name, classes)


@pytest.mark.parametrize("name, expected", [(name, row) for name, rows in OFFICIAL.items() for row in rows])
def test_counts_are_the_official_ones(name, expected):
    classes, side, *rest = expected
    with torch.device("meta"):
        model = quantise(build(name, classes))
        macs = layer_macs(model, torch.empty(1, 3, side, side))
    layers = quantised_layers(model)
    scalars = sum(p.numel() for p in quantiser_parameters(model))
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert [sum(macs.values()), cost.parameters(model).trainable, scalars, len(layers), weights] == rest
    assert [*macs] == [*layers], "modules must be registered in the order of execution"


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_names_are_the_official_ones(name):
    state = meta(name).state_dict()
    assert [key for key in state if not re.fullmatch(KEYS[name], key)] == []
    assert all(value.is_meta for value in state.values())


@pytest.mark.parametrize("name", ENTRIES)
def test_a_checkpoint_has_the_official_number_of_entries(name):
    plain = len(meta(name).state_dict())
    layers = len(quantised_layers(quantise(meta(name))))
    for expected, extra in zip(ENTRIES[name], (0, 5, 9)):
        assert expected in (None, plain + extra * layers)


@pytest.mark.parametrize(
    "name, keys",
    {
        "resnet20": ["layer1.2.conv2.weight", "layer2.0.shortcut.1.bias", "layer3.0.shortcut.0.weight"],
        "resnet18": ["layer4.1.conv2.weight", "layer2.0.downsample.0.weight"],
        "resnet50": ["layer1.0.downsample.1.bias", "layer3.5.conv3.weight"],
        "mobilenetv1": ["stage_0_layer_0.body.4.bias", "stage_4_layer_1.body.3.weight"],
        "mobilenetv2": ["stage_0_layer_0.body.3.weight", "stage_6_layer_0.body.7.bias", "tail.1.weight",
                        "classifier.0.bias"],
        "digits": ["conv4.weight", "bn4.running_var"],
    }.items(),
)  # fmt: skip
def test_blocks_are_where_checkpoints_have_them(name, keys):
    assert set(keys) <= meta(name).state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_resnets_are_torchvision_s(name):
    reference = fill(getattr(torchvision.models, name)(num_classes=20), 4).eval()
    model = build(name, 20).eval()
    model.load_state_dict({key.replace("fc.", "linear."): v for key, v in reference.state_dict().items()})
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-5 * reference(images).std().item())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name):
    model = build(name, 10)
    images = torch.randn(2, 3, 40, 40)
    grads = torch.autograd.grad(model(images).square().sum(), [*model.parameters()])
    assert all(g.isfinite().all() and g.any() for g in grads)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [8, 33])
def test_other_image_sizes(size, name):
    assert build(name, 7).eval()(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_only_relu_follows_bn_and_projections_are_linear():
    kinds = {type(m) for name in MODELS for m in meta(name).modules()}
    assert not kinds & {nn.ReLU6, nn.Hardtanh, nn.Dropout}
    block = InvertedResidual(8, 8, 6, 1)
    assert isinstance(block.body[-1], nn.BatchNorm2d) and block.residual
    assert not InvertedResidual(8, 16, 6, 1).residual and not InvertedResidual(8, 8, 6, 2).residual


def test_layers_start_with_the_official_spread():
    torch.manual_seed(0)
    for name in ("resnet20", "mobilenetv1", "mobilenetv2"):
        for module in build(name, 100).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.06)
            elif isinstance(module, nn.Linear) and name != "resnet20":
                assert module.weight.std().item() == pytest.approx(0.01, rel=0.05) and not module.bias.any()


def test_width_scales_the_small_networks():
    state = build("resnet20", 10, width=8).state_dict()
    assert state["conv1.weight"].shape[0] == 8 and state["layer3.2.conv2.weight"].shape == (32, 32, 3, 3)
    assert build("digits", 10, width=24).fc.in_features == 48
    assert cost.parameters(build("resnet20", 100, width=16)).total == 278_412 - 88


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("resnet_20", 10), "resnet_20.*did you mean resnet20"),
        (("mobilenet2", 10), "did you mean mobilenetv2"),
        (("resnet34", 10), "choose from resnet20"),
        (("resnet18", 10, 32), "resnet18 has no free width.*resnet20 or digits"),
        (("resnet20", 10, 4), "width 4; give at least 8"),
        (("digits", 0), "0 classes"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        build(*arguments)
