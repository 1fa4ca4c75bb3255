"""One protocol for networks of tokens: class logits, output tokens, attention scores (sections 2.2 and 3.4).

Attention is only ever computed in the blocks whose scores are asked for, from what their projections give; every block
keeps its fused attention.
"""

import contextlib
from collections.abc import Callable, Iterator

from common.config import nearest
from common.errors import InputError

import torch
from timm.layers import Attention
from timm.models import cait, pvt_v2, swin_transformer, vision_transformer
from torch import Tensor, nn

from smmix.method import class_attention, image_attention
from smmix.models import pvt

SOURCES = ("image_queries", "class_row", "rollout", "mixed_heads")


def adapt(network: nn.Module, *, score: str = "image_queries", layers: int = 1) -> "Adapter":
    """The adapter of a network. Errors: InputError if it has no attention or no tokens that could be used.

    score: `image_queries` (the paper's), `class_row`, `rollout` over all blocks, or `mixed_heads` (CaiT, after the
    talking heads' second mixing). layers: the last so many blocks are averaged (not for `rollout`).
    """
    return Adapter(network, score, layers)


class Adapter:
    """A network with `forward_features`, `forward_head` and blocks of self-attention, seen through the protocol."""

    def __init__(self, network: nn.Module, score: str, layers: int):
        self.network, self.score = network, score
        self.prefix = getattr(network, "num_prefix_tokens", 0)
        blocks = _blocks(network)
        if score == "class_row" and isinstance(network, cait.Cait):
            blocks = list(network.blocks_token_only)
        layers = len(blocks) if score == "rollout" else layers
        if not 1 <= layers <= len(blocks):
            raise InputError(f"scores of {layers} blocks were asked for, the network's last stage has {len(blocks)}")
        self.blocks = blocks[-layers:]
        self._require_score()
        # In CaiT patch tokens pass all blocks before the class token sees them, so none of them may be left out.
        self.shortcut = (
            layers == 1
            and self.prefix > 0
            and not isinstance(network, cait.Cait)
            and getattr(network, "global_pool", "token") == "token"
            and _plain(self.blocks[-1])
        )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, K], tokens [B, N, D] and scores [B, N] of one forward; gradients reach logits and tokens."""
        with self._watching() as seen:
            logits, tokens = self.run(images)
        return logits, tokens, self._scores(seen, tokens.shape[1])

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and output tokens [B, N, D] after the final norm."""
        features = self.network.forward_features(images)
        return self.network.forward_head(features), self._tokens(features)

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The un-mixed pass: logits [B, K] and scores [B, N] in evaluation mode, without gradient.

        Each module's mode is restored. Where the class token alone makes the logits, the last block computes its row
        only: scores and logits are the same, most of a block is saved.
        """
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            if self.shortcut:
                return self._look_short(images)
            logits, _, scores = self(images)
            return logits, scores
        finally:
            for module, training in modes:
                module.training = training

    def _look_short(self, images: Tensor) -> tuple[Tensor, Tensor]:
        block, seen = self.blocks[-1], {}

        def class_row_only(x: Tensor, *_args) -> Tensor:
            """The block's output for the tokens before the image's [B, prefix, D]."""
            scale = [getattr(block, name, nn.Identity()) for name in ("ls1", "ls2")]
            q, k, v = _query_key_value(block.attn, block.norm1(x))
            attention = ((q * block.attn.scale) @ k.transpose(-2, -1)).softmax(-1, dtype=torch.float32)
            seen["scores"] = self._reduce(attention)
            rows = attention[:, :, : self.prefix].to(v.dtype) @ v  # [B, h, prefix, d]
            x = x[:, : self.prefix] + scale[0](block.attn.proj(rows.transpose(1, 2).flatten(2)))
            return x + scale[1](block.mlp(block.norm2(x)))

        block.forward = class_row_only
        try:
            logits = self.network(images)
        finally:
            del block.forward
        return logits, seen["scores"]

    def _tokens(self, features: Tensor) -> Tensor:
        if features.ndim == 4:
            last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            tokens = features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
        else:
            tokens = features[:, self.prefix :]
        return getattr(self.network, "fc_norm", nn.Identity())(tokens)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[list[dict]]:
        """Record what the blocks' attention layers project and are given, for the time of one forward."""
        seen: list[dict] = [{} for _ in self.blocks]
        hooks = []
        for block, record in zip(self.blocks, seen):
            for name in ("qkv", "q", "k", "kv"):
                layer = getattr(block.attn, name, None)
                if isinstance(layer, nn.Linear):
                    hooks.append(layer.register_forward_hook(_keeper(record, name)))
            hooks.append(block.attn.register_forward_pre_hook(_mask_keeper(record), with_kwargs=True))
            hooks.append(block.register_forward_pre_hook(_shape_keeper(record)))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _scores(self, seen: list[dict], tokens: int) -> Tensor:
        """Scores [B, N] from the records; they are detached."""
        maps = [_attention(block, record, self.score) for block, record in zip(self.blocks, seen)]
        if self.score == "rollout":
            return self._rollout(maps, tokens)
        scores = [self._reduce(one) for one in maps]
        if isinstance(self.blocks[-1].attn, swin_transformer.WindowAttention):
            scores = [_unwindow(*parts) for parts in zip(self.blocks, seen, scores)]
        scores = torch.stack(scores).mean(0)
        if scores.shape[1] != tokens:
            raise InputError(
                f"{type(self.network).__name__} attends to {scores.shape[1]} places in its last block, but gives "
                f"{tokens} tokens; give a network whose last keys are its output tokens"
            )
        return scores

    def _reduce(self, attention: Tensor) -> Tensor:
        """[B, h, queries, keys] -> [B, N]; in CaiT the class token is no part of the self-attention."""
        if self.score == "class_row":
            return class_attention(attention, self.prefix)
        return image_attention(attention, 0 if isinstance(self.network, cait.Cait) else self.prefix)

    def _rollout(self, maps: list[Tensor], tokens: int) -> Tensor:
        """Attention rollout (Abnar and Zuidema 2020): the product of (A + 1)/2 over blocks, heads averaged.

        The class token's row where it has one, otherwise the mean row.
        """
        product = torch.eye(maps[0].shape[2], device=maps[0].device)
        for one in maps:
            product = (one.mean(1) + torch.eye(one.shape[2], device=one.device)) / 2 @ product
        prefix = product.shape[1] - tokens
        return product[:, 0, prefix:] if prefix else product.mean(1)

    def _require_score(self) -> None:
        name, attention = type(self.network).__name__, self.blocks[-1].attn
        if self.score not in SOURCES:
            raise InputError(f"score {self.score} is not one of {', '.join(SOURCES)}{nearest(self.score, SOURCES)}")
        if self.score == "mixed_heads" and not isinstance(attention, cait.TalkingHeadAttn):
            raise InputError(f"score mixed_heads is of talking heads, which {name} has not; use image_queries")
        if self.score == "class_row" and not self.prefix:
            raise InputError(f"score class_row needs a class token, which {name} has not; use image_queries")
        if self.score == "rollout" and not isinstance(attention, Attention | cait.TalkingHeadAttn):
            raise InputError(f"score rollout needs the same tokens in all blocks, which {name} has not")


