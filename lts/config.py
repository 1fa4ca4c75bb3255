"""What an experiment of this project consists of; sections refer to the table in README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Fraction, Index, NonNegative, Positive, Share
from common.labelled import Labelled
from common.run import Runtime


@dataclass(frozen=True)
class Model:
    """The network."""

    name: str = "resnet20"
    """network, one of lts.models.MODELS"""
    width: Count | None = None
    """channels of the first layer in place of 16 (resnet20, digits)"""


@dataclass(frozen=True)
class Float:
    """Stage `float`: the full-precision network that quantisation starts from."""

    checkpoint: str | None = None
    """trained weights, ours, the release's, torchvision's; without them stage `float` trains the network"""
    epochs: Count | None = None
    """epochs of stage `float`; by default those of the quantised stage"""
    milestones: tuple[Index, ...] | None = None
    """epochs (1-based) after which its rate falls; by default those of the quantised stage"""


@dataclass(frozen=True)
class Quant:
    """How weights and layer inputs are quantised (sections 2.1 and 2.2)."""

    weight_bits: Count = 2
    """bits of a weight, 1 to 8, or 32 for none"""
    activation_bits: Count = 2
    """bits of a layer's input, 1 to 8, or 32 for none"""
    quantiser: Literal["lts", "lsq", "dorefa"] = "lts"
    """learned bounds (the paper's baseline), LSQ's learned step, or DoReFa's fixed grid"""
    first_last: Literal["same", "8bit", "fp"] = "same"
    """bits of the first and the last layer; the released networks treat them as all others"""
    overrides: tuple[str, ...] = ()
    """bits of single layers as LAYER=W/A, e.g. [conv1=8/8, fc=32/32]"""


@dataclass(frozen=True)
class Freeze:
    """The lottery ticket scratcher (section 2.3)."""

    mode: Literal["none", "constant", "linear", "sine", "cosine", "step"] = "linear"
    """growth of the threshold; none is the quantisation-aware baseline (cosine and step are not in the paper)"""
    warmup: Index = 80
    """epochs without freezing (E_w)"""
    ema: Fraction = 0.99
    """weight of the past in the running distance (β)"""
    rate: Positive = 0.1
    """threshold of the mode constant, as a share of the gap between two levels (r0)"""
    frozen: Literal["latent", "level"] = "latent"
    """a frozen weight keeps its value, whose level may move with the bounds (released code), or its level"""
    bounds_gradient: bool = True
    """frozen weights still teach the bounds (released code); without, wholly frozen output rows cost no gradient"""
    clean_start: bool = False
    """take the first distances as they are; the release compares the first levels with 0"""
    record_steps: bool = False
    """keep the step at which each weight froze (4 bytes a weight), as the release does"""
    record_counts: bool = False
    """keep the frozen weights of each layer after every step, which the control `random` can follow"""
    select: Literal["rule", "random"] = "rule"
    """freeze what has settled (the paper), or as many at the same times at random (control)"""
    counts: str | None = None
    """checkpoint of a quantised stage with record_counts, which the control follows"""
    legacy_resume: bool = False
    """on resuming, count the freezing steps from the start again, as the release does"""


@dataclass(frozen=True)
class Optim:
    """SGD for weights and BatchNorm, Adam for the quantisers, both with a step schedule (section 2.5)."""

    lr: Positive = 0.1
    """learning rate of SGD"""
    lr_quantiser: Positive = 1e-4
    """learning rate of Adam (bounds or steps)"""
    momentum: NonNegative = 0.9
    """momentum of SGD"""
    weight_decay: NonNegative = 1e-4
    """weight decay of SGD, on BatchNorm and biases too"""
    epochs: Count = 400
    """epochs of the quantised stage (E)"""
    milestones: tuple[Index, ...] = (100, 200, 300)
    """both rates fall after each of these epochs (1-based)"""
    decay: Positive = 0.1
    """factor by which they fall"""
    sync_batchnorm: bool = False
    """BatchNorm over all processes (ImageNet recipe; CUDA only)"""


@dataclass(frozen=True)
class Config:
    """One experiment: a network, how it is quantised, and how its weights are frozen."""

    seed: Index = 0
    """seed of initialisation, order and augmentation"""
    data: Labelled = field(default_factory=lambda: Labelled(batch_size=128))
    """Data."""
    smallest_crop: Share = 0.08
    """smallest area of a random crop, as a share of the image (ImageNet; 0.2 for ResNet-18)"""
    model: Model = field(default_factory=Model)
    """Network."""
    float: Float = field(default_factory=Float)
    """Full precision."""
    quant: Quant = field(default_factory=Quant)
    """Quantisation."""
    freeze: Freeze = field(default_factory=Freeze)
    """Freezing."""
    optim: Optim = field(default_factory=Optim)
    """Optimisation."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
