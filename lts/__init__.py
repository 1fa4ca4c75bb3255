"""Lottery ticket scratcher (arXiv:2211.08544): quantisation-aware training that freezes weights which have settled."""

from lts.method import Schedule, Scratcher, initialise, quantise

__all__ = ["Schedule", "Scratcher", "initialise", "quantise"]
