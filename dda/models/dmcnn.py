"""DMCNN: five branches at five resolutions, summed (Sun, Yu, Wang 2018), slimmable as DDA's release has it."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dda.method.slimmable import SlimConv2d
from dda.models.layers import Chain, SubNetwork, finish

BODY = 5  # convolutions of a branch's body


def conv(c_in: int, c_out: int, stride: int = 1, slim: tuple[bool, bool] = (True, True)) -> SlimConv2d:
    return SlimConv2d(c_in, c_out, 3, stride, 1, slim=slim)


def with_relu(layers: list[nn.Module]) -> list[nn.Module]:
    """A ReLU after each layer."""
    return [module for layer in layers for module in (layer, nn.ReLU(inplace=True))]


def encoder(c_in: int, c_out: int, stride: int, slim_in: bool = True) -> Chain:
    """Two convolutions, no ReLU after the second: the next encoder and the body both receive a linear output."""
    middle = c_in if stride == 2 else c_out
    return Chain(conv(c_in, middle, stride, (slim_in, True)), nn.ReLU(inplace=True), conv(middle, c_out))


def body(channels: int) -> Chain:
    """Five convolutions with ReLU; the last one gives all channels, because decoders are never slimmed."""
    return Chain(*with_relu([conv(channels, channels, slim=(True, i < BODY - 1)) for i in range(BODY)]))


def decoder(*channels: int) -> Chain:
    """Doublings through the given channel numbers, then a convolution to RGB, all at full width."""
    ups = [nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(channels)]
    return Chain(*with_relu(ups), nn.Conv2d(channels[-1], 3, 3, padding=1))


def summed(outputs: list[nn.Conv2d], maps: list[Tensor]) -> Tensor:
    """The sum of 3x3 convolutions, each of its own map: maps [B, C, H, W] each -> [B, 3, H, W].

    A convolution to three channels leaves most of a CPU's vector idle. Here each is a product of matrices that gives
    the 27 contributions of every pixel to its neighbours; they are added up over the maps before the one `fold`.
    """
    columns = None
    for output, features in zip(outputs, maps):
        weight = output.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2).expand(len(features), -1, -1)
        features = features.flatten(2)
        columns = weight @ features if columns is None else torch.baddbmm(columns, weight, features)
    bias = sum(output.bias for output in outputs)  # of a stack's sum the gradients would share their memory
    return F.fold(columns, maps[0].shape[-2:], 3, padding=1) + bias[:, None, None]


def awaken(network: nn.Module) -> None:
    """He initialisation with the layers that give RGB at a tenth of it: every branch is heard from the first step on.

    PyTorch's own shrinks the signal to about 0.4 at each ReLU, so that after some twenty layers the coarse branches
    say nothing yet. A transposed convolution of stride s sums only kernel² / s² values of each channel.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(layer, nn.ConvTranspose2d)
            taps = layer.kernel_size[0] ** 2 / (layer.stride[0] ** 2 if transposed else 1)
            last = type(layer) is nn.Conv2d
            nn.init.normal_(layer.weight, std=(0.1 if last else 1) * (2 / (layer.in_channels * taps)) ** 0.5)
            nn.init.zeros_(layer.bias)


class DMCNN(nn.Module):
    """x [B, 3, H, W] in [0, 1], H and W divisible by 16 -> [the picture, same shape] (section 3.2).

    channels: those of the finest branch; the others have twice as many. start: PyTorch's own initialisation as in the
    release, or He's (`awaken`), with which a short training gets further.
    """

    architecture = "DMCNN"
    multiple = 16

    def __init__(self, channels: int = 32, head: str = "sigmoid", start: str = "torch"):
        super().__init__()
        c, d = channels, 2 * channels
        self.channels, self.head = channels, head
        encoders = [encoder(3, c, 1, False), encoder(c, d, 2), encoder(d, d, 2), encoder(d, d, 2), encoder(d, d, 2)]
        bodies = [body(c), body(d), body(d), body(d), body(d)]
        decoders = [decoder(c), decoder(d, c), decoder(d, d, c), decoder(d, d, c, c), decoder(d, d, c, c, c)]
        for branch, parts in enumerate(zip(encoders, bodies, decoders), 1):
            for part, name in zip(parts, ("1", "3", "2")):  # body before decoder, as in the release
                self.add_module(f"s{branch}{name}", part)
        if start == "he":
            awaken(self)

    def forward(self, x: Tensor, width: float = 1.0) -> list[Tensor]:
        total, maps, encoded = 0, [], x
        cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        together = self.training and cpu  # the same sum, with cheaper gradients
        for branch in range(1, 6):
            encode, process, decode = (self.get_submodule(f"s{branch}{part}") for part in "132")
            encoded = encode(encoded, width)
            features = decode[:-1](process(encoded, width), width)
            if together:
                maps.append(features)
            else:
                total = total + decode[-1](features)
        if together:
            total = summed([self.get_submodule(f"s{branch}2")[-1] for branch in range(1, 6)], maps)
        return [finish(total, self.head, x)]

    def slice(self, width: float, fold: bool = True) -> SubNetwork:
        """One width as a plain network; nothing here can be folded."""
        return SubNetwork(self, width)
