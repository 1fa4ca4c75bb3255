"""The pyramid vision transformer (Wang et al. 2021, version 1), which timm does not have, with the official names."""

from common.errors import InputError

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

EPS = 1e-6  # of blocks and the final norm; patch embeddings and reduced sequences keep torch's 1e-5


class Attention(nn.Module):
    """Attention whose keys and values come from the sequence reduced `reduction` times in each direction."""

    def __init__(self, dim: int, num_heads: int, reduction: int):
        super().__init__()
        self.num_heads, self.scale, self.reduction = num_heads, (dim // num_heads) ** -0.5, reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x: [B, N, D] with N = height * width, or one more (the class token) where nothing is reduced."""
        batch, n, dim = x.shape
        reduced = x
        if self.reduction > 1:
            image = x.transpose(1, 2).reshape(batch, dim, height, width)
            reduced = self.norm(self.sr(image).flatten(2).transpose(1, 2))
        split = lambda t: t.view(batch, t.shape[1], -1, self.num_heads, dim // self.num_heads)
        (q,), (k, v) = split(self.q(x)).permute(2, 0, 3, 1, 4), split(self.kv(reduced)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # [B, h, N, d]
        return self.proj(attended.transpose(1, 2).reshape(batch, n, dim))


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, dim: int, num_heads: int, ratio: float, reduction: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, num_heads, reduction)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * ratio))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, normalised."""

    def __init__(self, channels: int, dim: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """[B, C, H, W] -> tokens [B, N, D] and the grid's height and width."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), *x.shape[2:]


class PVT(nn.Module):
    """Four stages; the class token joins in the last one. The interface is timm's (forward_features, forward_head).

    depths, dims, num_heads, ratios, reductions: one number for each stage. image_size: pixels (height, width) that
    the position embeddings are made for; other sizes have them resized.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        ratios: tuple[float, ...] = (8, 8, 4, 4),
        reductions: tuple[int, ...] = (8, 4, 2, 1),
        *,
        num_classes: int = 1000,
        image_size: tuple[int, int] = (224, 224),
        channels: int = 3,
        patch: int = 4,
        drop_path: float = 0.1,
    ):
        super().__init__()
        self.num_classes, self.num_features, self.depths = num_classes, dims[-1], depths
        self.strides = (patch, 2, 2, 2)
        self.grids, blocks = [], sum(depths)
        rates = [drop_path * i / max(1, blocks - 1) for i in range(blocks)]  # linear in the block's number
        height, width = image_size
        if height % (8 * patch) or width % (8 * patch):
            raise InputError(f"PVT takes images whose sides are multiples of {8 * patch}, not {height} x {width}")
        for i, (depth, dim) in enumerate(zip(depths, dims)):
            height, width = height // self.strides[i], width // self.strides[i]
            self.grids.append((height, width))
            last = i == len(dims) - 1
            embed = PatchEmbed(channels if i == 0 else dims[i - 1], dim, self.strides[i])
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"pos_embed{i + 1}", nn.Parameter(torch.empty(1, height * width + last, dim)))
            stage = [Block(dim, num_heads[i], ratios[i], reductions[i], rates.pop(0)) for _ in range(depth)]
            setattr(self, f"block{i + 1}", nn.ModuleList(stage))
        self.cls_token = nn.Parameter(torch.empty(1, 1, dims[-1]))
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)
        self.head = nn.Linear(dims[-1], num_classes)
        for parameter in (self.cls_token, *(getattr(self, f"pos_embed{i + 1}") for i in range(len(dims)))):
            trunc_normal_(parameter, std=0.02)
        self.apply(_init_linear)

    def no_weight_decay(self) -> set[str]:
        """The class token alone: unlike DeiT's, the position embeddings decay (official code)."""
        return {"cls_token"}

    def position(self, stage: int, height: int, width: int) -> Tensor:
        """The position embedding of a stage (0 ... 3) for its grid, bilinearly resized where the grid is another.

        The official code compares with the first stage's grid; by its own grid a doubled input works as well.
        """
        embed = getattr(self, f"pos_embed{stage + 1}")
        if (height, width) == self.grids[stage]:
            return embed
        first = embed.shape[1] - self.grids[stage][0] * self.grids[stage][1]  # the class token's row, last stage only
        image = embed[:, first:].unflatten(1, self.grids[stage]).permute(0, 3, 1, 2)
        resized = F.interpolate(image, (height, width), mode="bilinear").flatten(2).transpose(1, 2)
        return torch.cat([embed[:, :first], resized], 1)

    def before_last(self, images: Tensor) -> tuple[Tensor, int, int]:
        """The tokens [B, 1 + N, D] that enter the very last block, and the grid's height and width."""
        if images.shape[2] % (8 * self.strides[0]) or images.shape[3] % (8 * self.strides[0]):
            multiple, size = 8 * self.strides[0], " x ".join(map(str, images.shape[2:]))
            raise InputError(f"PVT takes images whose sides are multiples of {multiple}, not {size}")
        x = images
        for i, depth in enumerate(self.depths):
            last = i == len(self.depths) - 1
            x, height, width = getattr(self, f"patch_embed{i + 1}")(x)
            if last:
                x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            x = x + self.position(i, height, width)
            for block in getattr(self, f"block{i + 1}")[: depth - last]:
                x = block(x, height, width)
            if not last:
                x = x.transpose(1, 2).unflatten(2, (height, width))
        return x, height, width

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens [B, 1 + N, D], the class token first; images [B, C, H, W] with sides divisible by 32."""
        x, height, width = self.before_last(images)
        final = getattr(self, f"block{len(self.depths)}")[-1]
        return self.norm(final(x, height, width))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Class logits [B, K] of the class token."""
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
