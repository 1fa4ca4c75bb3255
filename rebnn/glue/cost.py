"""What a binary BERT costs: parameters, bytes, and OPs of one sequence (sections 3.5 and 6)."""

from typing import NamedTuple

from torch import nn

from rebnn.glue.bert import Bert
from rebnn.glue.layers import BinaryAttention, SplitLinear, TernaryLinear
from rebnn.method.binariser import BinaryWeight
from rebnn.models.cost import WORD


class Cost(NamedTuple):
    """Counts of one sequence; storage in bytes, 1 bit a binary weight and 4 bytes a real parameter."""

    params: int
    binary_params: int
    binary_macs: int
    real_macs: int
    ops: float
    storage_bytes: float


def count(network: Bert, length: int) -> Cost:
    """The cost of one sequence of so many word pieces.

    Multiply-adds are those of linear layers and of attention's two products; embeddings, LayerNorm, softmax, biases
    and activations are free. Products count as binary where both factors are 1-bit. Ternary ones count as real.
    """
    macs = {True: 0, False: 0}
    for name, module in network.named_modules():
        tokens = 1 if name.startswith(("bert.pooler", "classifier")) else length
        if isinstance(module, nn.Linear):
            macs[_one_bit(network, name, module)] += tokens * module.weight.numel()
        elif name.endswith("attention.self"):
            binary = isinstance(module, BinaryAttention) and module.recipe != "binarybert"
            macs[binary] += 2 * length * length * module.query.out_features
    binary = sum(m.weight.numel() for m in network.modules() if isinstance(m, BinaryWeight))
    total = sum(p.numel() for p in network.parameters())
    storage = binary / 8 + 4 * (total - binary)
    return Cost(total, binary, macs[True], macs[False], macs[True] / WORD + macs[False], storage)


def _one_bit(network: Bert, name: str, module: nn.Linear) -> bool:
    """Whether weights and inputs of a layer are 1-bit; BinaryBERT's inputs have more bits."""
    if isinstance(module, TernaryLinear) or not isinstance(module, BinaryWeight):
        return False
    return not isinstance(network.get_submodule(name.rpartition(".")[0]), SplitLinear)
