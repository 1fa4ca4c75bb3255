"""Weights of BERTs from outside: transformers', BiBERT's and BiT's folders, and our own checkpoints (section 8)."""

import logging
from pathlib import Path

from common import checkpoint
from common.errors import CheckpointError, InputError
from common.weights import fit_weights, read_weights

import torch
from torch import Tensor, nn

from rebnn.glue.bert import Bert
from rebnn.glue.layers import SplitEmbedding, SplitLinear, Steps
from rebnn.glue.quantisers import UNTOUCHED
from rebnn.method.binariser import BinaryWeight

FILES = ("model.safetensors", "pytorch_model.bin")
OLD = {"gamma": "weight", "beta": "bias"}
"""what old files call weight and bias of LayerNorm"""
UNUSED = ("position_ids", "token_type_ids")
"""buffers of old files that hold 0, 1, 2, …"""
HEAD = "classifier."


def file_of(given: str | Path) -> Path:
    """The file with the weights: the path itself, or in a folder the first of FILES. Errors: InputError."""
    path = Path(given)
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path / FILES[-1])
    if not path.is_file():
        raise InputError(f"{path}: there are no weights; give a folder with {' or '.join(FILES)}, or a last.pt")
    return path


def read(given: str | Path) -> dict[str, Tensor]:
    """A file's entries under the names that transformers has today; heads of pre-training are left out."""
    entries = {}
    for name, value in read_weights(file_of(given)).items():
        module, _, last = name.rpartition(".")
        if last in UNUSED or name.startswith("cls."):
            continue
        if module.endswith("LayerNorm") and last in OLD:
            name = f"{module}.{OLD[last]}"
        entries[name if name.startswith(("bert.", HEAD)) else f"bert.{name}"] = value
    return entries


def load_real(network: Bert, given: str | Path, head: bool = True) -> None:
    """Load a teacher whole; without head the classifier may be missing and then stays fresh. CheckpointError."""
    entries, own = read(given), network.state_dict()
    if not head and not any(name.startswith(HEAD) for name in entries):
        entries |= {name: own[name] for name in own if name.startswith(HEAD)}
    _fit(network, entries, given)


def load_student(network: Bert, given: str | Path, alpha_init: str = "cam") -> list[str]:
    """Load a student from a real network, a released BiBERT or BiT, or a checkpoint of ours; returns what was lacking.

    Scales, step sizes and learned biases that a file lacks start as in a fresh network; a row of zeros, which has no
    sign, is drawn anew. CheckpointError for a file that does not fit otherwise; the network is then unchanged.
    """
    entries, own = read(given), network.state_dict()
    lacking = [name for name in own if name not in entries and _learned(name)]
    _fit(network, entries | {name: own[name] for name in lacking}, given)
    revive(network, given)
    for name in lacking:
        if name.endswith("scaling_factor"):
            network.get_submodule(name.rpartition(".")[0]).reset_scale(alpha_init)
    own_file = is_own(given)
    for name, module in network.named_modules():
        if isinstance(module, Steps):
            ones = {n for n, p in module.named_parameters(recurse=False) if "clip_" in n and p == UNTOUCHED}
            module.untouched = frozenset(n for n in ones if not own_file or f"{name}.{n}" in lacking)
    if lacking:
        logging.getLogger(__name__).info("%s: lacks %d learned scales, steps or biases", given, len(lacking))
    return lacking


def split(network: Bert, ternary: Bert) -> None:
    """Start BinaryBERT's binary network from the ternary one: split layers, everything else as it is."""
    from_modules = dict(ternary.named_modules())
    inside = []
    for name, module in network.named_modules():
        if isinstance(module, SplitLinear | SplitEmbedding):
            module.start_from(from_modules[name])
            inside.append(f"{name}.")
    rest = {k: v for k, v in ternary.state_dict().items() if not k.startswith(tuple(inside))}
    network.load_state_dict(rest, strict=False)


@torch.no_grad()
def halves_of(network: Bert, given: str | Path) -> None:
    """Start a network of half the width from a real one of full width.

    Kept are the heads and inner neurons with the largest weights into the following layer. CheckpointError.
    """
    entries, own = read(given), network.state_dict()
    size = network.head_size
    for i in range(len(network.bert.encoder.layer)):
        layer = f"bert.encoder.layer.{i}."
        out, inner = f"{layer}attention.output.dense.weight", f"{layer}output.dense.weight"
        if not {out, inner} <= entries.keys():
            break  # _fit says what is missing
        heads = entries[out].square().sum(0).view(-1, size).sum(1)
        heads = heads.topk(own[out].shape[1] // size).indices.sort().values
        columns = (heads[:, None] * size + torch.arange(size)).flatten()
        neurons = entries[inner].square().sum(0).topk(own[inner].shape[1]).indices.sort().values
        for part in ("query", "key", "value"):
            for kind in ("weight", "bias"):
                name = f"{layer}attention.self.{part}.{kind}"
                entries[name] = entries[name][columns]
        for kind in ("weight", "bias"):
            name = f"{layer}intermediate.dense.{kind}"
            entries[name] = entries[name][neurons]
        entries[out], entries[inner] = entries[out][:, columns], entries[inner][:, neurons]
    _fit(network, entries, given)
    revive(network, given)


@torch.no_grad()
def revive(network: Bert, given: str | Path) -> None:
    """Draw rows of zeros of the binary layers anew: they have no sign and no scale."""
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, BinaryWeight) or (name.endswith("word_embeddings") and weight is not None):
            dead = ~weight.any(1)
            if dead.any():
                weight[dead] = nn.init.normal_(torch.empty_like(weight[dead]), std=network.config.initializer_range)
                logging.getLogger(__name__).info("%s: %d rows of %s held zeros; drawn", given, int(dead.sum()), name)


def is_own(given: str | Path) -> bool:
    """Whether a file was written by our train.py."""
    try:
        checkpoint.load_own(file_of(given), "rebnn")
    except CheckpointError:
        return False
    return True


def _learned(name: str) -> bool:
    """Entries that only binary networks have."""
    return name.endswith("scaling_factor") or "clip_" in name or ".move" in name


def _fit(network: Bert, entries: dict[str, Tensor], given: str | Path) -> None:
    """Load strictly; CheckpointError that names both numbers of labels where those differ."""
    name, wanted = f"{HEAD}weight", network.classifier.out_features
    if name in entries and len(entries[name]) != wanted:
        raise CheckpointError(
            f"{given} was trained for {len(entries[name])} outputs, but the task has {wanted}; give its own weights"
        )
    fit_weights(network, entries, file_of(given))
