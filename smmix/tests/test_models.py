"""The networks against the tables of section 3: counts, names, initialisation, sizes, and what they refuse."""

import re

from common import cost
from common.errors import InputError

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from smmix.models import ALIASES, DEPTHS, PVT, SMALL, build
from smmix.models.pvt import Attention

# Parameters with and without the token head, and multiply-adds in millions, at 224 x 224 and 1,000 classes.
TABLE = {
    "vit_deit_tiny_patch16_224": (5_910_416, 5_717_416, 1253.68),
    "vit_deit_small_patch16_224": (22_435_664, 22_050_664, 4598.88),
    "vit_deit_base_patch16_224": (87_336_656, 86_567_656, 17563.83),
    "pvt_tiny": (13_742_288, 13_229_288, 1932.91),
    "pvt_small": (24_998_864, 24_485_864, 3815.70),
    "pvt_medium": (44_721_104, 44_208_104, 6659.18),
    "pvt_large": (61_882_320, 61_369_320, 9813.77),
    "cait_xxs24_224": (12_149_264, 11_956_264, 2523.48),
    "cait_xxs36_224": (17_492_720, 17_299_720, 3755.70),
}
OTHERS = {
    "pvt_v2_b0": (3_666_760, 566),
    "pvt_v2_b1": (14_009_000, 2108),
    "pvt_v2_b2": (25_362_856, 4027),
    "swin_tiny_patch4_window7_224": (28_288_354, 4491),
}
PARAMETER = r"\.(weight|bias)"
BLOCK = rf"(norm1|norm2|attn\.(qkv|proj)|mlp\.fc[12]){PARAMETER}"
REST = rf"cls_token|pos_embed|(patch_embed\.proj|norm|head|token_head){PARAMETER}"
KEYS = {
    "deit": rf"blocks\.\d+\.{BLOCK}|{REST}",
    "cait": rf"blocks\.\d+\.({BLOCK}|gamma_[12]|attn\.proj_[lw]{PARAMETER})|{REST}"
    rf"|blocks_token_only\.[01]\.((norm[12]|attn\.(q|k|v|proj)|mlp\.fc[12]){PARAMETER}|gamma_[12])",
    "pvt": rf"(patch_embed[1-4]\.(proj|norm)|norm|head|token_head){PARAMETER}|pos_embed[1-4]|cls_token"
    rf"|block[1-4]\.\d+\.(norm[12]|attn\.(q|kv|proj)|mlp\.fc[12]){PARAMETER}|block[1-3]\.\d+\.attn\.(sr|norm){PARAMETER}",
}


def meta(name: str, classes: int = 1000, **options) -> nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return build(name, classes, **options)


def require_official_names(network: nn.Module) -> None:
    state = network.state_dict()
    pattern = re.compile(KEYS[{"v": "deit", "d": "deit", "c": "cait", "p": "pvt"}[network.architecture[0]]])
    assert [key for key in state if not pattern.fullmatch(key)] == []
    assert {"token_head.weight", "token_head.bias", "head.weight", "cls_token"} <= state.keys()
    assert all(value.is_meta for value in state.values())


@pytest.mark.parametrize("name", TABLE)
def test_parameters_macs_and_names_are_the_official_ones(name):
    network = meta(name)
    total, without, macs = TABLE[name]
    assert cost.parameters(network).total == total
    assert total - cost.parameters(network.token_head).total == without
    with torch.device("meta"):
        assert round(cost.macs(network, torch.zeros(1, 3, 224, 224)) / 1e6, 2) == macs
    require_official_names(network)


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_of_timm_come_with_a_token_head(name):
    network = meta(name)
    parameters, macs = OTHERS[name]
    assert cost.parameters(network).total - cost.parameters(network.token_head).total == parameters
    with torch.device("meta"):
        assert round(cost.macs(network, torch.zeros(1, 3, 224, 224)) / 1e6) == macs


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_have_the_names_of_deit(name):
    require_official_names(meta(name))


def test_short_names_are_the_release_s_networks():
    assert meta("deit_tiny").architecture == meta("vit_deit_tiny_patch16_224").architecture == ALIASES["deit_tiny"]
    assert all(timm.is_model(name) for name in ALIASES.values())
    assert set(DEPTHS) >= {"pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"}


def test_initialisation_is_the_official_one():
    torch.manual_seed(0)
    for name in ("vit_cifar", "pvt_tiny"):
        network = build(name, 1000, image_size=32)
        for key, parameter in network.named_parameters():
            if parameter.ndim == 4:
                bound = parameter[0].numel() ** -0.5  # torch's own initialisation of convolutions
                assert 0.9 * bound < parameter.abs().max() <= bound, key
            elif key.startswith(("cls_token", "pos_embed")) or parameter.ndim == 2:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.25 if parameter.numel() < 1e4 else 0.03), key
                assert parameter.abs().max() < 0.12, key
            elif "norm" in key and key.endswith("weight"):
                assert (parameter == 1).all(), key
            elif not key.endswith(("proj.bias", "sr.bias")) or ".attn.proj." in key:
                assert not parameter.any(), key
        assert not torch.equal(network.head.weight, network.token_head.weight)


def test_epsilons_of_pvt_are_the_official_ones():
    for key, module in meta("pvt_small").named_modules():
        if isinstance(module, nn.LayerNorm):
            inner = key.startswith("patch_embed") or key.endswith("attn.norm")
            assert module.eps == (1e-5 if inner else 1e-6), key


