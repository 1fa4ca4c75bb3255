"""What an experiment of this project consists of; sections refer to README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Index, NonNegative
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
class Relations:
    """Σ over slice sets of weight · (distance · L_D + angle · L_A) (section 2)."""

    rows: NonNegative = 25.0
    """weight of the row strips; 25 in the CycleGAN runs, 2.5 with `batch: sum` in the pix2pix runs"""
    columns: NonNegative = 25.0
    """weight of the column strips"""
    patches: NonNegative = 25.0
    """weight of the patches"""
    distance: NonNegative = 1.0
    """w_d, weight of the pairwise distances"""
    angle: NonNegative = 2.0
    """w_a, weight of the triplets' angles"""
    patch_size: Count = 32
    """side of a patch, pixels"""
    patch_mode: Literal["per_image", "joint", "reference"] = "per_image"
    """patches of each image, of the whole batch, or the colour channels of the first patches (released pix2pix code)"""
    batch: Literal["mean", "sum"] = "mean"
    """over the images of a batch: mean (CycleGAN, where a batch is one image) or sum (pix2pix)"""
    duplicates: Literal["mask", "reference"] = "mask"
    """identical slices: no gradient of their angle, or the released code's of about 1e10 and its memory"""


@dataclass(frozen=True)
class Config:
    """One experiment: a pair of generators, how the teacher is trained, and what the student learns from it."""

    model: Literal["cyclegan", "pix2pix"] = "cyclegan"
    """unpaired domains with blocks of teacher and student epochs, or pairs with both in each step"""
    seed: Index = 233
    """seed of initialisation, order, crops and image pools"""
    student_gan_weight: NonNegative = 1.0
    """weight of the teacher's discriminator on the student's image: 1 in the CycleGAN runs, 0 in the pix2pix runs"""
    data: Domains = field(default_factory=Domains)
    """Data."""
    networks: Networks = field(default_factory=Networks)
    """Networks."""
    teaching: Teaching = field(default_factory=Teaching)
    """Teachers' losses."""
    teacher: Teacher = field(default_factory=Teacher)
    """Teacher."""
    relations: Relations = field(default_factory=Relations)
    """Content relationships."""
    perceptual: Perceptual = field(default_factory=Perceptual)
    """Perceptual losses."""
    optim: Optim = field(default_factory=Optim)
    """Optimisation."""
    judging: Judging = field(default_factory=Judging)
    """Evaluation."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
