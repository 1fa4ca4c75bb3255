"""The networks of the paper under the names and with the state-dict keys of the release (section 3), in full precision.

Every network maps images [B, 3, H, W] to logits [B, classes] and is made of plain `nn.Conv2d` and `nn.Linear`, which
`lts.method.quantise` replaces. Modules are registered in the order in which they are executed; a shortcut comes after
the convolutions of its block.
"""

import inspect
from functools import partial

from common.config import nearest
from common.errors import InputError

from torch import nn

from lts.models.digits import DigitsNet
from lts.models.mobilenet import MobileNetV1, MobileNetV2
from lts.models.resnet import BasicBlock, Bottleneck, CifarResNet, ImageNetResNet

__all__ = ["MODELS", "build"]

MODELS = {
    "resnet20": partial(CifarResNet, 20),
    "resnet18": partial(ImageNetResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet50": partial(ImageNetResNet, Bottleneck, (3, 4, 6, 3)),
    "mobilenetv1": MobileNetV1,
    "mobilenetv2": MobileNetV2,
    "digits": DigitsNet,
}
# Below 8 channels, oneDNN's gradient of the strided shortcut writes out of bounds in channels-last layout on AVX2
# processors (uxlfoundation/oneDNN issue 6035; torch 2.13 ships it).
LEAST_WIDTH = 8


def build(name: str, classes: int, width: int | None = None) -> nn.Module:
    """The named network with fresh weights from torch's global generator.

    width: channels of the first layer, in the place of 16, for resnet20 and digits. InputError for an unknown name,
    fewer than one class, too small a width, and a width where the network has none.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r}: there is none{nearest(name, MODELS)}; choose from {', '.join(MODELS)}")
    if classes < 1:
        raise InputError(f"model {name}: {classes} classes; give at least 1")
    free = [other for other, builder in MODELS.items() if "width" in inspect.signature(builder).parameters]
    if width is not None and name not in free:
        raise InputError(f"model {name} has no free width (given: {width}); leave it out or use {' or '.join(free)}")
    if width is not None and width < LEAST_WIDTH:
        raise InputError(f"model {name}: width {width}; give at least {LEAST_WIDTH} channels")
    network = MODELS[name](classes) if width is None else MODELS[name](classes, width=width)
    network.architecture = name
    return network