KNOWN = (Attention, pvt.Attention, pvt_v2.Attention, swin_transformer.WindowAttention, cait.TalkingHeadAttn)
"""attention that is exactly the softmax of query and key which `_attention` computes; a subclass may differ"""


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of self-attention of the last stage. Errors: InputError where there are none of a known kind."""
    found: list[nn.Module] = []
    if isinstance(network, pvt.PVT):
        found = list(network.block4)
    elif isinstance(getattr(network, "blocks", None), nn.Sequential | nn.ModuleList):  # ViT, DeiT, CaiT
        found = list(network.blocks)
    else:
        stages = getattr(network, "stages", None) or getattr(network, "layers", None) or [None]  # PVTv2; Swin
        found = list(getattr(list(stages)[-1], "blocks", []))
    if not found or not all(type(getattr(block, "attn", None)) in KNOWN for block in found):
        raise InputError(
            f"{type(network).__name__} has no blocks of softmax self-attention over tokens that are known here; give a "
            "ViT or DeiT, CaiT, PVT, PVTv2 or Swin"
        )
    return found


def _plain(block: nn.Module) -> bool:
    """Whether the block is x + attn(norm1(x)), then x + mlp(norm2(x)), without gates or norms inside the attention."""
    attention = block.attn
    bare = attention.gate is None and isinstance(attention.norm, nn.Identity) if type(attention) is Attention else True
    return bare and type(block) in (vision_transformer.Block, pvt.Block)


def _keeper(record: dict, name: str) -> Callable:
    return lambda _module, _inputs, output: record.__setitem__(name, output.detach())


def _mask_keeper(record: dict) -> Callable:
    """Swin hands its attention the mask between shifted windows."""
    return lambda _module, _inputs, named: record.__setitem__("mask", named.get("mask"))


def _shape_keeper(record: dict) -> Callable:
    return lambda _module, inputs: record.__setitem__("shape", inputs[0].shape)


def _split(attention: nn.Module, x: Tensor) -> Tensor:
    """[B, N, h·d] -> [B, h, N, d]."""
    return x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _normed(attention: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key after the norms that some vision transformers have."""
    return (attention.q_norm(q), attention.k_norm(k)) if isinstance(attention, Attention) else (q, k)


