"""Discriminator-cooperated feature map distillation for GAN compression (CVPR 2023, arXiv:2212.14169)."""

from dcd.method import Connector, DiscriminatorDistillation, layers_of, tapped

__all__ = ["Connector", "DiscriminatorDistillation", "layers_of", "tapped"]
