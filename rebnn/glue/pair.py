"""Teacher and student: what is built, from which weights it starts, and which settings do not go together."""

from collections.abc import Callable
from pathlib import Path

from common import checkpoint
from common.errors import InputError
from common.run import Run

import torch
from transformers import BertConfig

from rebnn.glue import weights
from rebnn.glue.bert import Bert, Trace, binary_bert, real_bert, start_steps
from rebnn.glue.config import Config
from rebnn.glue.data import Batch, Data, task_of
from rebnn.glue.layers import Form
from rebnn.method import Balance
from rebnn.pair import binarizer


def build(config: Config) -> tuple[Bert, Bert]:
    """The binary student and the teacher, with fresh weights. Errors: InputError as check."""
    check(config)
    sizes = bert_config(config, config.data.vocab_size, task_of(config.data).outputs)
    return binary_bert(sizes, form(config)), real_bert(sizes)


def check(config: Config) -> None:
    """Refuse what cannot be trained. Errors: InputError."""
    binary, network = config.binary, config.network
    if network.hidden % network.heads:
        raise InputError(f"network.hidden {network.hidden}: is no multiple of network.heads {network.heads}")
    if binary.binarizer == "recipe" and binary.gamma != "none":
        raise InputError(
            f"binary.gamma {binary.gamma}: the pipelines' own scale is no parameter and has no reconstruction loss; "
            "give --binary.gamma none with --binary.binarizer recipe"
        )
    if binary.gamma == "released_intended" and config.run.micro_batches > 1:
        raise InputError(
            f"run.micro_batches {config.run.micro_batches}: the rule released_intended takes the largest gradient of "
            "a whole step; give 1, or another --binary.gamma"
        )
    if config.student.recipe == "binarybert" and config.loss.form == "bibert":
        raise InputError(
            "loss.form bibert: BinaryBERT's heads are not the teacher's, so Q, K and V cannot be compared; give bit"
        )
    if config.student.recipe == "binarybert" and (network.heads % 2 or network.intermediate % 2):
        raise InputError(
            f"network.heads {network.heads}, network.intermediate {network.intermediate}: BinaryBERT splits a network "
            "of half the width; give even numbers"
        )


def form(config: Config, ternary: bool = False) -> Form:
    """How the student becomes binary."""
    student, kind = config.student, config.binary.binarizer
    kind = "recipe" if kind == "recipe" else binarizer(config.binary)
    return Form(student.recipe, kind, config.binary.alpha_init, student.bits, student.qkv_bias, ternary)


def bert_config(config: Config, vocabulary: int, outputs: int) -> BertConfig:
    """transformers' settings of both networks."""
    network = config.network
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=network.hidden,
        num_hidden_layers=network.layers,
        num_attention_heads=network.heads,
        intermediate_size=network.intermediate,
        max_position_embeddings=network.positions,
        hidden_dropout_prob=network.dropout,
        attention_probs_dropout_prob=network.attention_dropout,
        initializer_range=network.init_std,
        num_labels=outputs,
    )


def sizes_of(config: Config, data: Data) -> BertConfig:
    """The settings for a task whose vocabulary is known."""
    return bert_config(config, len(data.words.vocabulary), data.task.outputs)


def build_teacher(run: Run, config: Config, data: Data) -> Bert:
    """The network of stage `teacher`, on the device."""
    network = real_bert(sizes_of(config, data))
    if config.teacher.start:
        weights.load_real(network, config.teacher.start, head=False)
        run.require_same("start", checkpoint.file_sha256(weights.file_of(config.teacher.start)))
    return network.to(run.device)


def build_ternary(run: Run, config: Config, data: Data) -> Bert:
    """BinaryBERT's ternary network of half the width, started from the teacher, on the device."""
    network = binary_bert(sizes_of(config, data), form(config, ternary=True))
    path = config.teacher.checkpoint or run.folder.parent / "teacher" / "last.pt"
    _require(path, "the ternary network starts from the teacher's weights", "run stage teacher first")
    weights.halves_of(network, path)
    return network.to(run.device)


def build_student(run: Run, config: Config, data: Data, first: Batch) -> tuple[Bert, Balance]:
    """The binary network and its γ, on the device; first: the batch that sets BiT's step sizes.

    Errors: InputError where the weights it starts from are missing or do not fit.
    """
    network = binary_bert(sizes_of(config, data), form(config))
    stage = "ternary" if config.student.recipe == "binarybert" else "teacher"
    given = config.student.start or (config.teacher.checkpoint if stage == "teacher" else None)
    path = given or run.folder.parent / stage / "last.pt"
    _require(path, f"the student starts from the weights of stage {stage}", f"run stage {stage} first")
    if stage == "ternary" and not config.student.start:
        ternary = binary_bert(sizes_of(config, data), form(config, ternary=True))
        weights.load_real(ternary, path)
        weights.split(network, ternary)
    else:
        weights.load_student(network, path, config.binary.alpha_init)
    run.require_same("start", checkpoint.file_sha256(weights.file_of(path)))
    network = network.to(run.device)
    start_steps(network, first.ids, first.segments, first.mask)
    return network, Balance(network, config.binary.gamma, config.binary.gamma_value, config.run.micro_batches)


def frozen_teacher(run: Run, config: Config, data: Data) -> Callable[[Batch], Trace]:
    """The trained teacher as a function from a batch to its trace, without gradient.

    Errors: InputError where its weights are missing or do not fit.
    """
    network = real_bert(sizes_of(config, data))
    path = config.teacher.checkpoint or run.folder.parent / "teacher" / "last.pt"
    _require(path, "there is no teacher", "run stage teacher first, or give --teacher.checkpoint")
    weights.load_real(network, path)
    run.require_same("teacher", checkpoint.file_sha256(weights.file_of(path)))
    network.requires_grad_(False).to(run.device).train(config.teacher.dropout)

    @torch.no_grad()
    def ask(batch: Batch) -> Trace:
        with run.autocast():
            return network(batch.ids, batch.segments, batch.mask)

    return ask


def _require(path: str | Path, why: str, what: str) -> None:
    if not Path(path).exists():
        raise InputError(f"{path}: {why}; {what}")
