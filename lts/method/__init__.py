"""The paper: quantisers, quantised layers, the threshold's schedule and the scratcher."""

from lts.method.layers import (
    QuantConv2d,
    Quantised,
    QuantLinear,
    collapsed,
    initialise,
    narrowest,
    quantise,
    quantised_layers,
    quantiser_parameters,
    scratchable_layers,
)
from lts.method.quantisers import QUANTISERS, Grid, levels
from lts.method.schedule import MODES, Schedule
from lts.method.scratcher import Scratcher

__all__ = [
    "MODES",
    "QUANTISERS",
    "Grid",
    "QuantConv2d",
    "QuantLinear",
    "Quantised",
    "Schedule",
    "Scratcher",
    "collapsed",
    "initialise",
    "levels",
    "narrowest",
    "quantise",
    "quantised_layers",
    "quantiser_parameters",
    "scratchable_layers",
]
