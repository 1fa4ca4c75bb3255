"""LAB-Net and the frozen VGG-16 of its perceptual loss; parameter names are those of the release (section 8)."""

from pathlib import Path
from typing import Literal

from common.errors import CheckpointError, InputError
from common.weights import fit_weights, load_weights, read_weights

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labnet.method import ECA, LSA, ConvLayer, EcaKernel, Regions, dilate, initialise, regions

__all__ = ["LABNet", "VGGFeatures", "channels_of", "fit_weights", "load_weights"]

DILATIONS = ((1, 4, 16), (2, 8, 32), (4, 16, 64))
VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


class BasicBlock(nn.Module):
    """Three stages of parallel dilated convolutions in cascade, channel attention, two fusions (section 2).

    A stage: three 3x3 layers with widths c/2, c, 3c/2 and growing dilation, concatenated, fused by a 1x1 layer.
    Ablations: eca `none`; widths `equal` (c each); dilation `sequential` (each layer takes the one before it).
    reach: dilations above it are cut to it, for pictures of less than 65 pixels (ours).
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        channels: int,
        eca: EcaKernel = "learned",
        widths: Literal["growing", "equal"] = "growing",
        dilation: Literal["parallel", "sequential"] = "parallel",
        reach: int = 64,
        linear: bool = False,
    ):
        super().__init__()
        self.sequential = dilation == "sequential"
        wide = (channels // 2, channels, 3 * channels // 2) if widths == "growing" else (channels,) * 3
        for stage, dilations in enumerate(DILATIONS, 1):
            before = cin if stage == 1 else channels
            for branch, (width, d) in enumerate(zip(wide, dilations), 1):
                setattr(self, f"conv{stage}{branch}", ConvLayer(before, width, 3, min(d, reach)))
                before = width if self.sequential else before
            setattr(self, f"conv{stage}4", ConvLayer(sum(wide), channels, 1))
        self.conv41 = ConvLayer(3 * channels, channels, 1)
        self.conv42 = ConvLayer(channels, cout, 3, linear=linear)
        self.channel_attention = ECA(3 * channels, eca) if eca != "none" else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, cin, H, W] -> [B, cout, H, W]."""
        stages = []
        for stage in (1, 2, 3):
            x = self.stage(x, stage)
            stages.append(x)
        together = torch.cat(stages, 1)
        if self.channel_attention is not None:
            together = self.channel_attention(together)
        return self.conv42(self.conv41(together))

    def stage(self, x: Tensor, number: int) -> Tensor:
        """One stage of the cascade, [B, *, H, W] -> [B, c, H, W]."""
        maps = []
        for branch in (1, 2, 3):
            maps.append(getattr(self, f"conv{number}{branch}")(maps[-1] if self.sequential and maps else x))
        return getattr(self, f"conv{number}4")(torch.cat(maps, 1))


