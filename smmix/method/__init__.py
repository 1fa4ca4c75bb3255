"""SMMix: the network in training says which region to cut, where to paste it, and what to expect of the mix.

A region is a square of tokens. Image b of a batch is the target that is pasted into; its source is image B-1-b of the
same batch. Section and table numbers are those of README.md. What is wrong with an argument is a ValueError.
"""

from smmix.method.losses import consistency, mix_labels, pool_regions, smooth_labels, soft_cross_entropy
from smmix.method.regions import (
    choose_region,
    class_attention,
    image_attention,
    infer_grid,
    mix_regions,
    region_mask,
    region_scores,
    region_sizes,
)
from smmix.method.step import Mixed, SMMix, mixup, require_pairs

__all__ = [
    "Mixed",
    "SMMix",
    "choose_region",
    "class_attention",
    "consistency",
    "image_attention",
    "infer_grid",
    "mix_labels",
    "mix_regions",
    "mixup",
    "pool_regions",
    "region_mask",
    "region_scores",
    "region_sizes",
    "require_pairs",
    "smooth_labels",
    "soft_cross_entropy",
]
