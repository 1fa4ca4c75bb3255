"""What full_models and the narrow networks' files hold: networks, their scores, and a whole SMMix step."""

import random
import re
import zlib

import numpy as np
import torch
from timm.models.cait import Cait
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smmix.adapters import adapt
from smmix.method import SMMix, pool_regions, region_sizes, smooth_labels
from smmix.models import PVT, TokenHead, build

HEAD_WIDTH = 8  # of the narrow networks
NARROW, FULL, SCORES, LOSS, LABELS = 2e-5, 2e-4, 1e-4, 1e-5, 1e-6
GRADIENTS, GRADIENTS_ABSOLUTE = 1e-4, 1e-6
STEP = {
    *("in_x", "in_y", "out_logits", "out_attn", "hp_seed", "hp_side", "hp_num_classes", "hp_smoothing", "out_rect"),
    *("out_mixed_x", "out_mixed_target", "out_target_mask", "out_source_mask", "out_mixed_logits"),
    *("out_class_result", "out_target_result", "out_source_result"),
    *("out_loss_cls", "out_loss_fine", "out_loss_con", "out_loss_total"),
}
CAIT = {
    *("in_x", "in_source_mask", "out_tokens", "out_logits", "out_target_result", "out_source_result"),
    *("out_attn_sa_softmax_mean", "out_attn_sa_after_proj_w_mean", "out_attn_class_attention_mean"),
    *("hp_heads", "hp_depth", "hp_patch_size", "hp_side"),
}
OUTPUTS = (
    *("out_logits_{}", "out_attn_{}", "out_source_mask_{}", "out_class_{}", "out_target_{}", "out_source_{}"),
    *("hp_rect_{}", "hp_n_params_{}"),
)


def close(found: torch.Tensor, expected: np.ndarray, what: str, absolute: float = 0, relative: float = 0) -> None:
    """The greatest error is at most `absolute` or `relative` of the greatest reference value, whichever is more."""
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape, f"{what}: shape {[*found.shape]} for {[*expected.shape]}"
    error = (found.detach().double() - expected.double()).abs().max().item()
    limit = max(absolute, relative * expected.double().abs().max().item())
    assert error <= limit, f"{what}: off by {error:.1e}, allowed are {limit:.1e}"


def same(found: torch.Tensor, expected: np.ndarray, what: str) -> None:
    """Equal in every element; booleans are stored as uint8."""
    assert np.array_equal(found.detach().numpy(), expected.astype(found.detach().numpy().dtype)), what


