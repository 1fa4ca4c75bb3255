"""What an experiment of this project consists of; sections refer to the paper's specification in README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Index, NonNegative, Positive, Share
from common.labelled import Labelled
from common.run import Runtime


@dataclass(frozen=True)
class Teacher:
    """The network that knows."""

    name: str = "resnet32x4"
    """network, one of kcd.models.MODELS"""
    width: Count | None = None
    """base width of a CIFAR resnet in place of 16 (digits)"""
    checkpoint: str | None = None
    """trained weights, ours or the release's; without them stage `teacher` trains the network"""
    epochs: Count | None = None
    """epochs of stage `teacher`; by default those of the student"""


@dataclass(frozen=True)
class Student:
    """The network that learns."""

    name: str = "resnet8x4"
    """network, one of kcd.models.MODELS"""
    width: Count | None = None
    """base width of a CIFAR resnet in place of 16 (digits)"""


@dataclass(frozen=True)
class Distill:
    """total = γ·cross entropy + α·KD + β·method; what is not given comes from the method's table."""

    method: str = "kd"
    """distillation loss, one of kcd.distillers.DISTILLERS"""
    gamma: NonNegative | None = None
    """weight of the cross entropy with the labels (γ)"""
    alpha: NonNegative | None = None
    """weight of the KD term (α)"""
    beta: NonNegative | None = None
    """weight of the method's own loss (β)"""
    temperature: Positive = 4.0
    """temperature of the KD term"""
    init_epochs: Count = 30
    """epochs of stage `init` (abound, factor, fsp)"""
    crd_negatives: Count = 16384
    """negatives of a sample (CRD)"""
    crd_temperature: Positive = 0.07
    """temperature of the contrast (CRD)"""
    crd_momentum: Share = 0.5
    """momentum of the memories (CRD)"""
    crd_positives: Literal["exact", "relax"] = "exact"
    """the positive is the sample itself or any of its class (CRD)"""


@dataclass(frozen=True)
class Condense:
    """Online global value estimation and value-adaptive knowledge summary."""

    version: Literal["none", "remove", "remove+summary"] = "remove+summary"
    """plain distillation, condensation without or with the summary (the paper's full method)"""
    criterion: Literal["entropy", "random", "lowest", "loss", "margin", "teacher_entropy"] = "entropy"
    """what makes a point valuable; entropy of the student is the paper's, the rest are controls"""
    tau: Share = 0.7
    """share of the training set kept in the end (τ; `threshold` of the release)"""
    interval: Count = 40
    """epochs between condensations (T; `purification` of the release)"""
    stages: Count = 6
    """condensations until τ is reached; a constant of the release"""
    warmup: Index = 0
    """first epoch from which condensing is allowed; values are recorded all along"""
    alpha: NonNegative = 0.03
    """exponent of the visit count in the cost-aware value; a constant of the release"""
    mix_min: Share = 0.7
    """smallest weight of the kept image in a blend; a constant of the release"""
    record_scope: Literal["run", "stage"] = "run"
    """rank by all epochs since the start (released code) or since the last condensation (poster)"""
    at_last_epoch: bool = False
    """condense after the last epoch too, as the release does; alters only what is saved"""
    balance_classes: bool = False
    """keep the same share of every class (not in the paper)"""
    start_kept: str | None = None
    """text file of kept positions of an official run, one a line, to start from"""
    start_images: str | None = None
    """mix_up_data_*.pt of an official run (uint8 N x H x W x 3), to start from"""


@dataclass(frozen=True)
class Optim:
    """SGD with a step schedule, for teacher and student."""

    lr: Positive | None = None
    """learning rate; by default 0.05, or 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2"""
    momentum: NonNegative = 0.9
    """momentum of SGD"""
    weight_decay: NonNegative = 5e-4
    """weight decay on every trained parameter"""
    epochs: Count = 240
    """epochs of the student"""
    decay_epochs: tuple[Index, ...] = (150, 180, 210)
    """the rate falls after each of these epochs (1-based)"""
    decay: Positive = 0.1
    """factor by which it falls"""


@dataclass(frozen=True)
class Config:
    """One experiment: a pair of networks, a distillation loss, and how its knowledge is condensed."""

    seed: Index = 0
    """seed of initialisation, order and augmentation"""
    data: Labelled = field(default_factory=Labelled)
    """Data."""
    teacher: Teacher = field(default_factory=Teacher)
    """Teacher."""
    student: Student = field(default_factory=Student)
    """Student."""
    distill: Distill = field(default_factory=Distill)
    """Loss."""
    condense: Condense = field(default_factory=Condense)
    """Condensation."""
    optim: Optim = field(default_factory=Optim)
    """Optimisation."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
