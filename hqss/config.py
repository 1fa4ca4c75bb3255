"""What an experiment of this project consists of; sections refer to the paper's specification in README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Fraction, Index, NonNegative, Positive
from common.run import Runtime


@dataclass(frozen=True)
class Data:
    """Photographs with shadow masks, and how they are fed (section 5)."""

    name: Literal["embedded", "photos", "istd", "srd"] = "istd"
    """embedded: synthetic shadows on scikit-image's photographs; photos: on those of a folder; istd, srd: files"""
    root: str = "data"
    """folder of the data set, or of lit photographs for `photos`"""
    adjusted: bool = True
    """ISTD: take the adjusted ground truth of ISTD+ (test_C_fixed_official), as the published numbers do"""
    detected: str | None = None
    """folder of detected test masks for inference, paired by stem; without it the true masks serve"""
    count: Count = 64
    """synthetic shadows to train on"""
    test_count: Count = 16
    """synthetic shadows to test on"""
    side: Count = 72
    """side of the synthetic crops, pixels"""
    test_side: Index = 0
    """side of the synthetic test crops; 0 takes whole photographs"""
    longest: Count = 640
    """longest side to which `photos` are shrunk before crops are cut, pixels"""
    linear: bool = False
    """cast synthetic shadows in linear light instead of sRGB values"""
    size: Count = 448
    """side to which a photograph is resized, its aspect lost, pixels"""
    crop: Count = 400
    """side of the random crop, pixels, a multiple of 4"""
    mirror: bool = True
    """mirror half of the items"""
    min_pixels: Index = 10
    """an item with fewer pixels in either region after cropping is skipped"""
    donors: Literal["ratio", "any"] = "ratio"
    """lit regions from masks of similar area, or from any that covers 5 % of the own (the release on SRD)"""
    ratio_min: NonNegative = 0.8
    """least |lit region| / |shadow| of a donor, included"""
    ratio_max: NonNegative = 1.2
    """greatest |lit region| / |shadow| of a donor, included"""
    donor_map: str | None = None
    """.npz in which the map of donors is kept between runs, or the release's .pickle"""
    dilation: Literal["cross", "square"] = "cross"
    """shape of the dilated lit region: repeated 4-neighbour cross (release) or a square (G2R, section 9)"""
    dilation_size: Index = 50
    """iterations of the cross, or side of the square, pixels at the photograph's own size"""
    background: Literal["training", "testing"] = "training"
    """outside a region in training: black, (-1, 1/255, 1/255) as the release; or (-1, 0, 0) as in testing"""
    batch_size: Count = 1
    """items of a step, over all processes"""
    resident: bool = False
    """keep decoded photographs in memory"""
    workers: Index = 0
    """processes that prepare items"""


@dataclass(frozen=True)
class Networks:
    """Widths of the networks (section 3)."""

    feature: Count = 16
    """channels of the shadow feature"""
    generator: Count = 128
    """channels of G inside"""
    remover: Count = 64
    """channels of G1 and G2 at full resolution"""
    discriminator: Count = 64
    """channels of the discriminators' first layer"""


@dataclass(frozen=True)
class Synthesis:
    """Stage 1: weights of its losses, 0 leaves one out (section 2)."""

    self_image: NonNegative = 1.0
    """L1 of the self-reconstructions"""
    self_frequency: NonNegative = 1.0
    """focal frequency loss of the self-reconstructions"""
    adversarial: NonNegative = 0.05
    """least-squares adversarial loss of the pseudo images"""
    colour: NonNegative = 0.01
    """L1 of a and b inside the regions"""
    cycle_image: NonNegative = 0.1
    """L1 of the cycle's images"""
    cycle_frequency: NonNegative = 0.1
    """focal frequency loss of the cycle's images"""
    cycle_feature: NonNegative = 0.01
    """L1 of the cycle's features"""
    discriminator: Positive = 1.0
    """weight of the discriminators' loss; 0.5 is G2R's (section 9)"""
    pool: Index = 200
    """images of each discriminator's replay buffer"""
    checkpoint: str | None = None
    """a finished stage 1 (its last.pt) in place of training one"""
    encoder: str | None = None
    """weights of E alone, such as the release's; goes with `generator`"""
    generator: str | None = None
    """weights of G alone"""


@dataclass(frozen=True)
class Removal:
    """Stage 2 (section 2)."""

    pairs: Literal["synthesis", "gain"] = "synthesis"
    """pseudo shadows by E and G, or by one factor of lightness (control)"""
    clear: bool = False
    """join coarse result and rest by the mask; otherwise they are added, L lower by 1, as in the release"""


@dataclass(frozen=True)
class Optim:
    """Adam in both stages (section 4)."""

    lr: Positive = 2e-4
    """learning rate"""
    beta1: Fraction = 0.5
    """first moment of Adam"""
    beta2: Fraction = 0.999
    """second moment of Adam"""
    synthesis_epochs: Count = 100
    """epochs of stage 1"""
    removal_epochs: Count = 100
    """epochs of stage 2; the released weights were trained for 150"""
    decay: Index = 50
    """epochs at the full rate, which then falls along a line to 0"""
    schedule: bool = True
    """step the rate in stage 2 (the release's supervised script forgets to)"""
    select: Literal["last", "test"] = "last"
    """test: judge stage 2 on the test set in every epoch and keep the best as best.pt, as the release did"""


@dataclass(frozen=True)
class Config:
    """One experiment: synthesis of shadows, then removal trained on them."""

    seed: Index = 628
    """seed of initialisation, order, crops and donors"""
    data: Data = field(default_factory=Data)
    """Data."""
    networks: Networks = field(default_factory=Networks)
    """Networks."""
    synthesis: Synthesis = field(default_factory=Synthesis)
    """Stage 1."""
    removal: Removal = field(default_factory=Removal)
    """Stage 2."""
    optim: Optim = field(default_factory=Optim)
    """Optimisation."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
