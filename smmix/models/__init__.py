"""The networks of the paper: DeiT and CaiT from timm, PVT version 1 from here; small ones, and anything of timm.

Every network is a plain timm model (or has its interface) that maps images [B, C, H, W] to class logits [B, K], with
one child more: `token_head`, the linear layer [D -> K] that classifies pooled regions in training. The names in a
state dict are therefore those of the official checkpoints.
"""

from collections.abc import Callable
from functools import partial

from common.config import nearest
from common.errors import InputError

import timm
from timm.layers import PatchEmbed, trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smmix.models.pvt import PVT
from smmix.models.weights import fit, load_weights

__all__ = ["ALIASES", "DEPTHS", "PVT", "SMALL", "TokenHead", "build", "fit", "load_weights"]

# Names of the release, and short ones, for what timm calls otherwise.
ALIASES = {
    **{f"vit_deit_{size}_patch16_224": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")},
    **{f"deit_{size}": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")},
    **{f"cait_xxs{depth}": f"cait_xxs{depth}_224" for depth in (24, 36)},
}
DEPTHS = {
    "pvt_tiny": (2, 2, 2, 2),
    "pvt_small": (3, 4, 6, 3),
    "pvt_medium": (3, 4, 18, 3),
    "pvt_large": (3, 8, 27, 3),
    "pvt_huge_v2": (3, 10, 60, 3),
}
HUGE = {"dims": (128, 256, 512, 768), "num_heads": (2, 4, 8, 12)}
# For small images; vit_canvas is the network of the specification's section 11.
SMALL = {
    "vit_cifar": {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 9, "num_heads": 3},
    "vit_canvas": {"img_size": 16, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3, "in_chans": 1},
}


class TokenHead(nn.Linear):
    """The head of region tokens: independent weights, used in training only."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


def build(
    name: str,
    classes: int,
    *,
    image_size: int | tuple[int, int] | None = None,
    drop_path: float = 0.1,
    channels: int | None = None,
) -> nn.Module:
    """The named network with fresh weights (section 3) from torch's global generator, on the current device.

    image_size: pixels, one side or (height, width); by default what the network is made for. drop_path: rate of
    stochastic depth. channels: of the images, by default the network's own. Errors: InputError for an unknown
    name, no class, a network without features of one width, or an image that the network cannot take.
    """
    if classes < 1:
        raise InputError(f"model {name}: {classes} classes; give at least 1")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    official = ALIASES.get(name, name)
    if official in DEPTHS:
        shape = HUGE if official == "pvt_huge_v2" else {}
        given = {"image_size": size or (224, 224), "channels": channels or 3}
        network = PVT(DEPTHS[official], **shape, **given, num_classes=classes, drop_path=drop_path)
    else:
        network = _from_timm(official, name, classes, size, drop_path, channels)
    features = getattr(network, "num_features", None)
    if not isinstance(features, int):
        raise InputError(f"model {name}: has no single width of its features, which the token head needs")
    network.token_head = TokenHead(features, classes)
    network.architecture = official
    return network


def _from_timm(
    official: str, name: str, classes: int, size: tuple[int, int] | None, drop_path: float, channels: int | None
) -> nn.Module:
    """A network of timm, or a small one made of its vision transformer."""
    options = {"num_classes": classes, "drop_path_rate": drop_path}
    if channels:
        options["in_chans"] = channels
    if official in SMALL:
        make = partial(VisionTransformer, **{**SMALL[official], **options})
    elif timm.is_model(official):
        make = partial(timm.create_model, official, pretrained=False, **options)
    else:
        known = [*ALIASES, *DEPTHS, *SMALL, *timm.list_models()]
        raise InputError(f"model {name!r}: no such network{nearest(name, known)} (names of this project and timm's)")
    try:
        network = _sized(make, size)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"model {name} cannot be built with {options}: {' '.join(str(error).split())}") from error
    embed = getattr(network, "patch_embed", None)
    if size and isinstance(embed, PatchEmbed):
        (height, width), (down, across) = size, embed.patch_size
        if height % down or width % across:
            raise InputError(
                f"model {name}: images of {height} x {width} do not split into patches of {down} x {across}"
            )
    if type(network) is VisionTransformer and network.cls_token is not None:
        trunc_normal_(network.cls_token, std=0.02)  # the release's; timm starts it at 1e-6
    return network


def _sized(make: Callable[..., nn.Module], size: tuple[int, int] | None) -> nn.Module:
    """A network for images of that size; those of timm that take any size have no such option."""
    if size is None:
        return make()
    try:
        return make(img_size=size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return make()
