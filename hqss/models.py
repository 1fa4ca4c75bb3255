"""The five networks of the paper (section 3); state_dict keys are the release's.

All convolutions have a bias; InstanceNorm has neither parameters nor running statistics, so training and evaluation
mode are the same. Heights and widths are multiples of 4.
"""

from os import PathLike

from common.gan.generators import InstanceNorm
from common.weights import fit_weights, read_weights

import torch
from torch import Tensor, nn
from torch.nn import functional

MULTIPLE = 4  # two halvings, and the skip connection needs the size back
SMALLEST = 8  # a quarter of it must still be mirrored by one pixel
SMALLEST_CRITIC = 24  # the patch discriminator's last two convolutions each lose a pixel of an eighth
INIT_STD = 0.02


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions with InstanceNorm, mirrored borders; no ReLU after the sum."""

    def __init__(self, channels: int):
        super().__init__()
        half = lambda: [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm(channels)]
        self.conv_block = nn.Sequential(*half(), nn.ReLU(inplace=True), *half())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def _ends(inputs: int, outputs: int) -> list[nn.Module]:
    """The 7x7 convolution at full resolution, behind which comes what differs."""
    return [nn.ReflectionPad2d(3), nn.Conv2d(inputs, outputs, 7)]


def _normed(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, InstanceNorm(channels), nn.ReLU(inplace=True))


class Encoder(nn.Module):
    """E: region image [N, 3, H, W] -> shadow feature [N, 16, H, W]."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.conv1_b = nn.Sequential(*_ends(3, channels), InstanceNorm(channels), nn.ReLU(inplace=True))
        self.conv3_b = nn.Sequential(ResidualBlock(channels))
        self.conv4_b = nn.Sequential(ResidualBlock(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv4_b(self.conv3_b(self.conv1_b(x)))


class _Painter(nn.Module):
    """Down by 4, residual blocks, up by 4, tanh(residual + image): what G, G1 and G2 have in common.

    widths: channels at full, half and quarter resolution going down; last: channels at full resolution coming up.
    blocks: numbers that the residual blocks carry in the release.
    """

    def __init__(self, inputs: int, widths: tuple[int, int, int], last: int, blocks: tuple[int, ...]):
        super().__init__()
        one, two, four = widths
        self.conv1_b = nn.Sequential(*_ends(inputs, one), InstanceNorm(one), nn.ReLU(inplace=True))
        self.downconv2_b = _normed(nn.Conv2d(one, two, 3, stride=2, padding=1), two)
        self.downconv3_b = _normed(nn.Conv2d(two, four, 3, stride=2, padding=1), four)
        self.blocks = [f"conv{number}_b" for number in blocks]
        for name in self.blocks:
            self.add_module(name, nn.Sequential(ResidualBlock(four)))
        self.upconv13_b = _normed(nn.ConvTranspose2d(four, two, 3, stride=2, padding=1, output_padding=1), two)
        self.upconv14_b = _normed(nn.ConvTranspose2d(two, last, 3, stride=2, padding=1, output_padding=1), last)
        self.conv15_b = nn.Sequential(*_ends(last, 3))

    def paint(self, x: Tensor, image: Tensor) -> Tensor:
        """x: what the first layer gives [N, width, H, W]; image: what the residual is added to [N, 3, H, W]."""
        x = self.downconv3_b(self.downconv2_b(x))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return torch.tanh(self.conv15_b(self.upconv14_b(self.upconv13_b(x))) + image)


class Generator(_Painter):
    """G: shadow feature [N, 16, H, W] and the region to redraw [N, 3, H, W] -> that region with the feature."""

    def __init__(self, channels: int = 16, width: int = 128):
        super().__init__(channels + 3, (width, width, width), width // 2, (4, 5, 9, 10, 11, 12))

    def forward(self, feature: Tensor, image: Tensor, crossed: bool = False) -> Tensor:
        """crossed: features and images come in two halves; each feature with its own image, then with the other half's.

        The first convolution, four tenths of the network's arithmetic, is linear: each half goes through it once.
        """
        if not crossed:
            return self.paint(self.conv1_b(torch.cat([feature, image], 1)), image)
        pad, convolution, *rest = self.conv1_b
        of_feature, of_image = convolution.weight.split([feature.shape[1], image.shape[1]], 1)
        one = functional.conv2d(pad(feature), of_feature, convolution.bias)
        two = functional.conv2d(pad(image), of_image)
        other = lambda x: torch.cat(x.chunk(2)[::-1])
        x = torch.cat([one + two, one + other(two)])  # [4N, width, H, W]
        for layer in rest:
            x = layer(x)
        return self.paint(x, torch.cat([image, other(image)]))


class Remover(_Painter):
    """G1: image [N, 3, H, W] -> coarsely shadow-free."""

    def __init__(self, width: int = 64):
        super().__init__(3, (width, 2 * width, 4 * width), width, tuple(range(4, 13)))

    def forward(self, image: Tensor) -> Tensor:
        return self.paint(self.conv1_b(image), image)


class Refiner(_Painter):
    """G2: image [N, 3, H, W] and mask [N, 1, H, W] in {-1, 1} -> refined image."""

    def __init__(self, width: int = 64):
        super().__init__(4, (width, 2 * width, 4 * width), width, tuple(range(4, 13)))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.paint(self.conv1_b(torch.cat([image, mask], 1)), image)


class Discriminator(nn.Module):
    """D_S, D_N: image [N, 3, H, W] -> mean score of its patches [N]."""

    def __init__(self, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for inputs, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [nn.Conv2d(inputs, 2 * inputs, 4, stride=stride, padding=1), InstanceNorm(2 * inputs)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).mean((1, 2, 3))


def initialise(network: nn.Module) -> nn.Module:
    """Weights of all (transposed) convolutions from N(0, 0.02); biases keep the framework's default (section 2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, INIT_STD)
    return network


def load_weights(network: nn.Module, path: str | PathLike, part: str | None = None) -> None:
    """Fill a network from a bare state_dict (the release's files) or from part `part` of a checkpoint of ours.

    fp16 files are taken as they are stored. Errors: CheckpointError.
    """
    fit_weights(network, read_weights(path, part), path)
