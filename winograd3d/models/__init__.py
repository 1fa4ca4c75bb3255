"""The networks of the assumed pair, C3D and R3D-18 (a reconstruction: the paper's are not known), and a small one.

Every network maps clips [B, C, T, H, W] to logits [B, classes].
"""

from common.config import nearest
from common.errors import InputError

from torch import nn

from winograd3d.models.c3d import C3D, WIDTHS, flat_positions
from winograd3d.models.digits3d import DigitsNet
from winograd3d.models.r3d import R3D18
from winograd3d.models.weights import Loaded, load_weights

__all__ = ["C3D", "MODELS", "R3D18", "DigitsNet", "Loaded", "build", "load_weights"]

MODELS = ("c3d", "r3d18", "digits3d")
FACTORISED = ("r2plus1d18", "r2plus1d_18", "r(2+1)d18")
FACTORISED_REASON = (
    "R(2+1)D factorises every 3x3x3 convolution into 1x3x3 and 3x1x1, so that nothing three-dimensional is left to "
    "transform; use r3d18, or apply winograd3d.convert to torchvision's network, which leaves it as it is"
)


def build(
    name: str, classes: int, width: int | None = None, clip: tuple[int, int, int] | None = None, channels: int = 3
) -> nn.Module:
    """The named network with fresh weights from torch's global generator.

    width: channels of the first convolution in the place of the network's own; the others follow in proportion.
    clip: (T, H, W) where it is not 16x112x112 (C3D) or 8x12x12 (digits3d); R3D-18 takes any. InputError for an unknown
    network, R(2+1)D, no class, no width, and a clip that the poolings would leave nothing of.
    """
    if name.lower() in FACTORISED:
        raise InputError(f"model {name}: {FACTORISED_REASON}")
    if name not in MODELS:
        raise InputError(f"model {name!r}: no such network{nearest(name, MODELS)} There are {', '.join(MODELS)}")
    for what, count in (("classes", classes), ("width", 1 if width is None else width), ("channels", channels)):
        if count < 1:
            raise InputError(f"model {name}: {what} {count}; give at least 1")
    if name == "c3d":
        clip, width = clip or (16, 112, 112), width or WIDTHS[0]
        if not flat_positions(clip):
            raise InputError(f"model c3d: the poolings leave nothing of a clip of {clip}; give at least (16, 16, 16)")
        widths = tuple(c // WIDTHS[0] * width for c in WIDTHS)
        network = C3D(classes, widths, 4096 * width // WIDTHS[0], clip, channels)
    elif name == "r3d18":
        network = R3D18(classes, width or 64, channels)
    else:
        clip = clip or (8, 12, 12)
        if clip[0] < 2 or min(clip[1:]) < 4:
            raise InputError(f"model digits3d: the poolings leave nothing of a clip of {clip}; give at least (2, 4, 4)")
        network = DigitsNet(classes, width or 8, clip, channels)
    network.architecture = name
    return network
