"""What an experiment of this project consists of; sections refer to the paper's specification in README.md.

The paper's body was not available: fields marked [R] are a reconstruction, each with its alternatives as values.
"""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Fraction, Index, NonNegative, Positive, Share
from common.run import Runtime

from winograd3d.convolution import Mode, Points
from winograd3d.data import Clips
from winograd3d.masks import Scope
from winograd3d.method.lowrank import View
from winograd3d.method.pruning import Granularity, Score


@dataclass(frozen=True)
class Model:
    """The network that is pruned."""

    name: str = "r3d18"
    """network, one of winograd3d.models.MODELS: c3d, r3d18 (the assumed pair [R]) or digits3d"""
    width: Count | None = None
    """channels of the first convolution in place of the network's own; the others follow in proportion"""
    init: str | None = None
    """weights from which stage pretrain starts (Sports-1M, Kinetics-400, ours); without them from random ones"""
    checkpoint: str | None = None
    """the trained network to be pruned; without it stage pretrain trains one"""


@dataclass(frozen=True)
class Winograd:
    """How a layer's weight lives in the Winograd domain (sections 2.1 to 2.4)."""

    mode: Mode = "residual"
    """W0 + P·Q with frozen W0 [R], factor: P·Q alone [R], vanilla: the whole Ŵ, spatial: K (baselines)"""
    rank: Count = 16
    """s, the inner size of P·Q [R]; 27 holds every transformed 3x3x3 kernel"""
    tile: Literal["2", "4", "2x4x4", "1x2x2", "1x4x4", "auto"] = "2"
    """m, outputs of a tile per axis (depth x height x width); auto chooses each layer's by its size"""
    points: Points = "lavin"
    """interpolation points of m = 4: 0, ±1, ±2, or half: 0, 1, -1, 1/2, -2, with half the rounding error"""
    view: View = "kernel"
    """matrix whose columns are positions (C_oC_i x n) or, filter, an input channel's positions (C_o x C_i·n) [R]"""
    precondition: bool = False
    """move Ŵ by (GGᵀ)^⊗3 D, as a step of the spatial kernel would (section 2.5)"""


@dataclass(frozen=True)
class Prune:
    """What is removed, by what measure, and how fast (sections 2.6, 2.7)."""

    sparsity: Fraction = 0.5
    """ρ_f, share of the columns removed in the end"""
    first: Fraction = 0.0
    """ρ_0, share removed at the start of stage 1"""
    granularity: Granularity = "position"
    """what a column is [R]: position, channel (ragged) or channel_balanced; element: unstructured zeros, a control"""
    score: Score = "taylor"
    """importance of a column [R]; l1 and l2 depend on how the transforms are scaled and mislead for m = 4"""
    beta: Fraction = 0.9
    """β, memory of the running score"""
    scope: Scope = "layer"
    """rank columns within each layer, or all of them jointly by S/‖S‖₂"""
    ramp: Share = 0.7
    """share of stage 1 after which ρ_f is reached, by a cubic [R]"""


@dataclass(frozen=True)
class Stage:
    """Length and learning rate of one stage."""

    epochs: Count = 20
    """epochs"""
    lr: Positive = 1e-3
    """learning rate at the total batch size; scale it linearly with that"""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine to zero over the stage, × `decay` after each of `decay_epochs`, or constant"""
    decay_epochs: tuple[Index, ...] = (20, 40)
    """the rate of schedule step falls after each of these epochs (1-based)"""
    decay: Positive = 0.1
    """factor by which it falls"""


@dataclass(frozen=True)
class Optim:
    """The optimiser of all stages."""

    optimiser: Literal["sgd", "adam"] = "sgd"
    """sgd with momentum, or adam (moving digits)"""
    momentum: NonNegative = 0.9
    """momentum of SGD"""
    weight_decay: NonNegative = 5e-4
    """weight decay on every trained parameter, on masked columns too"""
    decay_factors: bool = True
    """weight decay on P and Q; it draws residual towards W0 and factor towards 0"""
    head_lr: Positive = 1.0
    """factor on the rate of the last linear layer (10 in the C3D recipe of the popular PyTorch code)"""
    clip: NonNegative = 40.0
    """largest norm of the gradient, 0 for none (mmaction2)"""
    keep_momentum: bool = True
    """stage 2 goes on with the optimiser's state of stage 1 [R]"""


@dataclass(frozen=True)
class Config:
    """One experiment: a network, its Winograd-domain weights, what is pruned, and the three stages."""

    seed: Index = 0
    """seed of initialisation, order and augmentation"""
    data: Clips = field(default_factory=Clips)
    """Data."""
    model: Model = field(default_factory=Model)
    """Network."""
    winograd: Winograd = field(default_factory=Winograd)
    """Winograd domain."""
    prune: Prune = field(default_factory=Prune)
    """Pruning."""
    pretrain: Stage = field(default_factory=lambda: Stage(45, 1e-3, "step"))
    """Stage pretrain, the dense network: C3D's recipe of mmaction2 on UCF101, at batch 240 (section 4)."""
    stage1: Stage = field(default_factory=lambda: Stage(20, 1e-3, "cosine"))
    """Stage 1, weights and masks [R]."""
    stage2: Stage = field(default_factory=lambda: Stage(30, 1e-3, "cosine"))
    """Stage 2, weights under the fixed masks [R]."""
    optim: Optim = field(default_factory=Optim)
    """Optimisation."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
