"""The binary layers of the three pipelines: what stands in the place of BERT's linear layers, embedding and attention.

Parameters have the names of the released BiBERT and BiT files (section 8).
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebnn.glue.quantisers import (
    UNTOUCHED,
    binarise_bit,
    boolean,
    elastic_positive,
    elastic_sign,
    first_step,
    k_bit,
    sign_clamped,
    split_ternary,
    ternarise,
)
from rebnn.method import LearnableBias
from rebnn.method.linear import BinaryEmbedding, BinaryLinear

RECIPES = ("bibert", "bit", "binarybert")
CENTRE = {"bibert": "row", "bit": "tensor", "binarybert": "none"}
"""the mean that a pipeline takes from its weights before their signs"""
HIDDEN_MASK = -10000.0
"""what is added to the scores of padding"""


@dataclass(frozen=True)
class Form:
    """How a network becomes binary."""

    recipe: str = "bibert"
    """pipeline, one of RECIPES"""
    binarizer: str = "paper"
    """`paper`, `released`, or `recipe`: the pipeline's own scale, without γ"""
    alpha_init: str = "cam"
    """how learned scales start"""
    bits: int = 8
    """bits of BinaryBERT's activations"""
    qkv_bias: bool = False
    """BiT: binarise Q, K and V with their learned biases, which the release computes and drops"""
    ternary: bool = False
    """BinaryBERT's first stage: ternary weights, of half the width"""


def binary_linear(form: Form, linear: nn.Linear, positive: bool = False) -> nn.Module:
    """The layer that takes a linear layer's place; positive: its input is ≥ 0."""
    sizes = linear.in_features, linear.out_features
    if form.recipe == "bibert":
        return SignLinear(*sizes, **_options(form))
    if form.recipe == "bit":
        return ElasticLinear(*sizes, positive=positive, **_options(form))
    kind = TernaryLinear if form.ternary else SplitLinear
    return kind(*sizes, **({} if form.ternary else _options(form)), bits=form.bits)


def binary_embedding(form: Form, embedding: nn.Embedding) -> nn.Module:
    """What takes the word embedding's place."""
    sizes = embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx
    if form.recipe == "binarybert":
        return TernaryEmbedding(*sizes) if form.ternary else SplitEmbedding(*sizes, **_options(form))
    kind = RowScaleEmbedding if form.recipe == "bit" and form.binarizer == "recipe" else BinaryEmbedding
    return kind(*sizes, **_options(form))


def _options(form: Form) -> dict:
    """Options of the binary weights: the pipelines' own scale is a mean of |w| without a gradient."""
    binarizer = "reactnet" if form.binarizer == "recipe" else form.binarizer
    return {"binarizer": binarizer, "alpha_init": form.alpha_init, "centre": CENTRE[form.recipe]}


# -- BiBERT ----------------------------------------------------------------------------------------------------------


class SignLinear(BinaryLinear):
    """Binary weights on the signs of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(sign_clamped(x))


# -- BiT -------------------------------------------------------------------------------------------------------------


class Steps(nn.Module):
    """Learned step sizes of elastic binarisers, one scalar a site, set from a site's first input."""

    untouched: frozenset[str] = frozenset()
    """sites that have not had an input yet"""

    def add_steps(self, *names: str) -> None:
        """Sites by the names of their parameters."""
        for name in names:
            setattr(self, name, nn.Parameter(torch.tensor(UNTOUCHED)))
        self.untouched = frozenset(names)

    def elastic(self, name: str, x: Tensor, positive: bool = False) -> Tensor:
        """x binarised with the site's step size."""
        step = getattr(self, name)
        if name in self.untouched:
            self.untouched -= {name}
            step.data.copy_(first_step(x, positive))
        return (elastic_positive if positive else elastic_sign)(x, step)


class ElasticLinear(Steps, BinaryLinear):
    """Binary weights on an input that is shifted by learned biases and binarised with a learned step size."""

    def __init__(self, in_features: int, out_features: int, *, positive: bool = False, **options):
        super().__init__(in_features, out_features, **options)
        self.positive = positive
        self.move = FeatureBias(in_features)
        self.add_steps("input_clip_val")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.elastic("input_clip_val", self.move(x), self.positive))

    def binary_weight(self) -> Tensor:
        return binarise_bit(self.weight) if self.binarizer == "reactnet" else super().binary_weight()

    def alpha(self) -> Tensor:
        if self.binarizer == "reactnet":
            return self.weight.detach().abs().mean().expand(len(self.weight), 1)
        return super().alpha()


