"""The parts of a config that compressed image-to-image GANs share; sections are those of their papers' appendix A."""

from dataclasses import dataclass
from typing import Literal

from common.config import Count, Index, NonNegative, Positive


@dataclass(frozen=True)
class Networks:
    """Generators of teacher and student, and the discriminators (A.1, A.2)."""

    generator: Literal["mobile_resnet_9blocks", "resnet_9blocks", "unet_256"] = "mobile_resnet_9blocks"
    """architecture of both generators"""
    norm: Literal["instance", "batch"] = "instance"
    """normalisation of generators and discriminators"""
    teacher_width: Count = 64
    """channels of the teacher at full resolution (ngf)"""
    student_width: Count = 16
    """channels of the student at full resolution (ngf)"""
    blocks: Count = 9
    """residual blocks of a ResNet generator"""
    discriminator: Literal["n_layers", "pixel"] = "n_layers"
    """patches of several strided layers, or single pixels"""
    discriminator_width: Count = 64
    """channels of its first layer (ndf)"""
    discriminator_layers: Count = 3
    """strided layers of n_layers"""


@dataclass(frozen=True)
class Teaching:
    """How the teachers are trained from scratch (A.3, A.4)."""

    gan: Literal["lsgan", "vanilla", "hinge", "wgangp"] = "lsgan"
    """adversarial objective, of the student as well; the CycleGAN runs use lsgan, the pix2pix runs hinge"""
    cycle_source: NonNegative = 10.0
    """weight of the cycle that begins in the source domain (CycleGAN's lambda_A)"""
    cycle_target: NonNegative = 10.0
    """weight of the cycle that begins in the target domain (CycleGAN's lambda_B)"""
    identity: NonNegative = 0.5
    """weight of the identity terms as a share of the cycles' (CycleGAN)"""
    adversarial: NonNegative = 1.0
    """weight of the generator's adversarial term (pix2pix)"""
    reconstruction: NonNegative = 100.0
    """weight of the L1 distance to the target image (pix2pix)"""
    pool_size: Index = 50
    """generated images that each discriminator remembers (CycleGAN)"""


@dataclass(frozen=True)
class Optim:
    """Adam, one for the teachers' generators, one for their discriminators, one for the student (A.5)."""

    lr: Positive = 2e-4
    """learning rate of all three"""
    beta1: NonNegative = 0.5
    """first moment's decay; the second's is 0.999"""
    policy: Literal["linear", "step"] = "linear"
    """constant, then falling linearly; or a tenth after every `step_epochs` epochs"""
    step_epochs: Count = 50
    """epochs between falls of the step policy"""
    epochs: Count = 100
    """teacher epochs at the full rate (nepochs)"""
    decay_epochs: Index = 100
    """teacher epochs of the linear fall (nepochs_decay)"""
    student_share: Count = 4
    """CycleGAN: student epochs for each teacher epoch (n_dis); pix2pix: the teacher steps in every n_dis-th step"""


@dataclass(frozen=True)
class Perceptual:
    """The losses on VGG features that every student has (A.7)."""

    network: Literal["vgg16", "random"] = "vgg16"
    """VGG-16 with ImageNet's weights, or an eighth of its width with fixed random ones, which needs no file"""
    weights: str | None = None
    """file of torchvision's VGG-16; without it the weights are downloaded"""
    style: NonNegative = 1e4
    """weight of the Gram matrices' distance"""
    feature: NonNegative = 1e1
    """weight of the distance of relu2_2"""


@dataclass(frozen=True)
class Judging:
    """When and how generated images are judged (A.5, A.9)."""

    every_epochs: Count = 10
    """epochs between evaluations; for CycleGAN also the length of a block (save_epoch_freq)"""
    every_steps: Index = 0
    """steps between further evaluations; 0 for none (save_latest_freq)"""
    network: Literal["inception", "vgg16", "random"] = "inception"
    """whose features are compared; only Inception's distance is an FID"""
    weights: str | None = None
    """file of that network's weights; without it they are downloaded"""
    statistics: str | None = None
    """.npz of the target domain's mu and sigma; without it they are made from the target images of the test set"""
