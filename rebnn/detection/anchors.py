"""Where boxes are sought: anchors of Faster-RCNN, and of SSD in two forms (sections 3.3 and 3.4)."""

import math
from collections.abc import Sequence

from common.errors import InputError

import torch
from torch import Tensor, nn

SSD_SIZE = 300
SSD_STRIDES = (8, 16, 32, 64, 100, 300)
SSD_MAPS = (38, 19, 10, 5, 3, 1)
SSD_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SSD_FIRST = {20: (10, 20), 15: (7, 15)}
"""per cent of the image of the first level's two sides, by the lower end of the ratio range of VOC and of COCO"""
SSD_SIDES = {
    "voc": ((30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315)),
    "coco": ((21, 45, 99, 153, 207, 261), (45, 99, 153, 207, 261, 315)),
}
"""smallest and largest side of each level's boxes in pixels"""


def around(sizes: Sequence[tuple[float, float]], centre: float = 0.0) -> Tensor:
    """Corners [N, 4] of boxes of the sizes (width, height) around a point on the diagonal, in float64."""
    half = torch.tensor(sizes, dtype=torch.float64) / 2
    return torch.cat([centre - half, centre + half], 1)


def base_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float] = (0.5, 1, 2)) -> Tensor:
    """Boxes of area (scale·stride)² and ratio height / width around the origin, ratios fastest, [N, 4]."""
    sides = [(scale * stride, math.sqrt(ratio)) for scale in scales for ratio in ratios]
    return around([(side / root, side * root) for side, root in sides])


def grid(base: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The base anchors at (x·stride, y·stride) of a map [H, W], without a half-cell shift: [H·W·N, 4], row by row."""
    rows, columns = (torch.arange(n, device=base.device, dtype=base.dtype) * stride for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack([x, y, x, y], -1)
    return (shifts[:, :, None] + base).flatten(0, 2)


class Anchors(nn.Module):
    """The anchors of every image for torchvision's region proposal network: the levels one after another."""

    def __init__(self, strides: Sequence[int], scales: Sequence[float]):
        super().__init__()
        self.strides, self.scales = tuple(strides), tuple(scales)

    def forward(self, images, features: list[Tensor]) -> list[Tensor]:
        """images: torchvision's ImageList; features: maps of all levels. Returns one [anchors, 4] an image."""
        levels = [
            grid(base_anchors(stride, self.scales).to(feature.device, torch.float32), feature.shape[-2:], stride)
            for stride, feature in zip(self.strides, features)
        ]
        return [torch.cat(levels)] * len(images.image_sizes)


def ssd_base_anchors(low: int, high: int) -> list[Tensor]:
    """IDa-Det's anchors of SSD300's six levels around (stride/2, stride/2), not clipped, [N, 4] each.

    low, high: ends of the range of sizes in per cent of the image. Errors: InputError for a low end that is neither
    VOC's (20) nor COCO's (15), whose first level is not defined.
    """
    if low not in SSD_FIRST:
        raise InputError(f"a range of anchor sizes from {low} % has no first level; give 20 (VOC) or 15 (COCO)")
    step = (high - low) // (len(SSD_STRIDES) - 2)
    percent = [SSD_FIRST[low], *((ratio, ratio + step) for ratio in range(low, high + 1, step))]
    levels = []
    for stride, (small, large), ratios in zip(SSD_STRIDES, percent, SSD_RATIOS):
        least, most = small * SSD_SIZE // 100, large * SSD_SIZE // 100
        levels.append(around(_ssd_sizes(least, most, ratios), stride / 2))
    return levels


def ssd_priors(name: str) -> Tensor:
    """BiDet's 8,732 boxes of SSD300 as (cx, cy, w, h) relative to the image, clipped to [0, 1]; name: voc or coco."""
    priors = []
    for stride, cells, least, most, ratios in zip(SSD_STRIDES, SSD_MAPS, *SSD_SIDES[name], SSD_RATIOS):
        sizes = torch.tensor(_ssd_sizes(least, most, ratios), dtype=torch.float64)
        at = (torch.arange(cells, dtype=torch.float64) + 0.5) * stride
        y, x = torch.meshgrid(at, at, indexing="ij")
        centres = torch.stack([x, y], -1)[:, :, None].expand(-1, -1, len(sizes), -1)
        priors.append(torch.cat([centres, sizes.expand(cells, cells, -1, -1)], -1).flatten(0, 2))
    return (torch.cat(priors) / SSD_SIZE).clamp(0, 1)


def _ssd_sizes(least: float, most: float, ratios: Sequence[int]) -> list[tuple[float, float]]:
    """Widths and heights at a cell: two squares, then a broad and a tall box of each ratio."""
    sizes = [(least, least), (math.sqrt(least * most),) * 2]
    for root in map(math.sqrt, ratios):
        sizes += [(least * root, least / root), (least / root, least * root)]
    return sizes
