"""What a detection experiment consists of; sections refer to the paper's specification in README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Fraction, Index, NonNegative, Positive, Share
from common.run import Runtime

from rebnn.config import Binary


@dataclass(frozen=True)
class Data:
    """Images with boxes, and how they are fed (section 5)."""

    name: Literal["composed", "voc", "coco"] = "voc"
    """composed (digits of scikit-learn on photographs of scikit-image, no download), VOC 07+12, or COCO 2014"""
    root: str = "data"
    """folder that holds VOC2007/ and VOC2012/ (also below VOCdevkit/), or COCO's images/ and annotations/"""
    limit: Index = 0
    """use only the first so many training and test images; 0 uses all"""
    repeat: Count = 1
    """passes over the training images that make an epoch"""
    batch_size: Count = 4
    """images of a step, over all processes; a last smaller batch is dropped"""
    test_batch_size: Count = 4
    """images of an evaluation step, over all processes"""
    workers: Index = 0
    """loader processes"""
    flip: Fraction = 0.5
    """share of the training images that are mirrored"""
    long_sides: tuple[Count, ...] = (1500, 1000, 666)
    """pixels that an image's longer side may have, one pair with short_sides drawn for each training image"""
    short_sides: tuple[Count, ...] = (900, 600, 400)
    """pixels that its shorter side may have; the image is as large as both allow (SSD: always 300x300)"""
    test_long: Count = 1000
    """the longer side's pixels in evaluation"""
    test_short: Count = 600
    """the shorter side's pixels in evaluation"""
    degenerate: Literal["error", "drop"] = "error"
    """what a box without area does: COCO has a few, which its own tools drop"""
    crop_iou_test: bool = False
    """SSD: reject crops whose overlap is too small, as was meant; the release never does (section 9, row 16)"""
    size: Count = 96
    """composed: side of the images in pixels"""
    digits: Count = 10
    """composed: how many different digits occur, from 0 on; these are the classes"""
    train_images: Count = 320
    """composed: training images"""
    test_images: Count = 160
    """composed: test images"""


@dataclass(frozen=True)
class Detector:
    """The network (sections 3.3 and 3.4)."""

    name: Literal["fasterrcnn", "bidet", "ssd"] = "fasterrcnn"
    """Faster-RCNN with a pyramid (IDa-Det's form), with one map (BiDet's, C4), or BiDet's SSD300 on VGG16"""
    body: Literal["resnet18", "resnet34", "resnet10"] = "resnet18"
    """ResNet below Faster-RCNN; resnet10 has half of resnet18's blocks (ours)"""
    width: Share = 1.0
    """factor on all channels"""
    conv_bias: bool = False
    """give the body's binary convolutions a bias, as IDa-Det does; ImageNet weights have none"""
    pad_value: Literal[-1, 0, 1] | None = None
    """what signs see beyond the border; by default 0 in IDa-Det's form and -1 in BiDet's two"""
    anchor_scale: Positive = 8.0
    """side of an anchor in strides of its map"""
    proposals: Count = 1000
    """regions that the proposal network hands on for an image; before suppression in training twice as many a level"""
    regions: Count = 512
    """regions of an image that Faster-RCNN's head learns from, a quarter of them positive"""
    loss_weight: Positive = 5.0
    """factor on each of Faster-RCNN's four losses"""
    frozen: Index = 2
    """parts of the ResNet that are not trained: 1 the stem, 2 layer1 as well, …"""
    norm_eval: bool = True
    """BatchNorm of Faster-RCNN keeps its running statistics in training"""
    weights: str | None = None
    """of the body (ours, official, ReActNet's, torchvision's real ResNet, BiDet's VGG), or of a whole detector"""


@dataclass(frozen=True)
class Step:
    """The optimiser of one of the two steps (section 4)."""

    epochs: Index = 12
    """epochs; 0 leaves the step out, unless iterations are given"""
    iterations: Index = 0
    """length in iterations instead; milestones then count iterations"""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum (IDa-Det), or Adam (BiDet)"""
    lr: Positive = 0.004
    """learning rate between warm-up and the first milestone"""
    momentum: Fraction = 0.9
    """of SGD"""
    weight_decay: NonNegative = 1e-4
    """coupled L2 on all parameters"""
    milestones: tuple[Count, ...] = (8, 11)
    """epochs after which the learning rate falls to a tenth"""
    warmup: Index = 200
    """iterations over which the learning rate rises linearly from a thousandth"""
    clip: NonNegative = 35.0
    """largest norm of the gradient; 0 for any"""
    start: str | None = None
    """detector to start from: for step 2 by default what step 1 of this run left"""


@dataclass(frozen=True)
class Config:
    """One experiment: a detector with binary activations, whose weights become binary in step 2."""

    seed: Index = 0
    """seed of initialisation, order, augmentation and sampling"""
    data: Data = field(default_factory=Data)
    """Data."""
    detector: Detector = field(default_factory=Detector)
    """Detector."""
    binary: Binary = field(default_factory=Binary)
    """Binarisation."""
    step1: Step = field(default_factory=lambda: Step(epochs=0))
    """Step 1: binary activations, real weights; the published recipes begin with binary ones."""
    step2: Step = field(default_factory=Step)
    """Step 2: binary weights too."""
    eval_every: Count = 1
    """epochs between evaluations; the last epoch is always followed by one"""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
