"""What an experiment of this project consists of; sections refer to the table of README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Fraction, Index, NonNegative, Positive
from common.run import Runtime


@dataclass(frozen=True)
class Data:
    """Shadow, mask and shadow-free pictures, and how they are augmented (sections 4 and 5)."""

    name: Literal["photographs", "triplets"] = "triplets"
    """triplets of a set on disk, or shadows cast on lit photographs"""
    root: str | None = None
    """folder of the set (ISTD, SRD: train_A …) or of lit photographs; without it those inside scikit-image"""
    free: Literal["original", "adjusted"] = "original"
    """ground truth of ISTD (C) or the adjusted one of ISTD+ (C_fixed_official)"""
    count: Count = 400
    """photographs: training pictures in an epoch"""
    test_count: Count = 24
    """photographs: test pictures"""
    picture: Count = 256
    """photographs: side in pixels of the crops that shadows are cast on"""
    longest: Count = 800
    """photographs: longest side in pixels that those of a folder are shrunk to"""
    whole: bool = False
    """photographs: test on whole photographs in place of crops"""
    linear: bool = False
    """photographs: cast shadows in linear light in place of sRGB values"""
    limit: Index = 0
    """triplets: use only the first ones of either side; 0 for all"""
    validation: Fraction = 0.0
    """share of the training set kept for choosing best.pt; 0 chooses by the training loss, as the release does"""
    load_size: Count = 256
    """smallest short side in pixels that a picture is resized to (loadSize of the release)"""
    upper: Count = 480
    """short sides stay below this many pixels"""
    crop: Count = 256
    """side of the training crop in pixels (fineSize of the release)"""
    test_size: tuple[Count, Count] | None = (640, 480)
    """width and height that test pictures are resized to; null keeps theirs"""
    train_threshold: Fraction = 0.5
    """mask levels / 255 above it are shadow in training"""
    test_threshold: Fraction = 0.9
    """the same in testing"""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "nearest"
    """how photographs are resized and rotated; masks are always nearest"""
    fill: Literal["zero", "ignored"] = "zero"
    """corners that rotation opens: zeros that count, as in the release, or neutral grey that no loss sees"""
    turned: Literal["stretched", "swapped"] = "stretched"
    """a picture turned by 90 degrees gets the unturned size, as in the release, or its own"""
    offsets: Literal["official", "all"] = "official"
    """whether the last crop offset is drawn, which the release never does"""
    batch_size: Count = 2
    """pictures of a step, over all processes"""
    workers: Index = 0
    """processes that prepare pictures"""
    resident: bool = False
    """triplets: keep decoded pictures in memory"""


@dataclass(frozen=True)
class Model:
    """The network (section 2) and its ablations."""

    channels: Count = 32
    """width c; 933,355 parameters at 32"""
    space: Literal["lab", "rgb"] = "lab"
    """colour space of input and output"""
    lab: Literal["8bit", "float", "centred"] = "8bit"
    """OpenCV's 8-bit Lab / 255, the same unquantised, or that with a and b around 0"""
    eca: Literal["learned", "laplacian-learned", "laplacian-fixed", "none"] = "learned"
    """high-pass kernels of the channel attention (section 9), or no channel attention"""
    lsa: bool = True
    """local spatial attention"""
    lsa_size: Count = 256
    """largest side of its grid; 256 for ISTD, 128 for SRD"""
    ring: Literal["full", "grid"] = "full"
    """dilate the mask at full size, as the release does, or on the attention's grid"""
    chunked: bool = False
    """attention in explicit blocks of bounded memory in place of the fused operator"""
    branches: Literal["two", "one"] = "two"
    """an L and an AB branch, or one for all channels"""
    widths: Literal["growing", "equal"] = "growing"
    """widths of parallel layers: c/2, c, 3c/2, or c each"""
    dilation: Literal["parallel", "sequential"] = "parallel"
    """dilated layers side by side or one after another"""
    reach: Count = 64
    """larger dilations are cut to it, for pictures below 65 pixels (ours)"""
    output: Literal["leaky", "linear"] = "leaky"
    """activation of the last layers (section 9)"""
    start: Literal["kaiming", "identity"] = "kaiming"
    """initial weights: the paper's, or last layers that return the input until they are trained (ours)"""


@dataclass(frozen=True)
class Loss:
    """L = P + 10 G + 100 M (section 2)."""

    perceptual: NonNegative = 1.0
    """weight of P"""
    gradient: NonNegative = 10.0
    """weight of G, Sobel responses"""
    squared: NonNegative = 100.0
    """weight of M, the mean squared error"""
    vgg: str | None = None
    """torchvision's vgg16-397923af.pth; without it P has its first level alone, the pictures themselves"""


@dataclass(frozen=True)
class Optim:
    """Adam with a flat and a falling part (section 4)."""

    lr: Positive = 2e-4
    """learning rate"""
    beta1: Fraction = 0.9
    """first momentum"""
    beta2: Fraction = 0.999
    """second momentum"""
    flat: Index = 50
    """epochs at the full rate"""
    decay: Index = 250
    """epochs of the line towards 0"""


@dataclass(frozen=True)
class Evaluation:
    """Testing (section 6)."""

    every: Index = 0
    """epochs between pictures of samples/ and, with a validation set, its scores; 0 for the last epoch only"""
    truncate: bool = False
    """cut levels off to 8 bits as the release does, in place of rounding"""
    paste: bool = False
    """take the lit pixels from the input; the release predicts all"""
    baselines: bool = True
    """also score the input itself and the classical relight"""
    protocols: tuple[Literal["256_d50", "256_d65", "full_d50", "full_d65"], ...] = ("256_d50", "256_d65", "full_d50")
    """sizes at which pictures are compared and white points of Lab; 256_d50 is the field's script"""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: Index = 0
    """seed of initialisation, order, augmentation and synthetic training shadows"""
    data: Data = field(default_factory=Data)
    """Data."""
    model: Model = field(default_factory=Model)
    """Network."""
    loss: Loss = field(default_factory=Loss)
    """Loss."""
    optim: Optim = field(default_factory=Optim)
    """Optimisation."""
    eval: Evaluation = field(default_factory=Evaluation)
    """Testing."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
