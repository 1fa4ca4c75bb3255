import re

import common  # noqa: F401
from common.errors import InputError
from common.fold import fold_batchnorm

import pytest
import torch
import torch.nn.functional as F
import torchvision

from rebnn.method import BinaryConv2d
from rebnn.models import STUDENTS, TEACHERS, binary_convolutions, build, count, teacher
from rebnn.models.layers import RealConv2d
from rebnn.models.mobilenet import Block as MobileBlock
from rebnn.models.resnet import BinaryResNet, Block
from rebnn.tests.oracle_networks import filled

SIDE = {"resnet18": 64, "resnet34": 64, "reactnet_a": 64, "resnet18_cifar": 16, "digits": 8}
# Section 3: parameters, binary ones, scales, binary and real multiply-adds of an image of 224 px, and OPs.
COUNTS = {
    ("resnet18", "paper"): (11_708_264, 10_985_472, 3_840, 1_676_279_808, 137_793_536, 1.640e8),
    ("resnet34", "paper"): (21_834_984, 21_086_208, 7_552, 3_525_967_872, 137_793_536, 1.929e8),
    ("resnet18", "real"): (11_704_424, 10_985_472, 0, 1_676_279_808, 137_793_536, 1.640e8),
    ("resnet18", "reactnet"): (11_704_424, 10_985_472, 0, 1_676_279_808, 137_793_536, 1.640e8),
    ("resnet34", "reactnet"): (21_827_432, 21_086_208, 0, 3_525_967_872, 137_793_536, 1.929e8),
    ("reactnet_a", "reactnet"): (29_343_592, 28_253_184, 0, 4_816_896_000, 11_862_016, 0.871e8),
}
BN = "(weight|bias|running_mean|running_var|num_batches_tracked)"
RESNET = re.compile(
    rf"conv1\.weight|bn1\.{BN}|fc\.(weight|bias)|layer[1-4]\.\d+\.(move[012]\.bias|binary_conv\.(weight|scaling_factor)"
    rf"|bn1\.{BN}|prelu\.weight|downsample\.(1\.weight|2\.{BN}))"
)
REACTNET_A = re.compile(
    rf"fc\.(weight|bias)|feature\.0\.(conv1\.weight|bn1\.{BN})|feature\.\d+\.(move(11|12|13|21|22|23)\.bias"
    rf"|binary_(3x3|pw|pw_down1|pw_down2)\.weight|bn(1|2|2_1|2_2)\.{BN}|prelu[12]\.weight)"
)


def meta(name: str, weights: str = "paper", classes: int = 1000) -> torch.nn.Module:
    with torch.device("meta"):
        return build(name, classes, weights)


@pytest.mark.parametrize("name, weights", COUNTS)
def test_counts_and_operations_are_those_of_the_paper(name, weights):
    cost = count(meta(name, weights), (224, 224))
    assert cost == COUNTS[name, weights][:5]
    assert cost.real_parameters == cost.parameters - cost.binary_parameters
    assert cost.ops == pytest.approx(COUNTS[name, weights][5], abs=5e4)  # half a unit of the last printed digit


@pytest.mark.parametrize("name, mebibytes", [("resnet18", 1.31 + 2.76), ("resnet34", 2.51 + 2.86)])
def test_storage_has_one_bit_for_a_binary_weight(name, mebibytes):
    assert count(meta(name), (224, 224)).storage / 2**20 == pytest.approx(mebibytes, abs=0.01)


def test_counting_a_plain_network_finds_nothing_binary():
    cost = count(torch.nn.Conv2d(3, 5, 3, padding=1, groups=1), (7, 6))
    assert cost == (140, 0, 0, 0, 7 * 6 * 135)
    grouped = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False), torch.nn.Flatten())
    assert count(torch.nn.Sequential(*grouped, torch.nn.Linear(72, 5)), (7, 7), channels=4).real_macs == 9 * 144 + 360


@pytest.mark.parametrize(
    "name, weights, entries",
    [("resnet18", "paper", 202), ("resnet34", "paper", 378), ("resnet18", "reactnet", 186), ("resnet18", "real", 186)],
)
def test_state_dicts_have_the_official_entries(name, weights, entries):
    state = meta(name, weights).state_dict()
    assert len(state) == entries
    assert [key for key in state if not RESNET.fullmatch(key)] == []
    assert state["layer2.0.binary_conv.weight"].shape == (128, 64, 3, 3)
    assert state["layer2.0.move0.bias"].shape == (1, 64, 1, 1) and state["layer2.0.move2.bias"].shape == (1, 128, 1, 1)
    if weights == "paper":
        assert state["layer3.1.binary_conv.scaling_factor"].shape == (256, 1, 1, 1)


def test_reactnet_a_has_the_official_entries():
    state = meta("reactnet_a", "reactnet").state_dict()
    assert [key for key in state if not REACTNET_A.fullmatch(key)] == []
    assert {"feature.2.binary_pw_down2.weight", "feature.8.binary_pw.weight", "feature.13.bn2.bias"} <= state.keys()


