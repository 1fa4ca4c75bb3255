import re
from pathlib import Path

import common  # noqa: F401
from common.errors import InputError
from common.fold import fold_batchnorm

import pytest
import torch
import torchvision
from torch import nn

from kcd.models import MODELS, build, teacher_name
from kcd.models.layers import channel_shuffle
from kcd.tests.oracle_networks import count_macs, count_parameters, fill

SMALL = [(16, 32), (16, 32), (32, 16), (64, 8), (64,)]
FOUR = [(32, 32), (64, 32), (128, 16), (256, 8), (256,)]
TWICE = [(16, 32), (32, 32), (64, 16), (128, 8), (128,)]
VGG = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4), (512,)]
# Parameters, multiply-accumulates and features (channels, side) of the official networks, 100 classes, 32 px.
OFFICIAL = {
    "resnet8": (83_892, 12_507_392, SMALL),
    "resnet14": (181_108, 26_663_168, SMALL),
    "resnet20": (278_324, 40_818_944, SMALL),
    "resnet32": (472_756, 69_130_496, SMALL),
    "resnet44": (667_188, 97_442_048, SMALL),
    "resnet56": (861_620, 125_753_600, SMALL),
    "resnet110": (1_736_564, 253_155_584, SMALL),
    "resnet8x4": (1_233_540, 177_071_104, FOUR),
    "resnet32x4": (7_433_860, 1_083_040_768, FOUR),
    "ResNet50": (23_705_252, 1_298_014_208, [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4), (2048,)]),
    "wrn_16_1": (180_916, 26_663_168, SMALL),
    "wrn_16_2": (703_284, 101_118_464, TWICE),
    "wrn_40_1": (569_780, 83_286_272, SMALL),
    "wrn_40_2": (2_255_156, 327_610_880, TWICE),
    "vgg8": (3_965_028, 96_192_512, VGG),
    "vgg11": (9_277_284, 209_438_720, VGG),
    "vgg13": (9_462_180, 284_936_192, VGG),
    "vgg16": (14_774_436, 398_182_400, VGG),
    "vgg19": (20_086_692, 511_428_608, VGG),
    "MobileNetV2": (812_836, 6_523_648, [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2), (1280,)]),
    "ShuffleV1": (949_258, 38_691_456, [(24, 32), (240, 16), (480, 8), (960, 4), (960,)]),
    "ShuffleV2": (1_355_528, 44_504_448, [(24, 32), (116, 16), (232, 8), (464, 4), (1024,)]),
}
FAMILIES = ["resnet8", "resnet8x4", "ResNet50", "wrn_16_1", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1",
            "ShuffleV2", "resnet18_imagenet"]  # fmt: skip
BN = "(weight|bias|running_mean|running_var|num_batches_tracked)"
KEYS = {
    "resnet": rf"conv1\.weight|bn1\.{BN}|fc\.(weight|bias)|layer[1-4]\.\d+\.(conv[12]\.weight|bn[12]\.{BN}"
    rf"|downsample\.(0\.weight|1\.{BN}))",
    "ResNet50": rf"conv1\.weight|bn1\.{BN}|linear\.(weight|bias)|layer[1-4]\.\d+\.(conv[123]\.weight"
    rf"|bn[123]\.{BN}|shortcut\.(0\.weight|1\.{BN}))",
    "wrn": rf"conv1\.weight|bn1\.{BN}|fc\.(weight|bias)|block[123]\.layer\.\d+\.(bn[12]\.{BN}"
    r"|(conv[12]|convShortcut)\.weight)",
    "vgg": rf"block[0-4]\.([0369]\.(weight|bias)|(1|4|7|10)\.{BN})|classifier\.(weight|bias)",
    "MobileNetV2": rf"(conv[12]\.|blocks\.[0-6]\.\d+\.conv\.)([036]\.weight|[147]\.{BN})"
    r"|classifier\.0\.(weight|bias)",
    "ShuffleV1": rf"conv1\.weight|bn1\.{BN}|linear\.(weight|bias)"
    rf"|layer[123]\.\d+\.(conv[123]\.weight|bn[123]\.{BN})",
    "ShuffleV2": rf"conv[12]\.weight|bn[12]\.{BN}|linear\.(weight|bias)"
    rf"|layer[123]\.(0\.(conv[1-5]\.weight|bn[1-5]\.{BN})|\d+\.(conv[123]\.weight|bn[123]\.{BN}))",
}


