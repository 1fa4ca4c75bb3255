"""MBCNN: multi-scale band-pass convolutional network (Zheng et al., CVPR 2020), slimmable as DDA's release has it."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dda.method.slimmable import SlimConv2d
from dda.models.layers import Slimmable, SubNetwork, finish

FINE, COARSE = (1, 2, 3, 2, 1), (1, 2, 2, 2, 1)  # dilations of a dense block's five convolutions
BAND = 64  # channels of the band-pass filter: the pixels of an 8 x 8 block
GLOBAL_HIDDEN = (1024, 512)
Bands = Literal["official", "idct"]


def dct_matrix(device: torch.device | str | None = None) -> Tensor:
    """The orthonormal 8 x 8 DCT-II as a matrix [64 frequencies, 64 pixels], both row by row (section 3.1)."""
    place = torch.arange(8, dtype=torch.float64, device=device)
    one = torch.cos((2 * place + 1) * place[:, None] * math.pi / 16) / 2  # [frequency, pixel]
    one[0] = math.sqrt(1 / 8)
    return torch.kron(one, one).float()


def effective_kernel(theta: Tensor, form: Bands = "official") -> Tensor:
    """The weight [64, 64] of the band-pass filter for its learnt strengths theta [64, 1, 1, 1].

    official: ReLU(K * theta), forward DCT with a strength of each output. idct: K^T diag(max(theta, 0)), the inverse
    transform of the original MBCNN with a strength of each input frequency (section 9, row 9).
    """
    matrix, strength = dct_matrix(theta.device).to(theta), theta.view(-1, 1)
    return F.relu(matrix * strength) if form == "official" else (matrix * strength.relu()).T


class Strengths(nn.Module):
    """The learnt strength of each band; a module of its own because the released checkpoints name it so."""

    def __init__(self):
        super().__init__()
        self.it_weights = nn.Parameter(torch.ones(BAND, 1, 1, 1))


class BandPass(nn.Module):
    """The learnable band-pass filter: a 1x1 convolution [B, 64, H, W] -> the same with a DCT-shaped kernel."""

    def __init__(self, form: Bands = "official"):
        super().__init__()
        self.form = form
        self.it_weights = Strengths()

    def kernel(self) -> Tensor:
        """The effective kernel [64, 64, 1, 1]."""
        return effective_kernel(self.it_weights.it_weights, self.form)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel())


class Scale(nn.Module):
    """A learnt factor, first 0.1."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kernel


class Conv(Slimmable):
    """A slimmable convolution under the key `conv` of the released checkpoints, with ReLU unless told otherwise."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, relu: bool = True, **options):
        super().__init__()
        self.conv, self.relu = SlimConv2d(c_in, c_out, kernel, **options), relu

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        x = self.at(self.conv, x, width)
        return F.relu_(x) if self.relu else x


def dense_segments(layers: int, channels: int, growth: int) -> tuple:
    """The segments of a dense block's input after some of its layers, the newest first."""
    return ((growth, True),) * layers + ((channels, True),)


def dense_convs(channels: int, growth: int, dilations: tuple[int, ...]) -> list[Conv]:
    """The five dilated 3x3 convolutions of a dense block; each sees all before it, the newest first."""
    return [
        Conv(channels + i * growth, growth, 3, padding=d, dilation=d, segments=dense_segments(i, channels, growth))
        for i, d in enumerate(dilations)
    ]


class PreBlock(Slimmable):
    """Dense features to the band-pass filter and back, added to the input: x [B, int(128w), H, W] -> the same."""

    def __init__(self, channels: int, growth: int, dilations: tuple[int, ...], lbf: Bands):
        super().__init__()
        for i, conv in enumerate(dense_convs(channels, growth, dilations), 1):
            self.add_module(f"conv_relu{i}", conv)
        segments = dense_segments(5, channels, growth)
        total = channels + 5 * growth
        self.conv1 = Conv(total, BAND, 3, padding=1, relu=False, slim=(True, False), segments=segments)
        self.conv2 = Conv(BAND, channels, 1, relu=False, slim=(False, True))
        self.adaptive_implicit_trans1 = BandPass(lbf)
        self.ScaleLayer1 = Scale()

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        t = x
        for i in range(1, 6):
            t = torch.cat([self.get_submodule(f"conv_relu{i}")(t, width), t], 1)
        t = self.adaptive_implicit_trans1(self.conv1(t, width))
        return x + self.ScaleLayer1(self.conv2(t, width))

    def fold(self) -> None:
        """Put filter, second convolution and factor into one 1x1 convolution; for a block that has been cut out."""
        kernel, scale, conv = self.adaptive_implicit_trans1.kernel(), self.ScaleLayer1.kernel, self.conv2.conv
        with torch.no_grad():
            weight = conv.weight.double().flatten(1) @ kernel.double().flatten(1) * scale.double()
            conv.weight.copy_(weight[:, :, None, None])
            conv.bias.mul_(scale)
        self.adaptive_implicit_trans1, self.ScaleLayer1 = nn.Identity(), nn.Identity()


