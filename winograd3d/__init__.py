"""Low-rank Winograd transformation for 3D CNNs (arXiv 2301.11180), reconstructed: convert, merge, pack, report."""

from winograd3d.api import convert, merge, pack
from winograd3d.convolution import WinogradConv3d
from winograd3d.costs import report

__all__ = ["WinogradConv3d", "convert", "merge", "pack", "report"]
