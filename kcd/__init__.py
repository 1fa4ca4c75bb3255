"""Knowledge condensation distillation (ECCV 2022): values, condensation, and the loss functions it is compared with."""

from kcd.method import Condenser, entropy, kept_size, mix, rank, score

__all__ = ["Condenser", "entropy", "kept_size", "mix", "rank", "score"]
