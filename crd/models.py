"""The networks of an experiment: teachers, their discriminators, and the student."""

from common.errors import InputError
from common.gan.networks import generator_of
from common.gan.teachers import TEACHERS

from torch import nn

from crd.config import Config
from crd.method import ContentRelationLoss

__all__ = ["build_relations", "build_student", "build_teachers", "generator_of"]


def build_teachers(config: Config) -> dict[str, nn.Module]:
    """The teachers of a model: generators and discriminators by their names in checkpoints."""
    return TEACHERS[config.model].build(config.networks)


def build_student(config: Config) -> nn.Module:
    """The compressed generator."""
    return generator_of(config.networks, config.networks.student_width)


def build_relations(config: Config) -> ContentRelationLoss:
    """The loss between a student's and its teacher's image.

    Errors: InputError where fewer than two patches would be related to one another, or a crop holds none at all.
    """
    r = config.relations
    number = (config.data.crop_size // r.patch_size) ** 2
    related = {"per_image": number, "joint": number * config.data.batch_size, "reference": 3 * min(number, 1)}
    if r.patches and related[r.patch_mode] < 2:
        raise InputError(
            f"data.crop_size {config.data.crop_size} holds {number} patches of relations.patch_size {r.patch_size}; "
            "two are needed: give smaller patches, or relations.patches 0"
        )
    return ContentRelationLoss(
        r.rows,
        r.columns,
        r.patches,
        distance=r.distance,
        angle=r.angle,
        patch_size=r.patch_size,
        patch_mode=r.patch_mode,
        duplicates=r.duplicates,
    )