def family(name: str) -> str:
    return name if name in KEYS else re.match("[a-z]+", name)[0]


def meta(name: str) -> nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return build(name, 100)


@torch.no_grad()
@pytest.mark.parametrize("name", OFFICIAL)
def test_counts_and_feature_shapes_are_the_official_ones(name):
    model, image = build(name, 100), torch.randn(2, 3, 32, 32)
    parameters, macs, shapes = OFFICIAL[name]
    assert count_parameters(model) == parameters
    assert count_macs(model, image) == macs
    features, logits = model(image, is_feat=True)
    assert [f.shape[1:-1] if f.ndim == 4 else f.shape[1:] for f in features] == shapes
    assert all(f.shape[2] == f.shape[3] for f in features[:-1]) and logits.shape == (2, 100)


def test_the_literal_dict_holds_the_paper_s_networks_and_imagenet_s():
    assert set(MODELS) == set(OFFICIAL) | {"resnet18_imagenet", "resnet34_imagenet"}


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_names_are_the_official_ones_on_the_meta_device_too(name):
    pattern = re.compile(KEYS[family(name)])
    state = meta(name).state_dict()
    assert [key for key in state if not pattern.fullmatch(key)] == []
    assert all(value.is_meta for value in state.values())


@pytest.mark.parametrize(
    "name, keys",
    {
        "resnet32x4": ["layer1.0.downsample.0.weight", "layer3.4.bn2.running_var", "fc.bias"],
        "ResNet50": ["layer1.0.shortcut.1.bias", "layer3.5.conv3.weight"],
        "wrn_40_2": ["block1.layer.0.convShortcut.weight", "block3.layer.5.bn2.weight"],
        "vgg19": ["block0.3.bias", "block4.10.running_mean", "classifier.weight"],
        "MobileNetV2": ["blocks.0.0.conv.0.weight", "blocks.3.3.conv.7.bias", "conv2.1.weight"],
        "ShuffleV1": ["layer2.7.conv3.weight"],
        "ShuffleV2": ["layer1.0.conv5.weight", "layer2.7.bn3.weight"],
    }.items(),
)
def test_blocks_are_where_checkpoints_have_them(name, keys):
    assert set(keys) <= meta(name).state_dict().keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_activated_preactivations(name):
    model = fill(build(name, 10), 1).eval()
    image = torch.randn(2, 3, 32, 32)
    features, logits = model(image, is_feat=True)
    before, same = model(image, is_feat=True, preact=True)
    assert torch.equal(logits, same) and torch.equal(logits, model(image))
    assert torch.equal(features[0], before[0]) and torch.equal(features[-1], before[-1])
    expected = {
        "wrn": lambda: [bn(f) for bn, f in zip(following_bns(model), features[1:-1])],
        "MobileNetV2": lambda: features[1:-1],
    }
    if family(name) in expected:
        pairs = zip(before[1:-1], expected[family(name)]())
    else:
        shuffle = (lambda x: channel_shuffle(x, 2)) if name == "ShuffleV2" else (lambda x: x)
        assert all((b < 0).any() for b in before[1:-1])
        pairs = zip((shuffle(b.relu()) for b in before[1:-1]), features[1:-1])
    assert all(torch.equal(a, b) for a, b in pairs)