class GlobalBlock(Slimmable):
    """Tone from the whole picture: a vector from averaged features multiplies 256 maps; [B, int(128w), H, W]."""

    def __init__(self, channels: int):
        super().__init__()
        wide = 2 * channels
        first, second = GLOBAL_HIDDEN
        self.conv_func1 = Conv(channels, wide, 3, stride=2, padding=1, slim=(True, False))
        self.dense1, self.dense2, self.dense3 = (
            nn.Linear(wide, first),
            nn.Linear(first, second),
            nn.Linear(second, wide),
        )
        self.conv_func2 = Conv(channels, wide, 1, slim=(True, False))
        self.conv_func3 = Conv(wide, channels, 1, slim=(False, True))

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        # Padded twice, here and in the convolution, so n pixels become n / 2 + 1; part of the released weights.
        v = self.conv_func1(F.pad(x, (1, 1, 1, 1)), width).mean((2, 3))
        v = self.dense3(F.relu(self.dense2(F.relu(self.dense1(v)))))
        return self.conv_func3(v[:, :, None, None] * self.conv_func2(x, width), width)


class PosBlock(Slimmable):
    """A dense block without residual: [B, int(128w), H, W] -> the same."""

    def __init__(self, channels: int, growth: int, dilations: tuple[int, ...]):
        super().__init__()
        for i, conv in enumerate(dense_convs(channels, growth, dilations), 1):
            self.add_module(f"conv_func{i}", conv)
        self.conv_func_last = Conv(channels + 5 * growth, channels, 1, segments=dense_segments(5, channels, growth))

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        for i in range(1, 6):
            x = torch.cat([self.get_submodule(f"conv_func{i}")(x, width), x], 1)
        return self.conv_func_last(x, width)


class MBCNN(nn.Module):
    """x [B, 3, H, W] in [0, 1], H and W divisible by 8 -> [o_4, o_2, o_1] at a quarter, half and full resolution.

    channels: growth of the dense blocks, half of the trunk's. lbf, head, fix_conv5_cat: rows 9, 10 and 8 of the
    specification's section 9.
    """

    architecture = "MBCNN"
    multiple = 8

    def __init__(self, channels: int = 64, lbf: Bands = "official", head: str = "sigmoid", fix_conv5_cat: bool = False):
        super().__init__()
        trunk, rgb = 2 * channels, 3
        self.channels, self.head = channels, head
        pre = lambda dilations: PreBlock(trunk, channels, dilations, lbf)
        pos = lambda dilations: PosBlock(trunk, channels, dilations)
        down = lambda: Conv(trunk, trunk, 3, stride=2)
        out = lambda: Conv(trunk, 4 * rgb, 3, padding=1, relu=False, slim=(True, False))
        first, last = ((rgb, False), (trunk, True)), ((trunk, True), (rgb, False))
        # In the order of the released module, by which optimisers and oracles number the parameters.
        self.conv_func1 = Conv(4 * rgb, trunk, 3, padding=1, slim=(False, True))
        self.pre_block1 = pre(FINE)
        self.conv_func2 = down()
        self.pre_block2 = pre(FINE)
        self.conv_func3 = down()
        self.pre_block3 = pre(COARSE)
        self.global_block1 = GlobalBlock(trunk)
        self.pos_block1 = pos(COARSE)
        self.conv1 = out()
        self.conv_func4 = Conv(rgb + trunk, trunk, 1, segments=first)
        self.global_block2 = GlobalBlock(trunk)
        self.pre_block4 = pre(FINE)
        self.global_block3 = GlobalBlock(trunk)
        self.pos_block2 = pos(FINE)
        self.conv2 = out()
        # Fed [trunk, RGB] but declared the other way round in the release: the RGB's columns move with the width.
        self.conv_func5 = Conv(rgb + trunk, trunk, 1, segments=last if fix_conv5_cat else first)
        self.global_block4 = GlobalBlock(trunk)
        self.pre_block5 = pre(FINE)
        self.global_block5 = GlobalBlock(trunk)
        self.pos_block3 = pos(FINE)
        self.conv3 = out()

    def forward(self, x: Tensor, width: float = 1.0) -> list[Tensor]:
        half = F.pixel_unshuffle(x, 2)
        t1 = self.pre_block1(self.conv_func1(half, width), width)
        t2 = self.pre_block2(self.conv_func2(F.pad(t1, (1, 1, 1, 1)), width), width)
        t3 = self.pre_block3(self.conv_func3(F.pad(t2, (1, 1, 1, 1)), width), width)
        t3 = self.pos_block1(self.global_block1(t3, width), width)
        o4 = self.output(self.conv1(t3, width))
        u2 = self.global_block2(self.conv_func4(torch.cat([o4, t2], 1), width), width)
        u2 = self.pos_block2(self.global_block3(self.pre_block4(u2, width), width), width)
        o2 = self.output(self.conv2(u2, width))
        u1 = self.global_block4(self.conv_func5(torch.cat([t1, o2], 1), width), width)
        u1 = self.pos_block3(self.global_block5(self.pre_block5(u1, width), width), width)
        return [o4, o2, self.output(self.conv3(u1, width), x)]

    def output(self, maps: Tensor, image: Tensor | None = None) -> Tensor:
        """[B, 12, H, W] -> [B, 3, 2H, 2W]; only the finest output can stand on the image."""
        head = "sigmoid" if self.head == "residual" and image is None else self.head
        return finish(F.pixel_shuffle(maps, 2), head, image)

    def slice(self, width: float, fold: bool = True) -> SubNetwork:
        """One width as a plain network; fold: filter, second convolution and factor of each pre-block in one."""
        sub = SubNetwork(self, width)
        for block in sub.modules() if fold else ():
            if isinstance(block, PreBlock):
                block.fold()
        return sub
