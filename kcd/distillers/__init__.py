"""Fourteen ways to distil: equations in losses.py and crd.py, adaptors in adaptors.py, a thin module each in zoo.py."""

from kcd.distillers.base import Distiller
from kcd.distillers.losses import kd
from kcd.distillers.zoo import DISTILLERS, build, find, loss_weights

__all__ = ["DISTILLERS", "Distiller", "build", "find", "kd", "loss_weights"]
