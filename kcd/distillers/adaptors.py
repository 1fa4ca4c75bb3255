"""The small networks that bring student and teacher features to one shape."""

import math
from collections.abc import Sequence

from common.errors import InputError

import torch
from torch import Tensor, nn

from kcd.distillers.losses import normalise

Shape = Sequence[int]


def _is_map(shape: Shape) -> bool:
    return len(shape) == 3 and min(shape) > 0


class ConvReg(nn.Module):
    """Convolution and BatchNorm from the student's map to the teacher's shape (FitNets' regressor).

    student, teacher: (C, H, W). Halving is a strided 3x3 convolution, doubling a transposed 4x4 one, and any other
    smaller or equal size a convolution without padding of the size that fits. Raises InputError for the rest.
    """

    def __init__(self, student: Shape, teacher: Shape, relu: bool = True):
        super().__init__()
        if not (_is_map(student) and _is_map(teacher)):
            raise InputError(
                f"ConvReg joins two (C, H, W) maps but was given {tuple(student)} and {tuple(teacher)}; "
                "choose a layer that is a map in both networks"
            )
        (channels, *size), (target_channels, *target) = student, teacher
        if size == [2 * t for t in target]:
            self.conv = nn.Conv2d(channels, target_channels, 3, stride=2, padding=1)
        elif [2 * s for s in size] == target:
            self.conv = nn.ConvTranspose2d(channels, target_channels, 4, stride=2, padding=1)
        elif all(s >= t for s, t in zip(size, target)):
            kernel = tuple(1 + s - t for s, t in zip(size, target))
            self.conv = nn.Conv2d(channels, target_channels, kernel)
        else:
            raise InputError(
                f"ConvReg cannot enlarge a {size[0]}x{size[1]} map to {target[0]}x{target[1]} (only exactly twice); "
                "choose a layer where the student's map is at least as large, or a teacher of matching sizes"
            )
        self.bn = nn.BatchNorm2d(target_channels)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class LinearEmbed(nn.Module):
    """Flattened features [B, ...] -> [B, dim] by one linear layer."""

    def __init__(self, features: int, dim: int = 128):
        super().__init__()
        self.linear = nn.Linear(features, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class Embed(LinearEmbed):
    """Flattened features [B, ...] -> unit vectors [B, dim], float32 under autocast (CRD)."""

    def forward(self, x: Tensor) -> Tensor:
        embedding = super().forward(x)
        return normalise(embedding if embedding.dtype == torch.float64 else embedding.float(), 1)


class VidHead(nn.Module):
    """Three 1x1 convolutions that predict the teacher's map from the student's, and its log scale for each channel.

    [B, C, H, W] -> [B, T, H, W]. `initial_scale` is the variance at the start, before the 1e-5 that is always added.
    """

    def __init__(self, channels: int, teacher_channels: int, initial_scale: float = 5.0, eps: float = 1e-5):
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        log_scale = math.log(math.expm1(initial_scale - eps))
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), log_scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.regressor(x)


def _encoder(channels: int, factor_channels: int, norm: type[nn.Module]) -> nn.Sequential:
    """Three 3x3 convolutions with LeakyReLU, the second changes the width; `norm` sits between the two."""
    layers = []
    for c_in, c_out in ((channels, channels), (channels, factor_channels), (factor_channels, factor_channels)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), norm(c_out), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def _factor_channels(teacher_channels: int, rate: float) -> int:
    """int(rate * channels); InputError if nothing is left."""
    channels = int(teacher_channels * rate)
    if channels < 1:
        raise InputError(
            f"a factor of rate {rate:g} of a map with {teacher_channels} channel(s) has none; choose a wider teacher"
        )
    return channels


class Translator(nn.Module):
    """Student map [B, S, H, W] -> factor [B, rate * T, H, W] (FT), T being the teacher's channels."""

    def __init__(self, channels: int, teacher_channels: int, rate: float = 0.5):
        super().__init__()
        self.encoder = _encoder(channels, _factor_channels(teacher_channels, rate), nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class Paraphraser(nn.Module):
    """Auto-encoder of the teacher's map [B, T, H, W] -> (factor [B, rate * T, H, W], reconstruction) (FT)."""

    def __init__(self, channels: int, rate: float = 0.5):
        super().__init__()
        narrow = _factor_channels(channels, rate)
        # nn.Identity keeps the numbering of the layers in the official checkpoints.
        self.encoder = _encoder(channels, narrow, nn.Identity)
        layers = []
        for c_in, c_out in ((narrow, narrow), (narrow, channels), (channels, channels)):
            layers += [nn.ConvTranspose2d(c_in, c_out, 3, padding=1), nn.Identity(), nn.LeakyReLU(0.1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.encoder(x)
        return factor, self.decoder(factor)


class Connector(nn.Module):
    """One map for each of the student's, in the teacher's shape: itself where they agree, else a ConvReg (AB)."""

    def __init__(self, student: Sequence[Shape], teacher: Sequence[Shape]):
        super().__init__()
        self.connectors = nn.ModuleList(
            nn.Identity() if tuple(s) == tuple(t) else ConvReg(s, t, relu=False) for s, t in zip(student, teacher)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [connector(x) for connector, x in zip(self.connectors, maps)]
