"""What an experiment of this project consists of; sections refer to the paper's specification in README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Fraction, Index, NonNegative, Positive, Share
from common.labelled import Labelled
from common.run import Runtime


@dataclass(frozen=True)
class Data(Labelled):
    """A data set of labelled images, how it is augmented and how it is fed."""

    name: Literal["canvas", "cifar10", "cifar100", "imagenet"] = "imagenet"
    """canvas (digits on a noisy 16x16 canvas, section 11), CIFAR, or class folders root/{train,val}/CLASS"""
    batch_size: Count = 1024
    """images of a step, over all processes (the release: 4 x 256)"""
    size: Count | None = None
    """pixels a side of class folders' images in the network; by default 224"""
    randaugment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's augmentation string for class folders (the release's); none switches it off"""
    erasing: Fraction = 0.0
    """probability of random erasing for class folders; 0 is what the release does, 0.25 what DeiT does"""
    repeats: Count = 1
    """augmented views of an image in an epoch (repeated augmentation); 1 is what the release does, 3 what DeiT does"""
    drop_last: bool = True
    """leave out the last batch of an epoch if it is smaller; otherwise it is cut to an even number for every process"""


@dataclass(frozen=True)
class Model:
    """The network in training."""

    name: str = "deit_tiny_patch16_224"
    """network of smmix.models or any ViT, DeiT, CaiT, PVTv2 or Swin of timm"""
    drop_path: Fraction = 0.1
    """rate of stochastic depth"""
    start: str | None = None
    """weights to fine-tune from; heads of another class count are left out, position embeddings are resized"""
    score: Literal["image_queries", "class_row", "rollout", "mixed_heads"] = "image_queries"
    """attention score: mean over image queries (release), the class token's row, rollout, or CaiT's mixed heads"""
    score_layers: Count = 1
    """last blocks whose scores are averaged; the release takes the last one"""
    shared_head: bool = False
    """region tokens use the class head in place of a head of their own"""
    unmixed_fp32: bool = False
    """compute the un-mixed pass in fp32 under bf16, as the release does outside autocast"""


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed (section 2) and what its losses weigh."""

    method: Literal["smmix", "none", "mixup", "cutmix", "mixup_cutmix", "transmix"] = "smmix"
    """the paper's, or a baseline"""
    prob: Fraction = 1.0
    """probability that a batch is mixed at all (the release parses it and ignores it)"""
    switch_prob: Fraction = 0.5
    """probability of region mixing (smmix) or CutMix (mixup_cutmix) rather than Mixup"""
    mixup_alpha: Positive = 0.8
    """both parameters of Mixup's beta distribution"""
    cutmix_alpha: Positive = 1.0
    """both parameters of CutMix's and TransMix's beta distribution"""
    smoothing: Fraction = 0.1
    """label smoothing"""
    low: Fraction = 0.25
    """smallest side of a region as a share of the grid's"""
    high: Fraction = 0.75
    """largest side of a region as a share of the grid's"""
    grid: tuple[Count, Count] | None = None
    """rows and columns of tokens; by default inferred from the number of scores"""
    cut: Literal["max", "min", "random"] = "max"
    """which region of the source is cut"""
    paste: Literal["min", "max", "random"] = "min"
    """which region of the target is replaced"""
    per_pair: bool = False
    """each pair of images draws its own side; otherwise one side for the batch (release)"""
    label: Literal["area", "attention"] = "area"
    """weight of the own label: its area (release), or the mean of area and attention share as TransMix does"""
    weight_cls: NonNegative = 1.0
    """weight of the mixed cross entropy of the class token"""
    weight_fine: NonNegative = 1.0
    """weight of the region losses"""
    weight_con: NonNegative = 1.0
    """weight of the consistency with the un-mixed predictions"""
    mix_probabilities: bool = False
    """mix un-mixed probabilities in the consistency target; the release mixes logits"""
    draws: Literal["rank", "batch"] = "rank"
    """each process and micro-batch draws branch and side for itself (release), or one draw serves the whole batch"""
    zero_unused: bool = False
    """give the token head a zero gradient on Mixup steps, so that momentum and decay act as under torch 1.7"""


@dataclass(frozen=True)
class Optim:
    """AdamW, cosine with warm-up (section 4)."""

    lr: Positive = 5e-4
    """learning rate for `lr_batch` images"""
    lr_batch: Count | None = 512
    """batch size that lr is for, which scales with the real one; none: lr is meant as it is"""
    min_lr: NonNegative = 1e-5
    """learning rate that the cosine ends at"""
    warmup_lr: NonNegative = 1e-6
    """learning rate that the warm-up starts at"""
    warmup: Index = 5
    """epochs of warm-up"""
    epochs: Count = 300
    """epochs"""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """decay of AdamW's moments"""
    eps: Positive = 1e-8
    """AdamW's epsilon"""
    weight_decay: NonNegative = 0.05
    """decoupled weight decay; none on biases, norms and what the network excludes"""
    clip: Positive | None = None
    """largest norm of the gradient; the release does not clip"""
    ema: Share | None = None
    """decay of a mean of the weights, evaluated beside them (the release builds one and never updates it)"""


@dataclass(frozen=True)
class Config:
    """One experiment: a network, how its batches are mixed, and how it is trained."""

    seed: Index = 0
    """seed of initialisation, order, augmentation and mixing"""
    data: Data = field(default_factory=Data)
    """Data."""
    model: Model = field(default_factory=Model)
    """Network."""
    mix: Mix = field(default_factory=Mix)
    """Mixing."""
    optim: Optim = field(default_factory=Optim)
    """Optimisation."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
