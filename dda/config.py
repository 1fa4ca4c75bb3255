"""What an experiment of this project consists of; sections refer to the paper's specification in README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Fraction, Index, NonNegative, Positive, Share
from common.run import Runtime

from dda.data import Data


@dataclass(frozen=True)
class Network:
    """The parameter-shared network."""

    name: Literal["mbcnn", "dmcnn"] = "dmcnn"
    """architecture"""
    channels: Count | None = None
    """nFilters of MBCNN (64) or channels of DMCNN's first branch (32); smaller for demonstrations"""
    lbf: Literal["official", "idct"] = "official"
    """band-pass filter of MBCNN: ReLU(K·θ) of the release, or the original's inverse DCT (section 9, row 9)"""
    head: Literal["sigmoid", "linear", "residual"] = "sigmoid"
    """output: the release's sigmoid, the original MBCNN's linear one (row 10), or a demonstration's residual head"""
    fix_conv5_cat: bool = False
    """let conv_func5 of MBCNN use the same columns for RGB at every width (row 8)"""
    start: Literal["torch", "he"] = "torch"
    """initialisation: PyTorch's own as in the release, or He's, which lets a short training of DMCNN get further"""
    weights: str | None = None
    """weights to start from, ours or the release's"""


@dataclass(frozen=True)
class Prior:
    """The moiré prior (section 2.1)."""

    mode: Literal["paper", "official_train", "official_test"] = "paper"
    """exact arithmetic; sums modulo 256 (row 1); or the release's test path, negated and channel-swapped too (row 2)"""
    relative_d0: bool = False
    """let the cut-off grow with the tile's shorter side instead of keeping 5 bins (row 6)"""


@dataclass(frozen=True)
class Tiles:
    """Sizes of tiles [height, width] in pixels (section 2.2)."""

    train: tuple[Count, Count] = (512, 512)
    """tiles that training ranks and crops from"""
    test: tuple[Count, Count] = (512, 512)
    """tiles of inference"""
    class_overlap: bool = True
    """of 8 training tiles, rank 5 is in the middle and in the wide class, as in the release (row 15)"""
    blend: Index = 0
    """pixels that inference's tiles share at least and fade over; 0 puts them side by side, as the release does"""


@dataclass(frozen=True)
class Routing:
    """Which tile goes through which width (sections 2.7 and 10)."""

    kind: Literal["rank", "released", "threshold", "budget", "fixed", "random", "inverse", "oracle"] = "rank"
    """rank within the image (the method), the release's (row 3), global thresholds, a budget, one width, or controls"""
    fixed: Index = 0
    """position in `widths` of the width that every tile gets (fixed)"""
    budget: Fraction = 0.5
    """multiply-adds of an image, as a share of the widest network on all tiles (budget)"""
    calibration: Count = 64
    """training images whose scores set the thresholds (threshold)"""


@dataclass(frozen=True)
class Stage:
    """One training stage: its crops, batches and schedule (section 4)."""

    epochs: Index = 0
    """epochs at most; 0 leaves the stage out"""
    patch: Count = 128
    """side of the random crop of a tile, pixels"""
    batch_size: Count = 16
    """crops of a step, over all processes"""
    lr: Positive = 1e-4
    """first learning rate of Adam"""
    schedule: Literal["plateau", "multistep", "linear", "constant"] = "plateau"
    """halving on a flat validation PSNR, steps at the milestones, a fall to zero over all steps, or nothing"""
    plateau: Literal["intended", "official"] = "intended"
    """the halving rule, or the release's with its ratio upside down (row 7)"""
    milestones: tuple[Index, ...] = (50, 100)
    """epochs, from 0, at which the rate falls (multistep)"""
    decay: Positive = 0.1
    """factor by which it falls (multistep)"""
    validate_every: Count = 1
    """epochs between evaluations; the release evaluates after each"""


@dataclass(frozen=True)
class Config:
    """One experiment: a network, its widths, and how tiles are scored, classed, trained on and routed."""

    seed: Index = 1111
    """seed of initialisation, order, crops and random routing; the release's is 1111"""
    data: Data = field(default_factory=Data)
    """Data."""
    network: Network = field(default_factory=Network)
    """Network."""
    widths: tuple[Share, ...] = (0.75, 0.5, 0.25)
    """falling width multipliers of class 1 (most moiré), 2 and 3; a single one trains a plain network on all tiles"""
    prior: Prior = field(default_factory=Prior)
    """Prior."""
    tiles: Tiles = field(default_factory=Tiles)
    """Tiles."""
    routing: Routing = field(default_factory=Routing)
    """Routing."""
    asl: NonNegative = 0.25
    """weight of the advanced Sobel loss at each scale: 0.25 for MBCNN, 0 for DMCNN (section 2.6)"""
    rounding: Literal["floor", "round"] = "floor"
    """how a result becomes 8 bits for scores and files: cut off as in the release, or to the nearest"""
    first: Stage = field(default_factory=lambda: Stage(epochs=800))
    """First stage."""
    second: Stage = field(default_factory=Stage)
    """Second stage, from the best weights of the first with a new optimiser."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