class LABNet(nn.Module):
    """Two branches of four blocks, one for L and one for a and b, that read each other before every fusion (section 2).

    channels: width c, 32 in the paper. branches `one`: a single branch predicts all channels (ablation). lsa False
    leaves the attention out. output `linear`: no LeakyReLU on the last layers. lsa_size: largest side of the
    attention's grid. ring `grid`: the mask is dilated on that grid instead of at full size. chunked: see
    method.attend. start `identity`: untrained, the network returns its input (ours; exact for values of at least 0
    or linear outputs), so a short training need not learn first to copy what is lit.
    """

    def __init__(
        self,
        channels: int = 32,
        eca: EcaKernel = "learned",
        lsa: bool = True,
        branches: Literal["two", "one"] = "two",
        widths: Literal["growing", "equal"] = "growing",
        dilation: Literal["parallel", "sequential"] = "parallel",
        output: Literal["leaky", "linear"] = "leaky",
        reach: int = 64,
        lsa_size: int = 256,
        ring: Literal["full", "grid"] = "full",
        chunked: bool = False,
        start: Literal["kaiming", "identity"] = "kaiming",
    ):
        super().__init__()
        if channels % 2:
            raise InputError(
                f"model.channels {channels} is odd; the narrowest layers have half of it, give an even one"
            )
        self.architecture = f"LAB-Net with {channels} channels"
        self.minimum, self.lsa_size, self.ring, self.two = reach + 1, lsa_size, ring, branches == "two"
        c, last = channels, output == "linear"
        block = lambda cin, cout, linear=False: BasicBlock(cin, cout, c, eca, widths, dilation, reach, linear)
        fuse = lambda: ConvLayer(2 * c if self.two else c, c, 1)
        attention = lambda: LSA(c, chunked) if lsa else None
        sides = ("l", "ab") if self.two else ("l",)
        outputs = {"l": 1, "ab": 2} if self.two else {"l": 3}
        # Registered in the release's order, which optimiser states and lists of gradients follow.
        self.convst = ConvLayer(3, 3, 3)
        for number, _ in enumerate(sides, 1):
            setattr(self, f"basicblock{number}", block(4, c))
        for stage, name in ((2, "conv12"), (3, "conv34"), (4, "conv56")):
            for number, side in enumerate(sides, 1):
                setattr(self, f"{name}_{side}", fuse())
                if stage > 2:
                    setattr(self, f"spaatt{2 * (stage - 3) + number}", attention())
                cout = c if stage < 4 else outputs[side]
                setattr(self, f"basicblock{2 * (stage - 1) + number}", block(c, cout, last and stage == 4))
        self.convfinal = ConvLayer(3, 3, 3, linear=last)
        initialise(self)
        if start == "identity":
            nn.init.dirac_(self.convfinal.conv2d.weight)
            for number, _ in zip((7, 8), sides):
                nn.init.zeros_(getattr(self, f"basicblock{number}").conv42.conv2d.weight)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the attention's grid for a picture."""
        return min(height, self.lsa_size), min(width, self.lsa_size)

    def regions(self, mask: Tensor, dilated: Tensor | None = None) -> Regions:
        """Shadow and ring for the attention of a batch of masks [B, 1, H, W] (on the CPU, or wait for the device)."""
        grid = self.grid(*mask.shape[-2:])
        if self.ring == "grid":
            mask = F.interpolate(mask, grid, mode="nearest")
            dilated = dilate(mask)
        return regions(mask, dilate(mask) if dilated is None else dilated, grid)

    def forward(self, x: Tensor, mask: Tensor, where: Regions | None = None) -> Tensor:
        """Picture [B, 3, H, W] and mask [B, 1, H, W] -> shadow-free picture [B, 3, H, W], not clipped.

        where: what `regions` gives for the masks. Errors: InputError for a picture below `minimum` pixels.
        """
        height, width = x.shape[-2:]
        if min(height, width) < self.minimum:
            raise InputError(f"a picture of {width}x{height} is too small: {self.minimum} pixels a side are needed")
        grid = self.grid(height, width)
        where = self.regions(mask) if where is None else where
        start = torch.cat([self.convst(x), mask.to(x.dtype)], 1)
        numbers = (1, 2) if self.two else (1,)
        maps = [getattr(self, f"basicblock{number}")(start) for number in numbers]
        for stage, name in ((2, "conv12"), (3, "conv34"), (4, "conv56")):
            together = torch.cat(maps, 1)
            maps = []
            for number, side in zip(numbers, ("l", "ab")):
                fused = getattr(self, f"{name}_{side}")(together)
                if stage > 2 and (attention := getattr(self, f"spaatt{2 * (stage - 3) + number}")) is not None:
                    fused = attention(fused, where, grid)
                maps.append(getattr(self, f"basicblock{2 * (stage - 1) + number}")(fused))
        return self.convfinal(torch.cat(maps, 1) + x)


class VGGFeatures(nn.Module):
    """VGG-16 up to conv5_2, frozen: four levels after their ReLU and conv5_2 before it (section 2).

    Pictures go in as they are, Lab / 255 in the place of normalised RGB. In the release the next slice's in-place ReLU
    overwrites what is compared, hence "after".
    """

    def __init__(self, widths: tuple[int, ...] = VGG_WIDTHS):
        super().__init__()
        self.features = nn.ModuleDict()
        before, layer = 3, 0
        for number, width in enumerate(widths[:12], 1):
            self.features[str(layer)] = nn.Conv2d(before, width, 3, padding=1)
            before, layer = width, layer + (3 if number in (2, 4, 7, 10) else 2)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> five maps, from full size to a sixteenth; H and W of at least 16."""
        levels = []
        for name, convolution in self.features.items():
            x = convolution(x)
            if name == "26":
                break
            x = F.relu_(x)
            if name in ("2", "7", "12", "19"):
                levels.append(x)
            if name in ("2", "7", "14", "21"):
                x = F.max_pool2d(x, 2)
        return [*levels, x]

    @classmethod
    def load(cls, path: str | Path) -> "VGGFeatures":
        """torchvision's VGG-16 for ImageNet from its file (vgg16-397923af.pth). Errors: CheckpointError."""
        network = cls()
        given = read_weights(path)
        fit_weights(network, {name: given[name] for name in network.state_dict() if name in given}, path)
        return network


def channels_of(path: str | Path) -> int:
    """The width of the LAB-Net whose weights a file holds. Errors: CheckpointError."""
    weight = read_weights(path).get("conv12_l.conv2d.weight")
    if weight is None or weight.ndim != 4:
        raise CheckpointError(f"{path} holds no weights of LAB-Net; give a file of train.py, export.py or the release")
    return len(weight)
