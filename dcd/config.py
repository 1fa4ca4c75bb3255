"""What an experiment of this project consists of; sections refer to README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Index, NonNegative
from common.gan.data import Domains
from common.gan.settings import Judging, Networks, Optim, Perceptual, Teaching
from common.run import Runtime


@dataclass(frozen=True)
class Teacher:
    """The teacher, when it does not come from this run."""

    checkpoint: str | None = None
    """trained generator (ours: with its discriminator); the run then trains the student alone"""
    discriminator: str | None = None
    """trained discriminator of a released generator"""
    legacy_best: bool = False
    """CycleGAN: replace the best generator when either direction improves, as the released code does"""


@dataclass(frozen=True)
class Distill:
    """L_S = style + feature + adversarial + lambda_cd · L_DCD."""

    lambda_cd: NonNegative = 1.0
    """weight of L_DCD; 0 leaves connectors and features out"""
    through: Literal["discriminator", "identity", "pooled"] = "discriminator"
    """compare connected features by the discriminator's response, directly (the baseline of the paper's argument), or
    by their channels' means as OMGD does, the student's connected to the teacher's"""
    layers: tuple[str, ...] = ()
    """modules of the generators that are compared; by default the four of section 2"""
    pairing: Literal["natural", "sorted"] = "natural"
    """connector i belongs to layer i, or to the i-th name in alphabetical order as in the released code"""
    train_teacher_connector: bool | None = None
    """whether the teacher's connectors learn; by default as in the released runs: pix2pix yes, CycleGAN no"""
    student_gan: Literal["student", "teacher_image", "none"] = "student"
    """whose image the adversarial term judges; the released CycleGAN run judges the teacher's, which teaches nothing"""
    student_gan_weight: NonNegative = 1.0
    """weight of the adversarial term"""
    perceptual_weights: Literal["intended", "as_script"] = "intended"
    """as_script exchanges the weights of style and feature, as the released scripts do by their list's order"""
    ssim: NonNegative = 0.0
    """weight of 1 - SSIM with the teacher's image (OMGD: 10)"""
    tv: NonNegative = 0.0
    """weight of the image's total variation (OMGD: 1e-5)"""


@dataclass(frozen=True)
class Segmentation:
    """The mIoU of photographs made from Cityscapes' colour maps; measured where both files are given (section 6)."""

    weights: str | None = None
    """file of DRN-D-105's weights"""
    table: str | None = None
    """file of lines `index trainIds-path photo-path`: which label map belongs to which image"""


@dataclass(frozen=True)
class Config:
    """One experiment: a pair of generators, how the teacher is trained, and what the student learns from it."""

    model: Literal["cyclegan", "pix2pix"] = "cyclegan"
    """unpaired domains with blocks of teacher and student epochs, or pairs with both in each step"""
    seed: Index = 233
    """seed of initialisation, order, crops and image pools"""
    data: Domains = field(default_factory=Domains)
    """Data."""
    networks: Networks = field(default_factory=Networks)
    """Networks."""
    teaching: Teaching = field(default_factory=Teaching)
    """Teachers' losses."""
    teacher: Teacher = field(default_factory=Teacher)
    """Teacher."""
    distill: Distill = field(default_factory=Distill)
    """Student's losses."""
    perceptual: Perceptual = field(default_factory=Perceptual)
    """Perceptual losses."""
    optim: Optim = field(default_factory=Optim)
    """Optimisation."""
    judging: Judging = field(default_factory=Judging)
    """Evaluation."""
    segmentation: Segmentation = field(default_factory=Segmentation)
    """mIoU."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