@pytest.mark.parametrize("name, blocks", [("deit_tiny", 12), ("pvt_small", 16), ("cait_xxs24", 24), ("vit_canvas", 3)])
def test_stochastic_depth_grows_linearly_except_in_cait(name, blocks):
    # Of the two paths of a block DeiT has a module each, PVT one for both.
    network = meta(name, 10, drop_path=0.3)
    rates = [m.drop_prob for key, m in network.named_modules() if isinstance(m, DropPath) and not key.endswith("path2")]
    if name == "cait_xxs24":
        assert rates[:blocks] == [0.3] * blocks
    else:
        assert rates == pytest.approx([0.3 * i / (blocks - 1) for i in range(1, blocks)])
    assert not any(isinstance(m, DropPath) for m in meta(name, 10, drop_path=0.0).modules())


def test_position_embeddings_of_pvt_decay_and_those_of_deit_do_not():
    assert meta("pvt_tiny").no_weight_decay() == {"cls_token"}
    assert {"cls_token", "pos_embed"} <= meta("deit_tiny").no_weight_decay()
    assert meta("cait_xxs24").no_weight_decay() == {"cls_token", "pos_embed"}


@pytest.mark.parametrize("name", ["vit_canvas", "vit_cifar", "pvt_tiny"])
def test_gradients_reach_every_parameter_but_the_token_head(name):
    torch.manual_seed(0)
    network = build(name, 10, image_size=32)
    images = torch.randn(2, 1 if name == "vit_canvas" else 3, 32, 32)
    network(images).square().sum().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ["token_head.weight", "token_head.bias"]


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 64), (96, 32), (64, 64)])
def test_rectangular_images(size):
    for name in ("vit_cifar", "pvt_tiny"):
        network = build(name, 7, image_size=size).eval()
        features = network.forward_features(torch.randn(2, 3, *size))
        patch = 4 if name == "vit_cifar" else 32
        assert features.shape[1] == 1 + size[0] // patch * (size[1] // patch)
        assert network.forward_head(features).shape == (2, 7)


@torch.no_grad()
def test_pvt_takes_other_sizes_than_it_was_made_for():
    torch.manual_seed(0)
    network = build("pvt_tiny", 7, image_size=64).eval()
    for size in ((64, 64), (128, 128), (64, 96), (32, 32)):  # at twice the size the official code crashes
        assert network(torch.randn(1, 3, *size)).isfinite().all()
    for stage in range(4):
        assert network.position(stage, *network.grids[stage]) is getattr(network, f"pos_embed{stage + 1}")
    resized = network.position(3, 4, 4)
    assert resized.shape == (1, 17, 512) and torch.equal(resized[:, :1], network.pos_embed4[:, :1])
    image = network.pos_embed4[0, 1:].view(2, 2, 512)
    torch.testing.assert_close(resized[0, 1:].view(4, 4, 512)[0, 0], image[0, 0])  # corners stay with bilinear ×2
    between = 0.75 * image[0, 0] + 0.25 * image[0, 1]
    torch.testing.assert_close(resized[0, 1:].view(4, 4, 512)[0, 1], between)


@torch.no_grad()
def test_reduced_attention_is_softmax_over_the_reduced_keys():
    torch.manual_seed(0)
    layer = Attention(16, 2, 2).double()
    x = torch.randn(3, 4 * 6, 16, dtype=torch.float64)
    keys = layer.norm(layer.sr(x.transpose(1, 2).reshape(3, 16, 4, 6)).flatten(2).transpose(1, 2))  # [3, 6, 16]
    k, v = layer.kv(keys).chunk(2, 2)
    heads = []
    for h in (slice(0, 8), slice(8, 16)):
        weights = (layer.q(x)[..., h] @ k[..., h].transpose(1, 2) / 8**0.5).softmax(2)
        heads.append(weights @ v[..., h])
    torch.testing.assert_close(layer(x, 4, 6), layer.proj(torch.cat(heads, 2)))


@torch.no_grad()
def test_the_pieces_of_pvt_are_its_forward():
    network = build("pvt_tiny", 7, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    x, height, width = network.before_last(images)
    tokens = network.norm(network.block4[-1](x, height, width))
    assert torch.equal(tokens, network.forward_features(images))
    assert torch.equal(network.forward_head(tokens), network(images)) and (height, width) == (1, 1)


@torch.no_grad()
def test_networks_of_timm_that_take_any_size_are_built_without_one():
    network = build("pvt_v2_b0", 4, image_size=64)
    assert network.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 256, 2, 2)
    assert meta("swin_tiny_patch4_window7_224", 4, image_size=112).patch_embed.img_size == (112, 112)


def test_channels_and_classes():
    assert build("vit_canvas", 10)(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    assert build("vit_canvas", 4, channels=3)(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert PVT((1, 1, 1, 1), channels=2, num_classes=3, image_size=(32, 32))(torch.randn(1, 2, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("pvt_smal", {}, "pvt_smal.*did you mean pvt_small"),
        ("deit_tinny_patch16_224", {}, "did you mean deit_tiny_patch16_224"),
        ("deit_tiny", {"classes": 0}, "0 classes"),
        ("deit_tiny", {"image_size": 100}, "100 x 100 do not split into patches of 16 x 16"),
        ("vgg11", {}, "vgg11 cannot be built with.*drop_path_rate"),
        ("pvt_tiny", {"image_size": 48}, "multiples of 32, not 48 x 48"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        meta(name, **{"classes": 10, **options})


def test_pvt_refuses_images_that_do_not_split():
    with pytest.raises(InputError, match="multiples of 32, not 40 x 64"):
        build("pvt_tiny", 3, image_size=64)(torch.zeros(1, 3, 40, 64))
