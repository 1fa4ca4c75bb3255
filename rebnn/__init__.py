"""Resilient binary neural networks (AAAI 2023): 1-bit weights and activations whose signs do not oscillate."""

from rebnn.method import Balance, BinaryConv2d, RPReLU, RSign, convert

__all__ = ["Balance", "BinaryConv2d", "RPReLU", "RSign", "convert"]
