"""The paper: prior, tiles, class split and routes, slimmable layers, losses, schedule."""

from dda.method.losses import asl, l1, multi_scale
from dda.method.prior import colourfulness, frequency, moire_prior
from dda.method.routing import by_rank, class_membership
from dda.method.schedule import multistep, plateau, width_of_step
from dda.method.slimmable import SlimConv2d, slim
from dda.method.tiles import cut, offsets, stitch

__all__ = [
    "SlimConv2d",
    "asl",
    "by_rank",
    "class_membership",
    "colourfulness",
    "cut",
    "frequency",
    "l1",
    "moire_prior",
    "multi_scale",
    "multistep",
    "offsets",
    "plateau",
    "slim",
    "stitch",
    "width_of_step",
]
