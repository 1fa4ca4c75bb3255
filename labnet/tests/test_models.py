"""Parameter counts, checkpoint names, ablations and VGG's levels."""

from common import cost
from common.errors import CheckpointError, InputError

import pytest
import torch

from labnet.method import dilate, regions
from labnet.models import LABNet, VGGFeatures, channels_of, load_weights


def count(**options) -> int:
    with torch.device("meta"):
        return cost.parameters(LABNet(**options)).total


def test_parameters_are_the_papers():
    assert count() == 933_355
    assert count(channels=8) == 62_203 and count(channels=16) == 238_411
    with torch.device("meta"):
        assert cost.parameters(LABNet(eca="laplacian-fixed")).trainable == 926_443
        network = LABNet()
    parts = {name: cost.parameters(module).total for name, module in network.named_children()}
    assert [parts[f"basicblock{i}"] for i in range(1, 9)] == [83_980, 83_980, *[108_172] * 4, 99_213, 99_502]
    assert parts["spaatt1"] == 30_336 and parts["conv34_ab"] == 2_080 and parts["convst"] == 84


def test_multiply_adds_are_the_formulas():
    """Section 3's formula without the attention's matrix products, whose sizes come from the mask."""
    with torch.device("meta"):
        network = LABNet()
        x, mask = torch.zeros(1, 3, 96, 80), torch.zeros(1, 1, 96, 80)
    height, width = 96, 80
    where = regions(*[torch.zeros(1, 1, height, width)] * 2, (height, width))
    where = where._replace(shadow=where.shadow.to("meta"), ring=where.ring.to("meta"), lit=where.lit.to("meta"))
    formula = 792_322 * height * width + 110_592 * height * width + 6_912 * (height - 2) * (width - 2) + 18_432
    assert cost.macs(network, x, mask, where) == formula + 4 * 96  # one dummy query and key in each attention


def test_names_and_order_are_the_releases():
    names = [*LABNet(8).state_dict()]
    assert len(names) == 304 and names[0] == "convst.conv2d.weight" and names[-1] == "convfinal.conv2d.bias"
    order = list(dict.fromkeys(name.split(".")[0] for name in names))
    assert order == [
        "convst",
        "basicblock1",
        "basicblock2",
        "conv12_l",
        "basicblock3",
        "conv12_ab",
        "basicblock4",
        "conv34_l",
        "spaatt1",
        "basicblock5",
        "conv34_ab",
        "spaatt2",
        "basicblock6",
        "conv56_l",
        "spaatt3",
        "basicblock7",
        "conv56_ab",
        "spaatt4",
        "basicblock8",
        "convfinal",
    ]
    assert "basicblock1.channel_attention.convop.weight" in names and "spaatt4.conv_ns.conv2d.bias" in names


ABLATIONS = [
    {"eca": "none"},
    {"eca": "laplacian-fixed"},
    {"lsa": False},
    {"branches": "one"},
    {"widths": "equal"},
    {"dilation": "sequential"},
    {"output": "linear"},
    {"ring": "grid", "lsa_size": 12},
    {"chunked": True},
    {"start": "identity"},
]


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_ablations_train(options):
    network = LABNet(4, reach=8, **options)
    x, mask = torch.rand(2, 3, 24, 20), torch.zeros(2, 1, 24, 20)
    mask[..., 6:14, 5:12] = 1
    y = network(x, mask)
    y.square().sum().backward()
    assert y.shape == x.shape and all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("branches", ["one", "two"])
def test_the_identity_start_returns_its_input(branches):
    x, mask = torch.rand(2, 3, 24, 20), torch.zeros(2, 1, 24, 20)
    mask[..., 6:14, 5:12] = 1
    assert torch.allclose(LABNet(4, reach=8, branches=branches, start="identity")(x, mask), x, atol=1e-6)
    linear = LABNet(4, reach=8, branches=branches, start="identity", output="linear")
    assert torch.allclose(linear(x - 0.5, mask), x - 0.5, atol=1e-6)


def test_chunks_and_the_fused_form_are_one_function():
    torch.manual_seed(0)
    networks = [LABNet(4, reach=8, chunked=chunked) for chunked in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    x, mask = torch.rand(2, 3, 24, 20), (torch.rand(2, 1, 24, 20) > 0.7).float()
    one, two = (network(x, mask) for network in networks)
    assert torch.allclose(one, two, atol=1e-5)


def test_the_attention_reads_the_mask():
    torch.manual_seed(0)
    network, x = LABNet(4, reach=8), torch.rand(1, 3, 24, 24)
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 8:16, 8:16] = 1
    given = network.regions(mask)
    assert torch.equal(network(x, mask), network(x, mask, given))
    empty = network.regions(torch.zeros_like(mask))
    assert not torch.allclose(network(x, mask), network(x, mask, empty))
    small = LABNet(4, reach=8, lsa_size=12, ring="grid").regions(mask)
    assert small.shadow.shape == (1, 16) and small.ring.shape == (1, 144 - 16)  # five pixels of a grid of twelve
    assert network.grid(300, 200) == (256, 200)
    assert given.ring.shape[1] == int((dilate(mask) - mask).sum())


def test_too_small_and_odd_are_refused():
    with pytest.raises(InputError, match="64x80 is too small: 65"):
        LABNet(2)(torch.zeros(1, 3, 80, 64), torch.zeros(1, 1, 80, 64))
    with pytest.raises(InputError, match="odd"):
        LABNet(7)


def test_weights_are_loaded_whole_or_not_at_all(tmp_path):
    network = LABNet(4, reach=8)
    path = tmp_path / "best_net_G.pth"
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, path)
    other = LABNet(4, reach=8)
    load_weights(other, path)
    # The kernels of the channel attention are loaded, not reset to the Laplacian.
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters()))
    assert channels_of(path) == 4
    with pytest.raises(CheckpointError, match="does not fit LAB-Net with 8 channels"):
        load_weights(LABNet(8), path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no weights of LAB-Net"):
        channels_of(path)


def test_vgg_takes_torchvisions_file(tmp_path):
    from torchvision.models import vgg16

    with torch.device("meta"):
        names = {name: value.shape for name, value in vgg16().state_dict().items()}
    own = {name: value.shape for name, value in VGGFeatures().state_dict().items()}
    assert own.items() <= names.items() and len(own) == 24
    assert not any(p.requires_grad for p in VGGFeatures((2,) * 13).parameters())
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="missing"):
        VGGFeatures.load(tmp_path / "part.pth")
    levels = VGGFeatures((2,) * 13)(torch.rand(1, 3, 32, 48))
    assert [tuple(level.shape[2:]) for level in levels] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert all((level >= 0).all() for level in levels[:4])
