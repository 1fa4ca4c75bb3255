"""Patch discriminators: images [B, C, H, W] to maps of logits, without sigmoid."""

import functools

from common.errors import InputError
from common.gan.generators import init_weights, norm_layer

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """`layers` strided 4x4 convolutions, one with stride 1, and the logits; 3 layers see patches of 70x70.

    channels: 3, or 6 where the input image is judged together with the output. `hidden` is what the logits are made of.
    """

    def __init__(self, channels: int = 3, width: int = 64, norm: str = "instance", layers: int = 3):
        super().__init__()
        normalise, bias = norm_layer(norm), norm == "instance"
        parts = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        inside = width
        for i in range(1, layers + 1):
            outside, stride = width * min(2**i, 8), 2 if i < layers else 1
            parts += [nn.Conv2d(inside, outside, 4, stride=stride, padding=1, bias=bias), normalise(outside)]
            parts += [nn.LeakyReLU(0.2)]
            inside = outside
        self.model = nn.Sequential(*parts, nn.Conv2d(inside, 1, 4, padding=1))

    def hidden(self, x: Tensor) -> Tensor:
        """The last hidden activation [B, 8·width, h, w], `model.10` where there are 3 layers."""
        return self.model[:-1](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class PixelDiscriminator(nn.Module):
    """Judges every pixel by itself."""

    def __init__(self, channels: int = 3, width: int = 64, norm: str = "instance"):
        super().__init__()
        normalise, bias = norm_layer(norm), norm == "instance"
        self.net = nn.Sequential(
            *(nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 1, bias=bias), normalise(2 * width), nn.LeakyReLU(0.2)),
            nn.Conv2d(2 * width, 1, 1, bias=bias),
        )

    def hidden(self, x: Tensor) -> Tensor:
        """The last hidden activation [B, 2·width, H, W]."""
        return self.net[:-1](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SharedDiscriminator(nn.Module):
    """Two patch discriminators of 3 layers whose first `shared` stages are one (OMGD's, for two teachers)."""

    def __init__(self, channels: int = 3, width: int = 64, norm: str = "instance", shared: int = 0):
        super().__init__()
        normalise, bias = norm_layer(norm), norm == "instance"
        widths, self.shared = [channels, width, 2 * width, 4 * width, 8 * width, 1], shared
        for k in range(1, 6):
            conv = functools.partial(nn.Conv2d, widths[k - 1], widths[k], 4, stride=2 if k < 4 else 1, padding=1)
            if k == 1:
                stage = lambda conv=conv: nn.Sequential(conv(), nn.LeakyReLU(0.2))
            elif k == 5:
                stage = lambda conv=conv: nn.Sequential(conv())
            else:
                stage = lambda conv=conv, c=widths[k]: nn.Sequential(conv(bias=bias), normalise(c), nn.LeakyReLU(0.2))
            setattr(self, f"block{k}s", nn.ModuleList(Stage(stage()) for _ in range(2)))

    def forward(self, x: Tensor, teacher: int = 1) -> Tensor:
        """The logits for images of teacher 1 or 2."""
        for k in range(1, 6):
            own = teacher == 1 and k > self.shared
            x = getattr(self, f"block{k}s")[0 if own else 1](x)
        return x


class Stage(nn.Module):
    """A sequence under the name `block`, as the released checkpoints have it."""

    def __init__(self, block: nn.Sequential):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


DISCRIMINATORS = {"n_layers": PatchDiscriminator, "pixel": PixelDiscriminator, "multi_n_layers": SharedDiscriminator}


def build_discriminator(
    name: str = "n_layers", channels: int = 3, width: int = 64, norm: str = "instance", **options
) -> nn.Module:
    """A discriminator with fresh weights N(0, 0.02²). options: `layers` of n_layers, `shared` of multi_n_layers.

    Errors: InputError for an unknown name or norm.
    """
    if name not in DISCRIMINATORS:
        raise InputError(f"discriminator {name}: not one of {', '.join(DISCRIMINATORS)}")
    return init_weights(DISCRIMINATORS[name](channels, width, norm, **options))
