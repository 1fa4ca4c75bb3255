"""What an experiment of this project consists of; sections refer to the paper's specification in README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Index, NonNegative, Positive, Share
from common.labelled import Labelled
from common.run import Runtime


@dataclass(frozen=True)
class Teacher:
    """The real network whose answers are the labels (section 2.9)."""

    name: str = "resnet34_teacher"
    """network, one of rebnn.models.TEACHERS"""
    checkpoint: str | None = None
    """trained weights, torchvision's or ours; without them stage `teacher` trains the network"""
    epochs: Count = 90
    """epochs of stage `teacher` (ours; the paper takes torchvision's weights)"""
    lr: Positive = 1e-3
    """first learning rate of stage `teacher`, Adam with linear decay (ours)"""
    half: bool = True
    """answer in bf16 on a GPU that has it; fp32 everywhere else"""


@dataclass(frozen=True)
class Student:
    """The binary network."""

    name: str = "resnet18"
    """network, one of rebnn.models.STUDENTS"""
    channels: tuple[Count, ...] | None = None
    """output channels of its stages, where the network lets one choose"""
    pad_value: Literal[-1, 0, 1] = 0
    """what stands beyond the border of a map of signs: 0 as in the paper, ±1 as deployment engines have it"""


@dataclass(frozen=True)
class Binary:
    """How weights become binary in step 2 (sections 2.1 to 2.6)."""

    gamma: Literal["paper", "released", "released_intended", "constant", "max", "none"] = "paper"
    """rule of the balanced parameter γ; `none` is a learned scale without reconstruction loss"""
    gamma_value: NonNegative = 1e-4
    """γ of the rule `constant` (RBONN and IDa-Det: 1e-4)"""
    binarizer: Literal["auto", "paper", "released", "reactnet", "bidet"] = "auto"
    """gradients of the binariser: the paper's, those the release executes (level 0.02, no mask), or ReActNet's
    or BiDet's scale mean|w| (need gamma none); auto is `released` with the rules of that name, else `paper`"""
    alpha_init: Literal["cam", "randn"] = "cam"
    """the scale at first: mean|w| of step 1, or the release's N(0, 1)"""


@dataclass(frozen=True)
class Step:
    """Adam with linear decay for one of the two steps (section 4)."""

    epochs: Index = 256
    """epochs; 0 leaves step 2 out"""
    lr: Positive = 1e-3
    """learning rate of the first epoch; falls to lr/epochs in the last"""
    weight_decay: NonNegative = 0.0
    """coupled L2 on convolutions and learned biases"""
    start: str | None = None
    """weights to start from: for step 2 those of step 1, by default what step 1 of this run left"""


@dataclass(frozen=True)
class Loss:
    """The loss on the teacher's answers; labels are not used by the paper."""

    label_weight: NonNegative = 0.0
    """weight of the label-smoothed cross entropy, which the release builds and does not use"""
    label_smoothing: Share = 0.1
    """ε of that cross entropy"""


@dataclass(frozen=True)
class Light:
    """Colour noise of the ImageNet recipe (section 9, row 8)."""

    std: NonNegative = 0.1
    """standard deviation of the three draws of an image"""
    scale: NonNegative = 1.0
    """1 as released, where it changes a byte by 0 or -1; 255 is what was meant"""


@dataclass(frozen=True)
class Config:
    """One experiment: a teacher, and a student that becomes binary in two steps."""

    seed: Index = 0
    """seed of initialisation, order and augmentation"""
    data: Labelled = field(default_factory=Labelled)
    """Data."""
    teacher: Teacher = field(default_factory=Teacher)
    """Teacher."""
    student: Student = field(default_factory=Student)
    """Student."""
    binary: Binary = field(default_factory=Binary)
    """Binarisation."""
    step1: Step = field(default_factory=lambda: Step(weight_decay=1e-5))
    """Step 1: binary activations, real weights."""
    step2: Step = field(default_factory=Step)
    """Step 2: binary weights too."""
    decay_norm_bias: bool = True
    """decay the learned biases with the convolutions, as the release does (section 9, row 9)"""
    loss: Loss = field(default_factory=Loss)
    """Loss."""
    light: Light = field(default_factory=Light)
    """Colour noise."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
