"""HQSS (arXiv:2212.04108): shadow removal learnt from shadow photographs alone, by synthesising shadows."""

from hqss.inference import restore
from hqss.method import focal_frequency_loss, generator_terms, removal_terms, remove, synthesise
from hqss.models import Encoder, Generator, Refiner, Remover

__all__ = [
    "Encoder",
    "Generator",
    "Refiner",
    "Remover",
    "focal_frequency_loss",
    "generator_terms",
    "removal_terms",
    "remove",
    "restore",
    "synthesise",
]
