"""Dynamic demoiréing acceleration (ICLR 2023): moiré prior, routes, slimmable layers, and routed inference."""

from dda.inference import Demoirer
from dda.method.prior import moire_prior
from dda.method.routing import by_budget, by_rank, by_threshold
from dda.method.slimmable import SlimConv2d

__all__ = ["Demoirer", "SlimConv2d", "by_budget", "by_rank", "by_threshold", "moire_prior"]