def test_the_binary_layers_are_the_same_in_both_steps():
    names = [[*binary_convolutions(meta(n, w))] for n in ("resnet18", "reactnet_a") for w in ("real", "paper")]
    assert names[0] == names[1] and len(names[0]) == 16
    assert names[2] == names[3] and len(names[2]) == 13 + 13 + 5  # five blocks widen
    assert names[0][:2] == ["layer1.0.binary_conv", "layer1.1.binary_conv"]
    assert all(isinstance(m, BinaryConv2d) for m in binary_convolutions(meta("resnet34")).values())


@pytest.mark.parametrize(
    "name, weights", [*((n, "paper") for n in STUDENTS), *(("digits", w) for w in ("real", "released", "reactnet"))]
)
def test_every_student_learns_all_its_parameters(name, weights):
    torch.manual_seed(0)
    network = build(name, 7, weights)
    logits = network(torch.randn(2, 3, SIDE[name], SIDE[name]))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []


def test_a_block_is_the_formula_of_section_3():
    torch.manual_seed(0)
    block = filled(Block(4, 6, 2, lambda *words, **more: RealConv2d(*words, **more)), 1).double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    signs = torch.sign(x + block.move0.bias)
    out = block.bn1(F.conv2d(signs, block.binary_conv.weight, stride=2, padding=1))
    _, conv, bn = block.downsample
    out = out + bn(conv(F.avg_pool2d(x, 2, 2)))
    out = F.prelu(out + block.move1.bias, block.prelu.weight) + block.move2.bias
    torch.testing.assert_close(block(x), out)


def test_a_mobile_block_that_widens_joins_two_halves():
    torch.manual_seed(0)
    block = filled(MobileBlock(4, 8, 2, lambda *words, **more: RealConv2d(*words, **more)), 1).double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    middle = block.bn1(F.conv2d(torch.sign(x + block.move11.bias), block.binary_3x3.weight, stride=2, padding=1))
    middle = middle + F.avg_pool2d(x, 2, 2)
    middle = F.prelu(middle + block.move12.bias, block.prelu1.weight) + block.move13.bias
    signs = torch.sign(middle + block.move21.bias)
    halves = [
        bn(F.conv2d(signs, conv.weight)) + middle
        for bn, conv in ((block.bn2_1, block.binary_pw_down1), (block.bn2_2, block.binary_pw_down2))
    ]
    out = F.prelu(torch.cat(halves, 1) + block.move22.bias, block.prelu2.weight) + block.move23.bias
    torch.testing.assert_close(block(x), out)


def test_the_stem_has_no_activation_and_the_first_block_of_a_stage_halves_the_map():
    network = filled(BinaryResNet((1, 2), (4, 6), 3, BinaryConv2d), 0).eval()
    x = torch.randn(1, 3, 16, 16)
    maps = network.features(x)
    torch.testing.assert_close(maps[0], F.max_pool2d(network.bn1(network.conv1(x)), 3, 2, 1))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 4, 4), (4, 4, 4), (6, 2, 2)]
    assert (maps[0] < 0).any()


@pytest.mark.parametrize("channels", [(5, 9), (7, 3)])
def test_odd_channel_counts_work(channels):
    network = build("digits", 10, channels=channels)
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert network.fc.in_features == channels[-1]


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_the_padding_value_stands_beyond_the_border(value):
    torch.manual_seed(0)
    conv = RealConv2d(3, 4, 3, stride=2, padding=1, pad_value=value)
    x = torch.randn(2, 3, 6, 6).sign()
    frame = torch.full((2, 3, 8, 8), value)
    frame[:, :, 1:-1, 1:-1] = x
    torch.testing.assert_close(conv(x), F.conv2d(frame, conv.weight, stride=2))
    assert not torch.allclose(conv(x), F.conv2d(x, conv.weight, stride=2, padding=1))
    network = build("digits", 10, "released", pad_value=value)
    assert {layer.pad_value for layer in binary_convolutions(network).values()} == {value}


@pytest.mark.parametrize("name, side", [("resnet18", 200), ("resnet18_cifar", 28), ("digits", 7), ("reactnet_a", 48)])
def test_images_whose_sides_cannot_be_halved_are_refused(name, side):
    with pytest.raises(InputError, match="multiples of"):
        meta(name)(torch.empty(1, 3, side, side, device="meta"))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: build("resnet19", 10), "did you mean resnet18"),
        (lambda: teacher("resnet34", 10), "did you mean resnet34_teacher"),
        (lambda: build("digits", 10, "relased"), "did you mean released"),
        (lambda: build("digits", 0), "0 classes"),
        (lambda: teacher("digits_teacher", 0), "0 classes"),
        (lambda: build("resnet18", 10, channels=(8, 8, 8, 8)), "fixed channels"),
        (lambda: build("digits", 10, channels=(8, 8, 16)), "one for each stage"),
        (lambda: build("digits", 10, channels=(8, 0)), "one for each stage"),
        (lambda: MobileBlock(4, 7, 1, BinaryConv2d), "4 or 8"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_could_be(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_answer_and_fold(name):
    torch.manual_seed(0)
    network = filled(teacher(name, 10), 2).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fold_batchnorm(network)(x), network(x), rtol=1e-3, atol=1e-3)
    assert network.architecture == name and network(x).shape == (2, 10)


def test_the_teacher_takes_torchvision_s_weights():
    own, theirs = (
        {key: value.shape for key, value in network.state_dict().items()}
        for network in (teacher("resnet34_teacher", 1000), torchvision.models.resnet34())
    )
    assert own == theirs