def parameters_of(arrays: dict[str, np.ndarray], expected: set[str], gradients: bool) -> dict[str, torch.Tensor]:
    """The state dict of a file, after making sure that every key of the file is read by a check."""
    state = {key[6:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("param_")}
    read = expected | {f"param_{key}" for key in state} | {f"grad_{key}" for key in state if gradients}
    assert arrays.keys() == read, f"keys missing or read by no check: {sorted(arrays.keys() ^ read)}"
    return state


def count(state: dict[str, torch.Tensor], pattern: str) -> int:
    """How many different numbers the pattern's group takes among the keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def with_weights(network: nn.Module, classes: int, state: dict[str, torch.Tensor]) -> nn.Module:
    network.token_head = TokenHead(network.num_features, classes)
    network.load_state_dict(state)
    return network


def transformer_shape(state: dict[str, torch.Tensor], x: np.ndarray) -> dict:
    """Options of a DeiT or CaiT that has these parameters and takes these images."""
    dim = state["cls_token"].shape[2]
    return {
        "img_size": x.shape[2:],
        "patch_size": state["patch_embed.proj.weight"].shape[2],
        "in_chans": x.shape[1],
        "num_classes": len(state["head.bias"]),
        "embed_dim": dim,
        "depth": count(state, r"blocks\.(\d+)\."),
        "num_heads": dim // HEAD_WIDTH,
        # Half a unit more, since the networks round dim * ratio down.
        "mlp_ratio": (len(state["blocks.0.mlp.fc1.bias"]) + 0.5) / dim,
    }


def check_deit_narrow(arrays: dict[str, np.ndarray]) -> None:
    state = parameters_of(arrays, STEP, gradients=True)
    shape = transformer_shape(state, arrays["in_x"])
    check_step(with_weights(VisionTransformer(**shape), shape["num_classes"], state), arrays)


def check_pvt_narrow(arrays: dict[str, np.ndarray]) -> None:
    state = parameters_of(arrays, STEP, gradients=True)
    stages = range(1, 5)
    dims = [state[f"patch_embed{i}.proj.bias"].shape[0] for i in stages]
    kernels = [state.get(f"block{i}.0.attn.sr.weight") for i in stages]
    network = PVT(
        tuple(count(state, rf"block{i}\.(\d+)\.") for i in stages),
        dims,
        [dim // HEAD_WIDTH for dim in dims],
        [(len(state[f"block{i}.0.mlp.fc1.bias"]) + 0.5) / dim for i, dim in zip(stages, dims)],
        [1 if kernel is None else kernel.shape[2] for kernel in kernels],
        num_classes=len(state["head.bias"]),
        image_size=arrays["in_x"].shape[2:],
        channels=arrays["in_x"].shape[1],
        patch=state["patch_embed1.proj.weight"].shape[2],
        drop_path=0.0,
    )
    check_step(with_weights(network, network.num_classes, state), arrays)


def check_step(network: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """The un-mixed pass, then one whole step of SMMix and its gradients."""
    images, labels = torch.from_numpy(arrays["in_x"]), torch.from_numpy(arrays["in_y"])
    classes, side, size = (int(arrays[key]) for key in ("hp_num_classes", "hp_side", "out_rect"))
    adapter = adapt(network.eval())
    with torch.no_grad():
        logits, _, scores = adapter(images)
    close(logits, arrays["out_logits"], "logits", absolute=NARROW)
    close(scores, arrays["out_attn"], "scores", relative=SCORES)
    network.train()
    logits, scores = adapter.look(images)
    assert network.training and not logits.requires_grad
    close(logits, arrays["out_logits"], "logits of the un-mixed pass", absolute=NARROW)
    close(scores, arrays["out_attn"], "scores of the un-mixed pass", relative=SCORES)
    assert random.Random(int(arrays["hp_seed"])).choice(region_sizes(side)) == size, "the side that the seed draws"

    mixer = SMMix(classes, switch_prob=1.0, smoothing=float(arrays["hp_smoothing"]))
    smooth = smooth_labels(labels, classes, mixer.smoothing)
    mixed = mixer.apply(images, smooth, logits, scores.unflatten(1, (side, side)), torch.full((len(images),), size))
    same(mixed.images, arrays["out_mixed_x"], "mixed images")
    same(mixed.source, arrays["out_source_mask"], "source mask")
    same(~mixed.source, arrays["out_target_mask"], "target mask")
    close(mixed.target, arrays["out_mixed_target"], "labels", relative=LABELS)
    expected = mixed.area.view(-1, 1) * logits + (1 - mixed.area.view(-1, 1)) * logits.flip(0)
    close(expected, arrays["out_mixed_logits"], "mixed logits", absolute=NARROW)

    result, tokens = adapter.run(mixed.images)
    target, source = network.token_head(pool_regions(tokens, mixed.source)).chunk(2)
    for found, name in ((result, "class"), (target, "target"), (source, "source")):
        close(found, arrays[f"out_{name}_result"], f"{name} result", absolute=NARROW)
    terms = mixer.losses(mixed, result, target, source)
    assert terms.keys() == {"cls", "fine", "con"}
    terms["total"] = sum(terms.values())
    for name, value in terms.items():
        close(value, arrays[f"out_loss_{name}"], f"loss {name}", relative=LOSS)
    terms["total"].backward()
    for name, parameter in network.named_parameters():
        tolerance = {"relative": GRADIENTS, "absolute": GRADIENTS_ABSOLUTE}
        close(parameter.grad, arrays[f"grad_{name}"], f"gradient of {name}", **tolerance)


def check_cait_narrow_peer(arrays: dict[str, np.ndarray]) -> None:
    state = parameters_of(arrays, CAIT, gradients=False)
    shape = transformer_shape(state, arrays["in_x"]) | {"num_heads": int(arrays["hp_heads"])}
    shape["depth_token_only"] = count(state, r"blocks_token_only\.(\d+)\.")
    shape["mlp_ratio_token_only"] = (len(state["blocks_token_only.0.mlp.fc1.bias"]) + 0.5) / shape["embed_dim"]
    assert (shape["depth"], shape["patch_size"]) == (int(arrays["hp_depth"]), int(arrays["hp_patch_size"]))
    network = with_weights(Cait(**shape), shape["num_classes"], state).eval()
    images, source = torch.from_numpy(arrays["in_x"]), torch.from_numpy(arrays["in_source_mask"]).bool()
    assert source.shape[1] == int(arrays["hp_side"]) ** 2
    for score, name in (
        ("image_queries", "sa_softmax_mean"),
        ("mixed_heads", "sa_after_proj_w_mean"),
        ("class_row", "class_attention_mean"),
    ):
        adapter = adapt(network, score=score)
        logits, scores = adapter.look(images)
        close(logits, arrays["out_logits"], f"logits beside {score}", absolute=NARROW)
        close(scores, arrays[f"out_attn_{name}"], f"scores {score}", relative=SCORES)
    with torch.no_grad():
        logits, tokens = adapt(network).run(images)
        target, other = network.token_head(pool_regions(tokens, source)).chunk(2)
        features = network.forward_features(images)
    close(logits, arrays["out_logits"], "logits", absolute=NARROW)
    close(features, arrays["out_tokens"], "class and patch tokens", absolute=NARROW)
    close(tokens, arrays["out_tokens"][:, 1:], "tokens", absolute=NARROW)
    close(target, arrays["out_target_result"], "target result", absolute=NARROW)
    close(other, arrays["out_source_result"], "source result", absolute=NARROW)


def fill(network: nn.Module, tag: str = "") -> nn.Module:
    """Give every parameter the values that the oracle's rule derives from its name."""
    state = network.state_dict()
    for key, value in state.items():
        rng = np.random.default_rng(zlib.crc32((tag + key).encode()))
        z = np.asarray(rng.standard_normal(tuple(value.shape)), dtype=np.float32)
        if key.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            z = 1 + 0.1 * z
        elif z.ndim == 1:
            z = 0.05 * z
        elif z.ndim == 4:
            z = z * np.prod(z.shape[1:]) ** -0.5
        elif key.startswith(("cls_token", "pos_embed")):
            z = 0.2 * z
        else:
            z = z * z.shape[-1] ** -0.5
        value.copy_(torch.from_numpy(z))
    return network


@torch.no_grad()
def check_full_models(arrays: dict[str, np.ndarray]) -> None:
    names = sorted(key[len("out_logits_") :] for key in arrays if key.startswith("out_logits_"))
    read = {"hp_input_seed", "hp_rule_tag", *(key.format(name) for name in names for key in OUTPUTS)}
    assert names and arrays.keys() == read, f"keys missing or read by no check: {sorted(arrays.keys() ^ read)}"
    given = np.random.default_rng(int(arrays["hp_input_seed"])).standard_normal((2, 3, 224, 224))
    images = torch.from_numpy(given.astype(np.float32))
    for name in names:
        expected = {key.format("")[:-1]: arrays[key.format(name)] for key in OUTPUTS}
        classes = expected["out_logits"].shape[1]
        network = fill(build(name, classes), str(arrays["hp_rule_tag"])).eval()
        assert sum(p.numel() for p in network.parameters()) == int(expected["hp_n_params"]), name
        adapter = adapt(network)
        logits, scores = adapter.look(images)
        close(logits, expected["out_logits"], f"{name}: logits", absolute=FULL)
        close(scores, expected["out_attn"], f"{name}: scores", relative=SCORES)
        side = round(scores.shape[1] ** 0.5)
        size = torch.full((2,), int(expected["hp_rect"]))
        mixed = SMMix(classes).apply(images, logits, logits, scores.unflatten(1, (side, side)), size)
        same(mixed.source, expected["out_source_mask"], f"{name}: source mask")
        result, tokens = adapter.run(mixed.images)
        target, source = network.token_head(pool_regions(tokens, mixed.source)).chunk(2)
        for found, key in ((result, "out_class"), (target, "out_target"), (source, "out_source")):
            close(found, expected[key], f"{name}: {key}", absolute=FULL)
