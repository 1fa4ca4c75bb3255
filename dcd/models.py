"""The networks of an experiment: teachers, student, and the connectors between them."""

from common.errors import InputError
from common.gan.networks import discriminator_of, generator_of, smallest_map
from common.gan.teachers import TEACHERS

from torch import nn

from dcd.config import Config
from dcd.method import DiscriminatorDistillation, layers_of
from dcd.omgd import PooledDistillation

__all__ = ["build_distiller", "build_student", "build_teachers", "compared_layers", "discriminator_of", "widths"]

# Channels of the four compared layers as multiples of ngf.
WIDTHS = {"unet_256": (2, 8, 16, 4)}


def build_teachers(config: Config) -> dict[str, nn.Module]:
    """The teachers of a model: generators and discriminators by their names in checkpoints."""
    return TEACHERS[config.model].build(config.networks)


def build_student(config: Config) -> nn.Module:
    """The compressed generator."""
    return generator_of(config.networks, config.networks.student_width)


def compared_layers(config: Config) -> tuple[str, ...]:
    """The modules whose outputs are compared, in the order of their connectors. Errors: InputError."""
    networks = config.networks
    try:
        layers = config.distill.layers or layers_of(networks.generator, networks.blocks)
    except ValueError as error:
        raise InputError(f"networks.blocks: {error}") from error
    return tuple(sorted(layers)) if config.distill.pairing == "sorted" else layers


def widths(config: Config, width: int) -> list[int]:
    """Channels of the compared layers in a generator of this width, in the order of the connectors.

    Errors: InputError for layers of one's own in a U-Net, whose channels are known for the four alone.
    """
    kind, layers = config.networks.generator, compared_layers(config)
    if kind not in WIDTHS:
        return [4 * width] * len(layers)
    known = dict(zip(layers_of(kind), WIDTHS[kind]))
    if unknown := [name for name in layers if name not in known]:
        raise InputError(f"distill.layers {', '.join(unknown)}: of a U-Net the layers are {', '.join(known)}")
    return [known[name] * width for name in layers]


def build_distiller(config: Config) -> DiscriminatorDistillation | PooledDistillation:
    """The connectors of a config. Errors: InputError for layers that the generators do not have."""
    student, networks = build_student(config), config.networks
    modules = dict(student.named_modules())
    if missing := [name for name in compared_layers(config) if name not in modules]:
        raise InputError(f"distill.layers {', '.join(missing)}: {networks.generator} has no such module")
    learn, sides = config.distill.train_teacher_connector, (networks.student_width, networks.teacher_width)
    channels = [widths(config, width) for width in sides]
    if config.distill.through == "pooled":
        return PooledDistillation(*channels)
    return DiscriminatorDistillation(
        *channels,
        3 if config.model == "cyclegan" else 6,
        train_teacher=config.model == "pix2pix" if learn is None else learn,
        smallest=smallest_map(networks) if config.distill.through == "discriminator" else 1,
    )
