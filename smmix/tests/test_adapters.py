"""One protocol for all families: scores and logits equal what a network with explicit attention gives."""

from common.errors import InputError

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smmix import models
from smmix.adapters import adapt
from smmix.models import PVT

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}


def with_token_head(network: nn.Module) -> nn.Module:
    network.token_head = nn.Linear(network.num_features, 5)
    return network.eval()


def make(name: str) -> nn.Module:
    """A tiny network of each family on 32 x 32 images (Swin and PVT: 64 x 64)."""
    if name == "vit":
        return VisionTransformer(**SMALL)
    if name == "vit with scales and norms":
        return VisionTransformer(**SMALL, init_values=0.5, qk_norm=True)
    if name == "registers":
        return VisionTransformer(**SMALL, reg_tokens=3)
    if name == "average pool":
        return VisionTransformer(**SMALL, class_token=False, global_pool="avg")
    if name == "distilled":
        from timm.models.deit import VisionTransformerDistilled

        return VisionTransformerDistilled(**SMALL)
    if name == "pvt":
        return PVT((1, 1, 1, 2), (8, 16, 24, 32), (1, 2, 3, 4), (2,) * 4, image_size=(64, 64), num_classes=5)
    if name == "cait":
        return timm.models.cait.Cait(**SMALL, depth_token_only=2)
    if name == "pvt_v2":
        return timm.models.pvt_v2.PyramidVisionTransformerV2(
            depths=(1, 1, 1, 2), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), num_classes=5
        )
    options = {"img_size": 128, "patch_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
    return SwinTransformer(**options, window_size=4, num_classes=5)


FAMILIES = [
    *("vit", "vit with scales and norms", "registers", "average pool", "distilled"),
    *("pvt", "cait", "pvt_v2", "swin"),
]


def images_for(network: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    side = {PVT: 64, SwinTransformer: 128}.get(type(network), 32)
    side = 64 if isinstance(network, timm.models.pvt_v2.PyramidVisionTransformerV2) else side
    return torch.randn(4, 3, side, side)


def seeded(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = with_token_head(make(name))
    for parameter in network.parameters():  # sharper attention than a fresh initialisation's
        nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else nn.init.normal_(parameter, 0.5, 0.2)
    return network


@pytest.mark.parametrize("name", FAMILIES)
def test_protocol(name):
    network = seeded(name)
    images = images_for(network)
    adapter = adapt(network)
    logits, tokens, scores = adapter(images)
    assert torch.equal(logits, network(images))
    assert tokens.shape == (*scores.shape, network.num_features) and not scores.requires_grad
    grid = round(scores.shape[1] ** 0.5)
    assert grid**2 == scores.shape[1]
    (logits.sum() + network.token_head(tokens.mean(1)).sum()).backward()
    looked_logits, looked = adapter.look(images)
    torch.testing.assert_close(looked_logits, logits.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(looked, scores, rtol=1e-5, atol=1e-7)
    assert not looked_logits.requires_grad
    hooks = [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]
    assert not hooks, "the network is left as it was"


@pytest.mark.parametrize("name", ["vit", "registers", "average pool", "distilled", "pvt_v2", "pvt"])
def test_scores_are_the_column_mean_of_the_attention_that_the_block_uses(name, monkeypatch):
    """The last attention's own softmax, taken out of torch's fused operator, is the reference."""
    network = seeded(name)
    seen = []
    fused = F.scaled_dot_product_attention

    def spy(q, k, v, **options):
        seen.append((q.double() @ k.double().transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1))
        return fused(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    images = images_for(network)
    with torch.no_grad():
        network(images)
    monkeypatch.undo()
    p = network.num_prefix_tokens if hasattr(network, "num_prefix_tokens") else 0
    reference = seen[-1][:, :, p:, p:].mean((1, 2))
    torch.testing.assert_close(adapt(network).look(images)[1].double(), reference, rtol=1e-5, atol=0)
    if p:
        row = seen[-1][:, :, 0, p:].mean(1)
        torch.testing.assert_close(adapt(network, score="class_row").look(images)[1].double(), row, rtol=1e-5, atol=0)
    if name != "pvt_v2":
        last = torch.stack([one[:, :, p:, p:].mean((1, 2)) for one in seen[-2:]]).mean(0)
        torch.testing.assert_close(adapt(network, layers=2).look(images)[1].double(), last, rtol=1e-5, atol=0)
    if name == "vit":
        steps = [(one.mean(1) + torch.eye(17)) / 2 for one in seen]
        rolled = (steps[1] @ steps[0])[:, 0, 1:]
        torch.testing.assert_close(adapt(network, score="rollout").look(images)[1].double(), rolled, rtol=1e-5, atol=0)


def test_the_shortcut_leaves_out_most_of_the_last_block():
    from torch.utils.flop_counter import FlopCounterMode

    network = seeded("vit")
    images = images_for(network)
    short, full = adapt(network), adapt(network)
    assert short.shortcut
    full.shortcut = False
    counts = []
    for adapter in (short, full):
        with FlopCounterMode(display=False) as counter:
            adapter.look(images)
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.85 * counts[1]


def test_swin_scatters_shifted_windows_back():
    """A query attends to its window alone, so the scores of each window's tokens have the same sum."""
    network = seeded("swin")
    images = images_for(network)  # 32 x 32 tokens, then 16 x 16 in windows of 4, shifted by 2 in the last block
    block = network.layers[-1].blocks[-1]
    assert tuple(block.shift_size) == (2, 2)
    scores = adapt(network).look(images)[1].view(4, 16, 16)
    shifted = scores.roll((-2, -2), (1, 2)).unflatten(2, (4, 4)).unflatten(1, (4, 4)).sum((2, 4))
    torch.testing.assert_close(shifted, torch.full_like(shifted, 1 / 16))
    plain = scores.unflatten(2, (4, 4)).unflatten(1, (4, 4)).sum((2, 4))
    assert (plain - 1 / 16).abs().max() > 1e-3


def test_look_restores_every_mode():
    network = seeded("vit").train()
    network.blocks[0].eval()
    before = [module.training for module in network.modules()]
    adapt(network).look(images_for(network))
    assert [module.training for module in network.modules()] == before


def test_look_is_in_evaluation_mode():
    torch.manual_seed(0)
    network = with_token_head(VisionTransformer(**SMALL, drop_path_rate=0.9))
    images = images_for(network)
    expected = network(images).detach()
    torch.testing.assert_close(adapt(network.train()).look(images)[0], expected, rtol=1e-5, atol=1e-5)


def test_look_restores_the_block_after_an_error():
    network = seeded("vit")
    with pytest.raises(AssertionError):
        adapt(network).look(torch.zeros(2, 3, 40, 40))
    assert "forward" not in vars(network.blocks[-1])


def test_mixed_precision_gradients_reach_every_weight_after_a_look():
    """Weights that autocast has cast without gradient must not be used again for the training pass."""
    network = seeded("vit").train()
    images = images_for(network)
    adapter = adapt(network)
    with torch.autocast("cpu", torch.bfloat16):
        adapter.look(images)
    with torch.autocast("cpu", torch.bfloat16):
        logits, tokens = adapter.run(images)
        loss = logits.float().square().sum() + network.token_head(tokens.mean(1)).float().sum()
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18", {}, "no blocks of softmax self-attention"),
        ("mixer_s32_224", {}, "no blocks of softmax self-attention"),
        ("vit", {"score": "class_rows"}, "did you mean class_row"),
        ("vit", {"score": "mixed_heads"}, "talking heads"),
        ("vit", {"layers": 3}, "scores of 3 blocks"),
        ("average pool", {"score": "class_row"}, "needs a class token"),
        ("swin", {"score": "rollout"}, "same tokens in all blocks"),
    ],
)
def test_networks_and_scores_that_cannot_be_used(name, options, words):
    network = make(name) if name in FAMILIES else timm.create_model(name, num_classes=5)
    with pytest.raises(InputError, match=words):
        adapt(network, **options)


def test_keys_that_are_no_tokens():
    """PVTv2's linear attention pools its keys to 7 x 7 whatever the grid is."""
    network = timm.models.pvt_v2.PyramidVisionTransformerV2(
        depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), num_classes=5, linear=True
    )
    with pytest.raises(InputError, match="attends to 49 places"):
        adapt(with_token_head(network)).look(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "pvt_tiny", "cait_xxs24_224"])
def test_rectangular_images(name):
    """Grids follow the image: 4 x 8 tokens of 16 pixels, 2 x 4 of 32."""
    network = models.build(name, 5, image_size=(64, 128)).eval()
    images = torch.randn(2, 3, 64, 128)
    logits, scores = adapt(network).look(images)
    assert scores.shape[1] == (8 if name.startswith("pvt") else 32)
    torch.testing.assert_close(logits, network(images), rtol=1e-4, atol=1e-4)
