"""The generators of CycleGAN and pix2pix and their compressed forms: images [B, 3, H, W] in [-1, 1] to such images.

Module names are those of the released checkpoints (GAN Compression, OMGD and their successors), so that they load and
hooks find `model.9` and the like. Instance normalisation has no parameters and no running statistics.
"""

import functools
from collections.abc import Callable

from common.errors import InputError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = 9
Norm = Callable[[int], nn.Module]


class InstanceNorm(nn.Module):
    """Every channel of every image to mean 0 and variance 1, eps 1e-5: nn.InstanceNorm2d without parameters.

    Computed as groups of one channel, which on a CPU takes a quarter of nn.InstanceNorm2d's time and half of it with
    gradient; both agree but for rounding.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.channels, eps=1e-5)

    def extra_repr(self) -> str:
        return str(self.channels)


def norm_layer(norm: str) -> Norm:
    """`instance` (no parameters, no statistics) or `batch` (affine, running statistics), both with eps 1e-5."""
    layers = {
        "instance": InstanceNorm,
        "batch": functools.partial(nn.BatchNorm2d, affine=True, track_running_stats=True),
    }
    if norm not in layers:
        raise InputError(f"norm {norm}: not one of {', '.join(layers)}")
    return layers[norm]


class SeparableConv(nn.Module):
    """Depthwise 3x3 without padding, instance normalisation, pointwise 1x1.

    Its inner norm is instance normalisation and its convolutions are biased whatever the generator's norm is: so it is
    in the released code, and its checkpoints have these entries.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, groups=channels),
            norm_layer("instance")(channels),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResidualBlock(nn.Module):
    """x + block(x) with two reflection-padded 3x3 convolutions, plain or separable; no activation after the sum."""

    def __init__(self, channels: int, norm: str, separable: bool, dropout: float):
        super().__init__()
        normalise, bias = norm_layer(norm), norm == "instance"
        conv = lambda: SeparableConv(channels) if separable else nn.Conv2d(channels, channels, 3, bias=bias)
        self.conv_block = nn.Sequential(
            *(nn.ReflectionPad2d(1), conv(), normalise(channels), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.ReflectionPad2d(1), conv(), normalise(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Two strided convolutions, residual blocks, two transposed convolutions; sides must be multiples of 4.

    width: ngf, channels at full resolution, 4·ngf in the blocks. separable: mobile_resnet_9blocks, whose blocks are
    separable; otherwise resnet_9blocks, the uncompressed original.
    """

    multiple = 4

    def __init__(
        self,
        width: int = 64,
        norm: str = "instance",
        separable: bool = True,
        blocks: int = BLOCKS,
        dropout: float = 0.0,
    ):
        super().__init__()
        normalise, bias = norm_layer(norm), norm == "instance"
        down = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7, bias=bias), normalise(width), nn.ReLU()]
        for c in (width, 2 * width):
            down += [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1, bias=bias), normalise(2 * c), nn.ReLU()]
        middle = [ResidualBlock(4 * width, norm, separable, dropout) for _ in range(blocks)]
        up = []
        for c in (4 * width, 2 * width):
            conv = nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
            up += [conv, normalise(c // 2), nn.ReLU()]
        last = [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*down, *middle, *up, *last)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class PlainResnetGenerator(ResnetGenerator):
    """resnet_9blocks: full 3x3 convolutions in the blocks."""

    def __init__(self, width: int = 64, norm: str = "instance", **options):
        super().__init__(width, norm, separable=False, **options)


class UnetBlock(nn.Module):
    """Down, whatever lies deeper, up; all but the outermost return [x, up(...)] side by side."""

    def __init__(self, outer: int, inner: int, deeper: nn.Module | None, norm: str, outermost: bool = False):
        super().__init__()
        self.outermost = outermost
        normalise, bias = norm_layer(norm), norm == "instance"
        conv = nn.Conv2d(3 if outermost else outer, inner, 4, stride=2, padding=1, bias=bias)
        joined = inner if deeper is None else 2 * inner
        back = nn.ConvTranspose2d(joined, outer, 4, stride=2, padding=1, bias=bias or outermost)
        if outermost:
            parts = [conv, deeper, nn.ReLU(), back, nn.Tanh()]
        elif deeper is None:
            parts = [nn.LeakyReLU(0.2), conv, nn.ReLU(), back, normalise(outer)]
        else:
            parts = [
                nn.LeakyReLU(0.2),
                conv,
                normalise(inner),
                deeper,
                nn.ReLU(),
                back,
                normalise(outer),
                nn.Dropout(0),
            ]
        self.model = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    """unet_256: eight halvings and back with skips; channels 1, 2, 4, 8 … 8 times width, sides multiples of 256."""

    multiple = 256

    def __init__(self, width: int = 64, norm: str = "batch"):
        super().__init__()
        block = UnetBlock(8 * width, 8 * width, None, norm)
        for _ in range(3):
            block = UnetBlock(8 * width, 8 * width, block, norm)
        for outer in (4 * width, 2 * width, width):
            block = UnetBlock(outer, 2 * outer, block, norm)
        self.model = UnetBlock(3, width, block, norm, outermost=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


GENERATORS = {
    "resnet_9blocks": PlainResnetGenerator,
    "mobile_resnet_9blocks": ResnetGenerator,
    "unet_256": UnetGenerator,
}


def build_generator(name: str, width: int, norm: str = "instance", **options) -> nn.Module:
    """A generator of the released code with fresh weights N(0, 0.02²). options: `blocks` of a resnet.

    Errors: InputError for an unknown name or norm.
    """
    if name not in GENERATORS:
        raise InputError(f"generator {name}: not one of {', '.join(GENERATORS)}")
    network = init_weights(GENERATORS[name](width, norm, **options))
    network.architecture = f"{name} of width {width}"
    return network


def init_weights(network: nn.Module, std: float = 0.02) -> nn.Module:
    """Convolutions N(0, std²), BatchNorm weights N(1, std²), all biases 0, in place; returns the network."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return network
