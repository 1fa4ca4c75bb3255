"""SMMix: self-motivated image mixing for vision transformers."""

import common  # noqa: F401 - registers the torchvision fallback before timm imports torchvision

from smmix.adapters import adapt
from smmix.method import SMMix, pool_regions

__all__ = ["SMMix", "adapt", "pool_regions"]
