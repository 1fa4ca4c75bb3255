"""LAB-Net (2022): shadow removal by a small network of two branches in the Lab colour space."""

from labnet.method import ECA, LSA, Regions, attend, losses, regions
from labnet.models import LABNet

__all__ = ["ECA", "LSA", "LABNet", "Regions", "attend", "losses", "regions"]
