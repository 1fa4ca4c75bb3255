"""The networks, by name: binary students, whose weights may also stay real (step 1), and real teachers.

Every network maps images [B, 3, H, W] to logits [B, classes]. A student has the same graph and the same names, those
of the official checkpoints, in both steps; step 2 adds the learned scales.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial

import common  # noqa: F401  registers what torchvision needs
from common.errors import InputError

from torch import nn

from rebnn.method import BinaryConv2d
from rebnn.method.binariser import BINARIZERS
from rebnn.models.cost import Cost, binary_convolutions, count
from rebnn.models.layers import RealConv2d
from rebnn.models.mobilenet import reactnet_a
from rebnn.models.resnet import cifar_resnet, imagenet_resnet
from rebnn.models.teachers import cifar_teacher, convnet, imagenet_teacher

__all__ = ["STUDENTS", "TEACHERS", "Cost", "binary_convolutions", "build", "count", "teacher"]

_STUDENTS = {
    "resnet18": partial(imagenet_resnet, (4, 4, 4, 4)),
    "resnet34": partial(imagenet_resnet, (6, 8, 12, 6)),
    "reactnet_a": reactnet_a,
    "resnet18_cifar": partial(cifar_resnet, (4, 4, 4, 4), channels=(64, 128, 256, 512)),
    "digits": partial(cifar_resnet, (2, 2), channels=(8, 16)),
}
_TEACHERS = {
    "resnet34_teacher": partial(imagenet_teacher, 34),
    "resnet18_cifar_teacher": partial(cifar_teacher, 18),
    "digits_teacher": partial(convnet, (16, 32, 32)),
}
STUDENTS = tuple(_STUDENTS)
"""ReBNN-18 and -34 (ReActNet-18 and -34 with the weights `reactnet`), ReActNet-A, one for 32x32 images, the digits'"""
TEACHERS = tuple(_TEACHERS)
"""torchvision's ResNet-34, one for 32x32 images, the digits'"""

WEIGHTS = {
    "real": RealConv2d,
    **{name: partial(BinaryConv2d, binarizer=name) for name in BINARIZERS},
}
"""what a student's inner convolutions are: real (step 1), or binary with one of the binarisers (step 2)"""


def build(
    name: str, classes: int, weights: str = "paper", channels: Sequence[int] | None = None, pad_value: float = 0.0
) -> nn.Module:
    """A student with fresh weights from torch's global generator.

    weights: one of WEIGHTS. channels: of the stages, where the network lets one choose. pad_value: what binary
    activations see outside the map. InputError for an unknown name, channels where there is no choice, or no classes.
    """
    builder = _find(_STUDENTS, "student", name, classes)
    conv = partial(_closest(WEIGHTS, "kind of weights", weights), pad_value=pad_value)
    if channels is None:
        network = builder(classes=classes, conv=conv)
    elif "channels" not in inspect.signature(builder).parameters:
        free = ", ".join(n for n, b in _STUDENTS.items() if "channels" in inspect.signature(b).parameters)
        raise InputError(f"student {name} has fixed channels (given: {[*channels]}); leave them out or use {free}")
    else:
        network = builder(classes=classes, conv=conv, channels=channels)
    network.architecture = name
    return network


def teacher(name: str, classes: int) -> nn.Module:
    """A teacher with fresh weights from torch's global generator; errors as build."""
    network = _find(_TEACHERS, "teacher", name, classes)(classes=classes)
    network.architecture = name
    return network


def _find(networks: dict[str, Callable], role: str, name: str, classes: int) -> Callable[..., nn.Module]:
    if classes < 1:
        raise InputError(f"{role} {name}: {classes} classes; give at least 1")
    return _closest(networks, role, name)


def _closest(known: dict[str, Callable], what: str, name: str) -> Callable:
    """The named one; InputError that names the nearest."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise InputError(f"no {what} is called {name!r}; did you mean {near}? There are {', '.join(known)}")
    return known[name]
