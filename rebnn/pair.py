"""Teacher and student: what is built, from which weights it starts, and which settings do not go together."""

from collections.abc import Callable
from pathlib import Path

from common import checkpoint
from common.errors import InputError
from common.fold import fold_batchnorm
from common.run import Run, Runtime

import torch
from torch import Tensor, nn

from rebnn import models, weights
from rebnn.config import Binary, Config
from rebnn.method import Balance, BinaryConv2d

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}


def build(config: Config, classes: int | None = None) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The student of step 1, that of step 2, and the teacher, with fresh weights.

    Errors: InputError for unknown networks, channels that they do not have, and settings that exclude each other.
    """
    check(config)
    classes = classes or CLASSES[config.data.name]
    students = [student(config, classes, kind) for kind in ("real", binarizer(config.binary))]
    return *students, models.teacher(config.teacher.name, classes)


def check(config: Config) -> None:
    """Refuse what cannot be trained. Errors: InputError."""
    check_binary(config.binary, config.run)
    if not config.step1.epochs and not config.step2.start:
        raise InputError("step1.epochs 0: step 2 starts from step 1; give epochs, or its weights as --step2.start")


def check_binary(binary: Binary, runtime: Runtime) -> None:
    """Refuse a rule of γ that its binariser or the way of computing does not allow. Errors: InputError."""
    if binary.binarizer in ("reactnet", "bidet") and binary.gamma != "none":
        raise InputError(
            f"binary.gamma {binary.gamma}: the scale mean|w| is no parameter and has no reconstruction loss; "
            f"give --binary.gamma none with --binary.binarizer {binary.binarizer}"
        )
    if binary.gamma == "released_intended" and runtime.micro_batches > 1:
        raise InputError(
            f"run.micro_batches {runtime.micro_batches}: the rule released_intended takes the largest gradient of "
            "a whole step; give 1, or another --binary.gamma"
        )


def binarizer(binary: Binary) -> str:
    """The kind of weights of step 2; `auto` follows the rule of γ."""
    if binary.binarizer != "auto":
        return binary.binarizer
    return "released" if binary.gamma.startswith("released") else "paper"


def student(config: Config, classes: int, kind: str) -> nn.Module:
    """A student whose inner weights are `real` (step 1) or of one of the binarisers (step 2)."""
    return models.build(config.student.name, classes, kind, config.student.channels, float(config.student.pad_value))


def build_step1(run: Run, config: Config, classes: int) -> nn.Module:
    """The student with binary activations and real weights, on the device."""
    network = student(config, classes, "real")
    if config.step1.start:
        weights.load_student(network, config.step1.start)
        run.require_same("start", checkpoint.file_sha256(config.step1.start))
    return network.to(run.device, memory_format=torch.channels_last)


def build_step2(run: Run, config: Config, classes: int) -> tuple[nn.Module, Balance]:
    """The binary student with step 1's weights and fresh scales, and its γ, on the device.

    Errors: InputError where step 1's weights are missing or do not fit, or hold an output channel of zeros only.
    """
    network = student(config, classes, binarizer(config.binary))
    path = Path(config.step2.start or run.folder.parent / "step1" / "last.pt")
    if not path.is_file():
        raise InputError(f"{path}: step 2 starts from step 1's weights; run stage step1 first, or give --step2.start")
    weights.load_student(network, path, config.binary.alpha_init)
    run.require_same("start", checkpoint.file_sha256(path))
    for name, layer in network.named_modules():
        if isinstance(layer, BinaryConv2d):
            dead = (layer.alpha().flatten() == 0).nonzero().flatten().tolist()
            if dead:
                raise InputError(
                    f"{path}: output channels {dead[:5]} of {name} hold zeros only, so that their scale α is 0 and "
                    "they could never learn; give a step 1 without them, or --binary.alpha_init randn"
                )
    network = network.to(run.device, memory_format=torch.channels_last)
    return network, Balance(network, config.binary.gamma, config.binary.gamma_value, config.run.micro_batches)


def frozen_teacher(run: Run, config: Config, classes: int) -> Callable[[Tensor], Tensor]:
    """The trained teacher as a function from images to logits: BatchNorm folded, no gradient, bf16 where it is there.

    Errors: InputError where its weights are missing or belong to another network or number of classes.
    """
    network = models.teacher(config.teacher.name, classes)
    path = Path(config.teacher.checkpoint or run.folder.parent / "teacher" / "last.pt")
    if not path.is_file():
        raise InputError(f"{path}: there is no teacher; run stage teacher first, or give --teacher.checkpoint")
    weights.load_teacher(network, path)
    run.require_same("teacher", checkpoint.file_sha256(path))
    folded = fold_batchnorm(network.requires_grad_(False)).to(run.device, memory_format=torch.channels_last)
    on_gpu = run.device.type == "cuda"
    half = config.teacher.half and on_gpu and torch.cuda.is_bf16_supported()

    @torch.no_grad()
    def ask(images: Tensor) -> Tensor:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=half or config.run.precision == "bf16"):
            return folded(images)

    return ask
