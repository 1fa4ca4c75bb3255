"""Pictures of what a run has kept."""

from pathlib import Path

from common.images import write_image

import torch
from torch.nn import functional as F

from winograd3d.convolution import WinogradConv3d
from winograd3d.method import column_mask, positions

SIDE, GAP = 24, 8  # pixels of a position and between planes
DARK, LIGHT, PAPER = 0.16, 0.86, 1.0


def mask_picture(layer: WinogradConv3d) -> torch.Tensor:
    """[H, W] in [0, 1]: a row of T_d planes of T_h x T_w positions, the darker the more of a position is kept."""
    share = column_mask(layer.mask).view(-1, layer.positions).float().mean(0).cpu().view(positions(layer.tile))
    planes = LIGHT + (DARK - LIGHT) * share
    planes = planes.repeat_interleave(SIDE, 1).repeat_interleave(SIDE, 2)
    planes = F.pad(planes, (0, GAP, 0, GAP), value=PAPER)
    return planes.permute(1, 0, 2).flatten(1)


def draw_masks(layers: dict[str, WinogradConv3d], path: Path) -> None:
    """One row a layer, in the network's order."""
    rows = [mask_picture(layer) for layer in layers.values()]
    width = max(row.shape[1] for row in rows)
    grid = torch.cat([F.pad(row, (0, width - row.shape[1]), value=PAPER) for row in rows])
    write_image(path, (255 * grid).round().to(torch.uint8).numpy())
