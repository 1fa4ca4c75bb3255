"""Resilient binary neural networks (Xu et al., AAAI 2023): learned scales, and γ that holds back oscillating weights.

activations: RSign and RPReLU. binariser: ŵ = α·sign(w), its gradients, BinaryConv2d. linear: the same for linear layers
and embeddings. balance: γ and oscillation. objective: distributional loss, schedule, parameter groups.
"""

from rebnn.method.activations import LearnableBias, RPReLU, RSign, rprelu, rsign
from rebnn.method.balance import Balance, balanced_gamma, flip_fraction
from rebnn.method.binariser import (
    BinaryConv2d,
    binarise,
    binarise_bidet,
    binarise_reactnet,
    binarise_released,
    cam,
    convert,
    reconstruction_loss,
)
from rebnn.method.linear import BinaryEmbedding, BinaryLinear
from rebnn.method.objective import (
    decay_groups,
    distribution_loss,
    kl_divergence,
    label_smoothing_loss,
    learning_rate,
)

__all__ = [
    "Balance",
    "BinaryConv2d",
    "BinaryEmbedding",
    "BinaryLinear",
    "LearnableBias",
    "RPReLU",
    "RSign",
    "balanced_gamma",
    "binarise",
    "binarise_bidet",
    "binarise_reactnet",
    "binarise_released",
    "cam",
    "convert",
    "decay_groups",
    "distribution_loss",
    "flip_fraction",
    "kl_divergence",
    "label_smoothing_loss",
    "learning_rate",
    "reconstruction_loss",
    "rprelu",
    "rsign",
]
