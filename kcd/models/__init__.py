"""The networks of the paper, by the names that its tables, RepDistiller and the released checkpoints use.

Every network maps images [B, 3, H, W] to logits [B, classes]; forward(x, is_feat=True, preact=False) returns
([f0, ..., fk], logits): feature maps from the stem on, then the pooled vector fk [B, C]. With preact=True the
maps f1 ... f(k-1) are taken before their last ReLU. feature_modules() lists what an initialisation stage
trains: the stem and all stages, not what lies between the last map and the logits.
"""

import difflib
import inspect
from functools import partial
from os import PathLike
from pathlib import Path

from common.errors import InputError
from common.weights import load_weights

from torch import nn

from kcd.models.mobilenet import MobileNetV2
from kcd.models.resnet import ResNet50, cifar_resnet, cifar_resnet_x4, imagenet_resnet
from kcd.models.shufflenet import ShuffleV1, ShuffleV2
from kcd.models.vgg import VGG
from kcd.models.wrn import WideResNet

__all__ = ["MODELS", "build", "load_weights", "teacher_name"]

MODELS = {
    "resnet8": partial(cifar_resnet, 8),
    "resnet14": partial(cifar_resnet, 14),
    "resnet20": partial(cifar_resnet, 20),
    "resnet32": partial(cifar_resnet, 32),
    "resnet44": partial(cifar_resnet, 44),
    "resnet56": partial(cifar_resnet, 56),
    "resnet110": partial(cifar_resnet, 110),
    "resnet8x4": partial(cifar_resnet_x4, 8),
    "resnet32x4": partial(cifar_resnet_x4, 32),
    "ResNet50": ResNet50,
    "wrn_16_1": partial(WideResNet, 16, 1),
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_1": partial(WideResNet, 40, 1),
    "wrn_40_2": partial(WideResNet, 40, 2),
    "vgg8": partial(VGG, 8),
    "vgg11": partial(VGG, 11),
    "vgg13": partial(VGG, 13),
    "vgg16": partial(VGG, 16),
    "vgg19": partial(VGG, 19),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
    "resnet18_imagenet": partial(imagenet_resnet, [2, 2, 2, 2]),
    "resnet34_imagenet": partial(imagenet_resnet, [3, 4, 6, 3]),
}


def _known(name: str, given: str) -> str:
    """The name itself; InputError with the nearest valid one if it is not a network's."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0)[0]
        raise InputError(f"{given}: no such network; did you mean {near}? There are {', '.join(MODELS)}")
    return name


def build(name: str, classes: int, width: int | None = None) -> nn.Module:
    """The named network with fresh weights from torch's global generator.

    width: base width of a CIFAR resnet in the place of 16. InputError for an unknown name, for fewer than one
    class or channel, and for a width where the network has none.
    """
    builder = MODELS[_known(name, f"model {name!r}")]
    if classes < 1:
        raise InputError(f"model {name}: {classes} classes; give at least 1")
    if width is None:
        network = builder(classes)
    elif "width" not in inspect.signature(builder).parameters:
        resnets = ", ".join(n for n, b in MODELS.items() if "width" in inspect.signature(b).parameters)
        raise InputError(f"model {name} has no free width (given: {width}); leave it out or use {resnets}")
    elif width < 1:
        raise InputError(f"model {name}: width {width}; give at least 1 channel")
    else:
        network = builder(classes, width=width)
    network.architecture = name
    return network


def teacher_name(path: str | PathLike) -> str:
    """The network that a checkpoint's folder is named after, as in `<name>_vanilla/ckpt_epoch_240.pth`.

    The name is the first token between underscores, for wide resnets the first three (RepDistiller).
    InputError if it is no network's.
    """
    folder = Path(path).absolute().parent.name
    tokens = folder.split("_")
    return _known("_".join(tokens[:3] if tokens[0] == "wrn" else tokens[:1]), f"{path}, folder {folder!r}")