class RowScaleEmbedding(BinaryEmbedding):
    """BiT's own embedding: a scale for each row, the mean of the whole tensor, gradient G."""

    def binary_weight(self) -> Tensor:
        return binarise_bit(self.weight, per_row=True)


class FeatureBias(LearnableBias):
    """x + β with one learned β a feature, [D], at first 0."""

    def __init__(self, features: int):
        super().__init__(features)
        self.bias = nn.Parameter(torch.zeros(features))


# -- BinaryBERT ------------------------------------------------------------------------------------------------------


class TernaryLinear(nn.Linear):
    """Ternary weights on k-bit inputs."""

    def __init__(self, in_features: int, out_features: int, *, bits: int):
        super().__init__(in_features, out_features)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(k_bit(x, self.bits), ternarise(self.weight), self.bias)


class TernaryEmbedding(nn.Embedding):
    """Ternary rows."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, ternarise(self.weight), self.padding_idx)


class SplitLinear(nn.Module):
    """The sum of two binary layers on one k-bit input, which a ternary layer was split into."""

    def __init__(self, in_features: int, out_features: int, *, bits: int, **options):
        super().__init__()
        self.bits, self.in_features, self.out_features = bits, in_features, out_features
        self.first = BinaryLinear(in_features, out_features, **options)
        self.second = BinaryLinear(in_features, out_features, False, **options)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(k_bit(x, self.bits), self.first.binary_weight() + self.second.binary_weight(), self.first.bias)

    def start_from(self, ternary: TernaryLinear) -> None:
        """Split a ternary layer so that the output stays as it is."""
        self.first.bias.data.copy_(ternary.bias)
        _start_halves(self, ternary.weight)


class SplitEmbedding(nn.Module):
    """The sum of two binary embeddings."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, **options):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        make = partial(BinaryEmbedding, num_embeddings, embedding_dim, padding_idx, **options)
        self.first, self.second = make(), make()

    def forward(self, ids: Tensor) -> Tensor:
        weight = self.first.binary_weight() + self.second.binary_weight()
        return F.embedding(ids, weight, self.first.padding_idx)

    def start_from(self, ternary: TernaryEmbedding) -> None:
        """Split a ternary embedding so that the output stays as it is."""
        _start_halves(self, ternary.weight)


def _start_halves(layer: SplitLinear | SplitEmbedding, weight: Tensor) -> None:
    for half, latent in zip((layer.first, layer.second), split_ternary(weight.detach())):
        half.weight.data.copy_(latent)
        half.reset_scale("cam")


# -- attention -------------------------------------------------------------------------------------------------------


class BinaryAttention(Steps):
    """Queries, keys and values, and how a pipeline mixes them; `query`, `key` and `value` are binary layers.

    inner: the width of all heads together. A released BiT file also has the biases `move_q`, `move_k` and `move_v`.
    """

    def __init__(self, form: Form, real: nn.Module):
        super().__init__()
        self.recipe, self.bits, self.qkv_bias, self.dropout = form.recipe, form.bits, form.qkv_bias, real.dropout.p
        self.query, self.key, self.value = (binary_linear(form, m) for m in (real.query, real.key, real.value))
        if form.recipe == "bit":
            self.add_steps("clip_query", "clip_key", "clip_value", "clip_attn")
            inner = real.query.out_features
            biases = (FeatureBias(inner).requires_grad_(form.qkv_bias) for _ in range(3))
            self.move_q, self.move_k, self.move_v = biases

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Heads [B, heads, L, d] and mask [B, 1, 1, L] (0 or -10000) -> context of the same shape, scores with mask."""
        query, key, value = getattr(self, f"_{self.recipe}_operands")(query, key, value)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask
        drop = partial(F.dropout, p=self.dropout, training=self.training)
        if self.recipe == "bibert":
            return boolean(drop(scores)) @ value, scores
        share = drop(scores.softmax(-1))
        share = self.elastic("clip_attn", share, True) if self.recipe == "bit" else k_bit(share, self.bits)
        return share @ value, scores

    def _bibert_operands(self, *heads: Tensor) -> tuple[Tensor, ...]:
        return tuple(sign_clamped(x) for x in heads)

    def _binarybert_operands(self, *heads: Tensor) -> tuple[Tensor, ...]:
        return tuple(k_bit(x, self.bits) for x in heads)

    def _bit_operands(self, *heads: Tensor) -> tuple[Tensor, ...]:
        if self.qkv_bias:
            biases = (m.bias.view(x.shape[1], 1, -1) for m, x in zip((self.move_q, self.move_k, self.move_v), heads))
            heads = tuple(x + bias for x, bias in zip(heads, biases))
        return tuple(self.elastic(name, x) for name, x in zip(("clip_query", "clip_key", "clip_value"), heads))
