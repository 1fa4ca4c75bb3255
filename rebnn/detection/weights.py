"""Weights of bodies and of whole detectors: ours, ReActNet's, torchvision's, IDa-Det's, BiDet's (section 8).

As in rebnn.weights, a scale of the released code stands for 0.02 times itself and is multiplied so on its way in.
"""

import re
from os import PathLike

from common.errors import CheckpointError
from common.weights import read_weights

import torch
from torch import Tensor, nn

from rebnn.weights import fit_student

IDA_DET = (
    *((r"^backbone\.", "backbone.body."), (r"^neck\.", "backbone.neck."), (r"^rpn_head\.", "rpn.head.")),
    *((r"^roi_head\.bbox_head\.shared_fcs\.0\.", "roi_heads.box_head.fc6."),),
    *((r"^roi_head\.bbox_head\.shared_fcs\.1\.", "roi_heads.box_head.fc7."),),
    (r"^roi_head\.bbox_head\.", "roi_heads.box_predictor."),
    (r"^(backbone\.body\.layer.*)\.conv\.", r"\1.binary_conv."),
)
"""names of IDa-Det's detectors and ours"""
TORCHVISION = (r"^(layer[1-4])\.(\d+)\.(conv|bn)([12])\.", r"^(layer[1-4]\.)(\d+)\.downsample\.([01])\.")
"""a residual block's two convolutions, which become two blocks here, and its shortcut"""
SCALE = re.compile(r"\.(scaling_factor|scale_factor|scale)$")


def load_detector(network: nn.Module, path: str | PathLike, alpha_init: str = "cam") -> list[str]:
    """Load a whole detector, of either step; returns the scales that the file lacks.

    Errors: CheckpointError for a file that is unreadable, unsafe or of another detector; the network is then unchanged.
    """
    given = read_weights(path)
    if any(key.startswith("roi_head.bbox_head.") for key in given):
        given = {_ida_det(key): value for key, value in given.items()}
    given = {SCALE.sub(".scaling_factor", key): value for key, value in given.items()}
    if hasattr(network, "codes"):
        given = {key: _means(key, value, network) for key, value in given.items()}
    return fit_student(network, given, path, alpha_init)


def load_body(network: nn.Module, path: str | PathLike, alpha_init: str = "cam") -> list[str]:
    """Load the body of a detector, or the whole of it where the file has all; returns the scales that it lacks.

    A file of a classifier has no biases of binary convolutions: those that the body has become 0. Errors: as above.
    """
    given = read_weights(path)
    if any(key.startswith(("backbone.", "loc.")) for key in given):
        return load_detector(network, path, alpha_init)
    if hasattr(network, "vgg"):
        given = {re.sub(r"^(vgg\.)?(layers|features)\.", "layers.", key): value for key, value in given.items()}
        return fit_student(network.vgg, _belonging(given, "layers."), path, alpha_init)
    body = network.backbone.body
    given = {SCALE.sub(".scaling_factor", key): value for key, value in given.items() if not key.startswith("fc.")}
    if any(re.match(r"^layer\d\.\d+\.conv2\.", key) for key in given):
        given = {_torchvision(key): value for key, value in given.items()}
        given |= {k: v for k, v in body.state_dict().items() if re.search(r"\.(move\d\.bias|prelu\.weight)$", k)}
    given = {key: value for key, value in given.items() if not key.endswith(".u")}
    top = [name for name, _ in body.named_children()]
    if "layer4" not in top:  # the C4 form keeps stage 4 in its head
        stage = {k.removeprefix("layer4."): v for k, v in given.items() if k.startswith("layer4.")}
        fit_student(network.roi_heads.box_head, _with_biases(network.roi_heads.box_head, stage), path, alpha_init)
        given = {key: value for key, value in given.items() if not key.startswith("layer4.")}
    return fit_student(body, _with_biases(body, given), path, alpha_init)


def _with_biases(network: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    own = network.state_dict()
    return given | {k: torch.zeros_like(v) for k, v in own.items() if k.endswith("conv.bias") and k not in given}


def _belonging(given: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {SCALE.sub(".scaling_factor", key): value for key, value in given.items() if key.startswith(prefix)}
    if not found:
        raise CheckpointError(f"the file has no entry {prefix}*: it is no VGG of binary blocks")
    return found


def _ida_det(key: str) -> str:
    for pattern, name in IDA_DET:
        key = re.sub(pattern, name, key)
    return key


def _means(key: str, value: Tensor, network: nn.Module) -> Tensor:
    """BiDet's box heads have four variances, then four means a prior; a head of four codes takes the means."""
    own = network.state_dict().get(key)
    if own is None or not key.startswith("loc.") or len(value) != 2 * len(own) or network.codes != 4:
        return value
    return value.unflatten(0, (-1, 8))[:, 4:].flatten(0, 1)


def _torchvision(key: str) -> str:
    """`layer2.1.conv2.weight` of torchvision's ResNet is block 3 of our stage 2."""
    block, shortcut = (re.match(pattern, key) for pattern in TORCHVISION)
    if block:
        stage, number, kind, which = block.groups()
        name = {"conv": "binary_conv", "bn": "bn1"}[kind]
        return f"{stage}.{2 * int(number) + int(which) - 1}.{name}.{key.rpartition('.')[2]}"
    if shortcut:
        stage, number, which = shortcut.groups()
        return f"{stage}{2 * int(number)}.downsample.{int(which) + 1}.{key.rpartition('.')[2]}"
    return key
