"""What compressed image-to-image GANs share: networks, objectives, image pool, data, and how they are judged."""

from common.gan.complexity import complexity, papers_macs
from common.gan.discriminators import DISCRIMINATORS, build_discriminator
from common.gan.frechet import Statistics, frechet_distance, statistics, to_uint8
from common.gan.generators import GENERATORS, build_generator, init_weights
from common.gan.objectives import fake_loss, frozen, generator_loss, real_loss
from common.gan.pool import ImagePool
from common.gan.schedule import Block, blocks, linear_factor, step_factor

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "Block",
    "ImagePool",
    "Statistics",
    "blocks",
    "build_discriminator",
    "build_generator",
    "complexity",
    "fake_loss",
    "frechet_distance",
    "frozen",
    "generator_loss",
    "init_weights",
    "linear_factor",
    "papers_macs",
    "real_loss",
    "statistics",
    "step_factor",
    "to_uint8",
]
