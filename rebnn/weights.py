"""Weights from outside: ReActNet's, the official ReBNN's and RBONN's checkpoints, torchvision's teachers, our own.

All scales mean the same once loaded: the official code's `scaling_factor` s stands for the scale 0.02 |s|, so it is
multiplied by 0.02 on its way into a network whose scaling_factor is the scale itself (section 8).
"""

import logging
from os import PathLike

from common import checkpoint
from common.errors import CheckpointError
from common.weights import fit_weights, read_weights

from torch import Tensor, nn

from rebnn.method import BinaryConv2d
from rebnn.method.binariser import LEVEL

SCALES = ("scaling_factor", "scale_factor", "scale")
"""what the official code, RBONN and IDa-Det call the scale of a convolution"""
UNUSED = ("u",)
"""RBONN's second factor, which its forward pass does not read"""


def load_teacher(network: nn.Module, path: str | PathLike) -> None:
    """Load a teacher whole; torchvision's files fit. CheckpointError as common.weights, and for other classes."""
    given = read_weights(path)
    _require_classes(network, given, path)
    fit_weights(network, given, path)


def load_student(network: nn.Module, path: str | PathLike, alpha_init: str = "cam") -> list[str]:
    """Load a student, from whichever step and release; returns the scales that the file lacks.

    ReActNet's files and step 1 have none: they start as alpha_init says. CheckpointError for a file that does not fit
    otherwise, or was trained with another number of classes; the network is then unchanged.
    """
    own = network.state_dict()
    given = {_own_name(key): value for key, value in read_weights(path).items() if _last(key) not in UNUSED}
    for key, value in given.items():
        if key in own and value.numel() == own[key].numel() and value.ndim == 2 and value.shape[1] == 1:
            given[key] = value.reshape(own[key].shape)  # ReActNet-A's files hold binary weights as one column
    _require_classes(network, given, path)
    return fit_student(network, given, path, alpha_init)


def fit_student(network: nn.Module, given: dict[str, Tensor], path: str | PathLike, alpha_init: str) -> list[str]:
    """Load a state dict read from path, under our names, with scales brought to the network's level.

    Returns the scales that it lacks, which start as alpha_init says. Errors: as `load_student`.
    """
    own = network.state_dict()
    factor = _level_of(path) / _level(network)
    scales = [key for key in own if _last(key) == "scaling_factor"]
    lacking = [key for key in scales if key not in given]
    given = given | {key: given[key] * factor for key in scales if key in given}
    fit_weights(network, given | {key: own[key] for key in lacking}, path)
    for key in lacking:
        network.get_submodule(key.removesuffix(".scaling_factor")).reset_scale(alpha_init)
    if lacking:
        logging.getLogger(__name__).info("%s: has no scales for %d layers; initialised", path, len(lacking))
    return lacking


def export_official(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The student as the official code's checkpoint: {"state_dict": names with `module.`, scales without 0.02}."""
    state = network.state_dict()
    factor = _level(network) / LEVEL
    scaled = {key: value * factor if _last(key) == "scaling_factor" else value for key, value in state.items()}
    return {"state_dict": {f"module.{key}": value.cpu() for key, value in scaled.items()}}


def _require_classes(network: nn.Module, given: dict[str, Tensor], path: str | PathLike) -> None:
    """CheckpointError that names both numbers of classes where those differ."""
    head = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    wanted = network.get_submodule(head).out_features
    if f"{head}.weight" in given and len(given[f"{head}.weight"]) != wanted:
        raise CheckpointError(
            f"{path} was trained for {len(given[f'{head}.weight'])} classes, but the data has {wanted}; give weights"
            f" for {wanted} classes or the data they were trained on"
        )


def _level(network: nn.Module) -> float:
    """What a network multiplies its scaling_factor with; 1 where it has none."""
    return next((float(m.level) for m in network.modules() if isinstance(m, BinaryConv2d)), 1.0)


def _level_of(path: str | PathLike) -> float:
    """What the network that wrote a file multiplies its scaling_factor with: 1 only for our own of the paper's form."""
    try:
        config = checkpoint.load_own(path, "rebnn")["config"]
    except CheckpointError:
        return LEVEL
    binary = config["binary"]
    form = binary["gamma"] if binary["binarizer"] == "auto" else binary["binarizer"]
    return LEVEL if form.startswith("released") else 1.0


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _own_name(key: str) -> str:
    """The name that our networks have for an entry of another release."""
    module, _, name = key.rpartition(".")
    if name in SCALES:
        return f"{module}.scaling_factor"
    return f"{module}.weight" if name == "weights" else key