def _query_key_value(attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, D] -> q, k, v, each [B, h, N, d]."""
    joint = isinstance(attention, Attention)
    parts = attention.qkv(x).chunk(3, 2) if joint else (attention.q(x), *attention.kv(x).chunk(2, 2))
    q, k, v = (_split(attention, part) for part in parts)
    return *_normed(attention, q, k), v


def _attention(block: nn.Module, record: dict, score: str) -> Tensor:
    """The block's attention [B, h, queries, keys] in float32 from what its projections gave."""
    attention = block.attn
    if "qkv" in record:
        q, k = record["qkv"].chunk(3, 2)[:2]
    elif "kv" in record:
        q, k = record["q"], record["kv"].chunk(2, 2)[0]
    else:  # class attention: the only query is the class token
        q, k = record["q"].unsqueeze(1), record["k"]
    q, k = _normed(attention, _split(attention, q), _split(attention, k))
    logits = (q * attention.scale) @ k.transpose(-2, -1)
    if isinstance(attention, cait.TalkingHeadAttn):
        logits = attention.proj_l(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if isinstance(attention, swin_transformer.WindowAttention):
        logits = logits + attention._get_rel_pos_bias()
        if record["mask"] is not None:
            mask = record["mask"][:, None]  # [windows, 1, n, n]
            logits = (logits.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
    weights = logits.softmax(-1, dtype=torch.float32)
    if score == "mixed_heads":
        weights = attention.proj_w(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).float()
    return weights


def _unwindow(block: nn.Module, record: dict, scores: Tensor) -> Tensor:
    """Scores of windows [B·windows, n] back on the grid of tokens [B, N], padding and shift undone as in the block."""
    batch, height, width, _ = record["shape"]
    h, w = block.window_size
    padded = -(-height // h) * h, -(-width // w) * w
    grid = swin_transformer.window_reverse(scores.view(-1, h, w, 1), (h, w), *padded)[:, :height, :width, 0]
    windows = (padded[0] // h) * (padded[1] // w)
    return grid.roll(tuple(block.shift_size), (1, 2)).reshape(batch, height * width) / windows
