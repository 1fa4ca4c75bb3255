"""The detectors of both steps: what is built, from which weights it starts, and which settings do not go together."""

from functools import partial
from pathlib import Path

from common import checkpoint
from common.errors import InputError
from common.run import Run

from torch import nn

from rebnn import models
from rebnn.detection.config import Config, Step
from rebnn.detection.data import class_count
from rebnn.detection.fasterrcnn import c4_detector, pyramid_detector
from rebnn.detection.ssd import SSD
from rebnn.detection.weights import load_body, load_detector
from rebnn.method import Balance, BinaryConv2d
from rebnn.pair import binarizer, check_binary

FORMS = {"fasterrcnn": pyramid_detector, "bidet": c4_detector}
PAD = {"fasterrcnn": 0, "bidet": -1, "ssd": -1}
STAGES = 5
"""parts of a ResNet that may be frozen: the stem and four stages"""


def build(config: Config, classes: int | None = None) -> tuple[nn.Module, nn.Module]:
    """The detectors of step 1 (real weights) and of step 2 (binary ones), with fresh weights.

    Errors: InputError for settings that exclude each other.
    """
    check(config)
    return tuple(detector(config, kind, classes) for kind in ("real", binarizer(config.binary)))


def check(config: Config) -> None:
    """Refuse what cannot be trained. Errors: InputError."""
    check_binary(config.binary, config.run)
    if not (epochs_or_iterations(config.step1) or epochs_or_iterations(config.step2)):
        raise InputError("step1.epochs 0 and step2.epochs 0: nothing would be trained; give epochs or iterations")
    if config.detector.name == "ssd" and config.data.batch_size < 2 * config.run.micro_batches:
        raise InputError(
            f"data.batch_size {config.data.batch_size}: BatchNorm of SSD's last map, one pixel, needs two images in "
            "each part of a step; give more"
        )
    if config.detector.frozen >= STAGES - (config.detector.name == "bidet"):
        raise InputError(f"detector.frozen {config.detector.frozen}: the whole body would stay as it is; give less")


def epochs_or_iterations(step: Step) -> int:
    """0 for a step that is left out."""
    return step.iterations or step.epochs


def detector(config: Config, kind: str, classes: int | None = None) -> nn.Module:
    """A detector whose inner weights are `real` (step 1) or of one of the binarisers (step 2)."""
    settings, classes = config.detector, classes or class_count(config.data)
    pad = PAD[settings.name] if settings.pad_value is None else settings.pad_value
    conv = partial(models.WEIGHTS[kind], pad_value=float(pad))
    if settings.name == "ssd":
        network = SSD(classes, conv, settings.width, "coco" if config.data.name == "coco" else "voc")
    else:
        network = FORMS[settings.name](
            *(settings.body, classes, conv, settings.width, settings.conv_bias, settings.anchor_scale),
            seed=config.seed,
            weight=settings.loss_weight,
            kept=settings.proposals,
            sampled=settings.regions,
            frozen=settings.frozen,
            norm_eval=settings.norm_eval,
        )
    network.architecture = settings.name
    return network


def build_step(run: Run, config: Config, stage: str, classes: int) -> tuple[nn.Module, Balance | None]:
    """The detector of a stage on the device, with the weights that it starts from, and in step 2 its γ.

    Errors: InputError where weights are missing or do not fit, or hold an output channel of zeros only.
    """
    binary = stage == "step2"
    network = detector(config, binarizer(config.binary) if binary else "real", classes)
    step, before = getattr(config, stage), run.folder.parent / "step1" / "last.pt"
    follows = binary and epochs_or_iterations(config.step1)
    path = step.start or (before if follows else None)
    if path and not Path(path).is_file():
        raise InputError(f"{path}: there is no detector to start from; run stage step1 first, or give --{stage}.start")
    if path:
        load_detector(network, path, config.binary.alpha_init)
    elif config.detector.weights:
        path = config.detector.weights
        load_body(network, path, config.binary.alpha_init)
    elif binary:
        for module in network.modules():
            if isinstance(module, BinaryConv2d):
                module.reset_scale(config.binary.alpha_init)
    if path:
        run.require_same("start", checkpoint.file_sha256(path))
    refuse_dead_channels(network, path)
    network = network.to(run.device)
    if not binary:
        return network, None
    return network, Balance(network, config.binary.gamma, config.binary.gamma_value, config.run.micro_batches)


def refuse_dead_channels(network: nn.Module, path: str | Path | None) -> None:
    """A channel of zeros has α = 0 and could never learn. Errors: InputError."""
    for name, layer in network.named_modules():
        if isinstance(layer, BinaryConv2d):
            dead = (layer.alpha().flatten() == 0).nonzero().flatten().tolist()
            if dead:
                raise InputError(
                    f"{path}: output channels {dead[:5]} of {name} hold zeros only, so that their scale α is 0 and "
                    "they could never learn; give weights without them, or --binary.alpha_init randn"
                )