def following_bns(model: nn.Module) -> list[nn.Module]:
    return [model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter_and_none_is_unused(name):
    model = build(name, 10)
    features, logits = model(torch.randn(2, 3, 32, 32), is_feat=True)
    grads = torch.autograd.grad(logits.square().sum(), [*model.parameters(), *features])
    assert all(g.isfinite().all() and g.any() for g in grads)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_init_stage_trains_the_stem_and_all_stages_only(name):
    model = meta(name)
    trained = {id(p) for module in model.feature_modules() for p in module.parameters()}
    rest = [key for key, p in model.named_parameters() if id(p) not in trained]
    head = {"MobileNetV2": r"conv2\..*|classifier\..*", "ShuffleV2": r"(conv2|bn2|linear)\..*", "wrn": r"(bn1|fc)\..*"}
    pattern = head.get(family(name), r"(fc|linear|classifier)\..*")
    assert rest == [key for key, _ in model.named_parameters() if re.fullmatch(pattern, key)]


def test_convolutions_start_with_the_official_spread():
    torch.manual_seed(0)
    for name in ("resnet20", "ResNet50", "wrn_16_2", "vgg8", "MobileNetV2"):
        for module in build(name, 100).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
                assert module.bias is None or not module.bias.any()
            elif isinstance(module, nn.Linear) and name in ("vgg8", "MobileNetV2"):
                assert module.weight.std().item() == pytest.approx(0.01, rel=0.05) and not module.bias.any()
            elif isinstance(module, nn.Linear) and name == "wrn_16_2":
                assert not module.bias.any()
    for name in ("ShuffleV1", "ShuffleV2"):
        weight = build(name, 100).layer2[1].conv1.weight
        bound = weight[0].numel() ** -0.5
        assert 0.95 * bound < weight.abs().max() <= bound


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [8, 20, 48, 64])
def test_other_image_sizes(size, name):
    features, logits = build(name, 7)(torch.randn(2, 3, size, size), is_feat=True)
    assert logits.shape == (2, 7) and features[-1].ndim == 2
    if name == "vgg8":  # the fourth pooling belongs to 64 px alone
        assert [f.shape[2] for f in features[3:5]] == [size // 8, size // 16 if size == 64 else size // 8]


def test_width_scales_a_cifar_resnet():
    for name, stages in (("resnet8", (3, 3, 6, 12)), ("resnet8x4", (6, 12, 24, 48))):
        features, logits = build(name, 10, width=3)(torch.randn(2, 3, 8, 8), is_feat=True)
        assert tuple(f.shape[1] for f in features[:-1]) == stages and logits.shape == (2, 10)
    assert count_parameters(build("resnet8", 100, width=16)) == OFFICIAL["resnet8"][0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("resnet_20", 10), "resnet_20.*did you mean resnet20"),
        (("shufflev2", 10), "did you mean ShuffleV2"),
        (("vgg8", 10, 4), "vgg8 has no free width.*resnet8"),
        (("resnet18_imagenet", 10, 4), "no free width"),
        (("resnet8", 10, 0), "width 0"),
        (("resnet8", 0), "0 classes"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        build(*arguments)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_imagenet_resnets_are_torchvision_s(name):
    reference = fill(getattr(torchvision.models, name)(num_classes=20), 4).eval()
    model = build(f"{name}_imagenet", 20).eval()
    model.load_state_dict(reference.state_dict())
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(model(image), reference(image), rtol=1e-5, atol=1e-5 * reference(image).std().item())


class Features(nn.Module):
    """The call that a distiller makes of a frozen teacher."""

    def __init__(self, model: nn.Module, preact: bool):
        super().__init__()
        self.model, self.preact = model, preact

    def forward(self, x: torch.Tensor):
        return self.model(x, is_feat=True, preact=self.preact)


@torch.no_grad()
@pytest.mark.parametrize("name", [*FAMILIES, "resnet110"])
def test_folding_keeps_logits_and_features(name):
    model = fill(build(name, 10), 2).eval()
    image = torch.randn(1, 3, 32, 32)
    folded = fold_batchnorm(model)
    (features, logits), (before, _) = model(image, is_feat=True), model(image, is_feat=True, preact=True)
    pairs = [(folded(image), logits)]
    for preact, expected in ((False, features), (True, before)):
        found, output = fold_batchnorm(Features(model, preact))(image)
        assert len(found) == len(expected)
        pairs += [(output, logits), *zip(found, expected)]
    for got, want in pairs:
        assert (got - want).abs().max() <= 1e-4 * want.square().mean().sqrt()
    # A pre-activation block starts with a BN after a sum. The stem's convolution has the first BN to itself only
    # where the shortcut is not taken from it, as in the wider network.
    left = {"wrn_16_1": 7, "wrn_16_2": 6}.get(name, 0)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == left


@pytest.mark.parametrize(
    "path, name",
    [
        ("save/models/resnet32x4_vanilla/ckpt_epoch_240.pth", "resnet32x4"),
        ("save/models/wrn_40_2_vanilla/ckpt_epoch_240.pth", "wrn_40_2"),
        (Path("ResNet50_vanilla/ckpt_epoch_240.pth"), "ResNet50"),
        ("save/models/vgg13_cifar100_lr_0.05_decay_0.0005_trial_0/vgg13_last.pth", "vgg13"),
    ],
)
def test_a_teacher_is_named_by_its_folder(path, name):
    assert teacher_name(path) == name


def test_a_folder_that_names_no_network_is_refused():
    with pytest.raises(InputError, match=r"models/last\.pth.*'models'.*did you mean"):
        teacher_name("save/models/last.pth")
