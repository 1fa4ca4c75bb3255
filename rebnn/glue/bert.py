"""BERT for sequence classification, real (transformers' own) and binary, with what distillation compares (3.5)."""

from collections.abc import Sequence
from typing import NamedTuple

import common  # noqa: F401  registers what torchvision needs, which transformers imports

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from rebnn.glue.layers import HIDDEN_MASK, BinaryAttention, Form, Steps, binary_embedding, binary_linear


class Trace(NamedTuple):
    """What a pass leaves: logits [B, C]; hidden states [B, L, D] of the embeddings and of each layer; for each layer
    the real queries, keys and values [B, heads, L, d]; and the attention scores with their mask, where they exist."""

    logits: Tensor
    hidden: tuple[Tensor, ...]
    relations: tuple[tuple[Tensor, Tensor, Tensor], ...]
    scores: tuple[Tensor, ...]


class Bert(BertForSequenceClassification):
    """transformers' network, whose forward also hands out what distillation compares."""

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Trace:
        """int64 [B, L] each; mask is 1 for words and 0 for padding."""
        bert = self.bert
        x = bert.embeddings(ids, token_type_ids=segments)
        hidden_keys = (1 - mask[:, None, None, :].to(x.dtype)) * HIDDEN_MASK
        hidden, relations, scores = [x], [], []
        for layer in bert.encoder.layer:
            attention = layer.attention.self
            heads = tuple(_heads(part(x), self.head_size) for part in (attention.query, attention.key, attention.value))
            context, score = self._mix(attention, heads, hidden_keys)
            x = layer.attention.output(context.transpose(1, 2).flatten(2), x)
            x = layer.output(layer.intermediate(x), x)
            hidden.append(x)
            relations.append(heads)
            scores += [] if score is None else [score]
        logits = self.classifier(self.dropout(bert.pooler(x)))
        return Trace(logits, tuple(hidden), tuple(relations), tuple(scores))

    @property
    def head_size(self) -> int:
        """Width of a head; BinaryBERT's half-width network has fewer heads of the same width."""
        return self.config.hidden_size // self.config.num_attention_heads

    def _mix(self, attention: nn.Module, heads: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor | None]:
        if isinstance(attention, BinaryAttention):
            return attention.mix(*heads, mask)
        drop = attention.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=drop), None


def real_bert(config: BertConfig) -> Bert:
    """A network with fresh weights from torch's global generator; no row of the embedding is zero.

    transformers sets the row of the padding to 0, which has no sign and no scale; here it is drawn like any other.
    """
    network = Bert(config)
    nn.init.normal_(network.bert.embeddings.word_embeddings.weight, std=config.initializer_range)
    return network


def binary_bert(config: BertConfig, form: Form) -> Bert:
    """A network whose encoder, pooler and word embedding are binary, with fresh latent weights.

    Real remain position and token-type embeddings, LayerNorms, biases and the classifier. BiT's FFN has ReLU.
    """
    network = real_bert(config)
    bert = network.bert
    bert.embeddings.word_embeddings = binary_embedding(form, bert.embeddings.word_embeddings)
    for layer in bert.encoder.layer:
        if form.recipe == "binarybert":
            halve(layer, network.head_size)
        layer.attention.self = BinaryAttention(form, layer.attention.self)
        layer.attention.output.dense = binary_linear(form, layer.attention.output.dense)
        layer.intermediate.dense = binary_linear(form, layer.intermediate.dense)
        layer.output.dense = binary_linear(form, layer.output.dense, positive=True)
        if form.recipe == "bit":
            layer.intermediate.intermediate_act_fn = nn.ReLU()
    bert.pooler.dense = binary_linear(form, bert.pooler.dense)
    return network


def halve(layer: nn.Module, head_size: int) -> None:
    """Leave a layer the first half of its heads and of its inner neurons, with fresh weights."""
    attention, outer = layer.attention.self, layer.attention.output.dense.out_features
    inner = max(1, attention.num_attention_heads // 2) * head_size
    for name in ("query", "key", "value"):
        setattr(attention, name, nn.Linear(outer, inner))
    layer.attention.output.dense = nn.Linear(inner, outer)
    neurons = layer.intermediate.dense.out_features // 2
    layer.intermediate.dense, layer.output.dense = nn.Linear(outer, neurons), nn.Linear(neurons, outer)


@torch.no_grad()
def start_steps(network: Bert, ids: Tensor, segments: Tensor, mask: Tensor) -> None:
    """Set BiT's step sizes that are still untouched from a first batch [B, L], each in its turn."""
    if any(module.untouched for module in network.modules() if isinstance(module, Steps)):
        training = network.training
        network.eval()(ids, segments, mask)
        network.train(training)


def _heads(x: Tensor, size: int) -> Tensor:
    """[B, L, heads · d] -> [B, heads, L, d]."""
    return x.view(*x.shape[:2], -1, size).transpose(1, 2)
