"""Object conservation on the digits canvas: how much of the objects a mix keeps (section 11, claim A).

For a side r, S is the share of the source digit's ink inside the region that is cut, R the share of the target digit's
ink outside the region that is replaced. A box chosen without looking keeps S + R = 1 on average.
"""

import random

import torch
from torch import Tensor

from smmix.adapters import Adapter
from smmix.canvas import CanvasSet
from smmix.method import SMMix, choose_region, infer_grid, region_mask, region_scores, region_sizes


@torch.no_grad()
def conservation(adapter: Adapter, data: CanvasSet, mixer: SMMix, device: torch.device, seed: int = 0) -> dict:
    """{"conservation": mean of S + R over sides, "source_r<r>": S, "target_r<r>": R} over a whole set.

    The regions are those that the mixer would cut and paste by the network's scores.
    """
    images, _ = data.fetch(torch.arange(len(data), device=data.labels.device), 0)
    ink = data.ink(torch.arange(len(data), device=data.labels.device)).to(device)
    _, scores = adapter.look(images.to(device))
    rows, columns = infer_grid(scores.shape[1], *images.shape[2:])
    attention = scores.unflatten(1, (rows, columns))
    report, sums = {}, []
    for r in region_sizes(min(rows, columns), mixer.low, mixer.high):
        size = torch.full((len(images),), r, device=device)
        totals, inside = region_scores(attention, size)
        _, noise = mixer.draw(len(images), rows, columns, random.Random(seed + r), device)
        places = []
        for how, ranks in zip((mixer.paste, mixer.cut), noise):
            corner = choose_region(totals, inside, how, ranks)
            places.append(share_inside(ink, region_mask(corner, size, rows, columns)))
        kept, brought = 1 - places[0], places[1]
        report |= {f"source_r{r}": float(brought), f"target_r{r}": float(kept)}
        sums.append(float(brought + kept))
    return {"conservation": sum(sums) / len(sums), **report}


def share_inside(ink: Tensor, mask: Tensor) -> Tensor:
    """The mean over images of the share of their ink [B, H, W] inside a mask of tokens [B, R, C]."""
    down, across = ink.shape[1] // mask.shape[1], ink.shape[2] // mask.shape[2]
    tokens = ink.unflatten(2, (-1, across)).unflatten(1, (-1, down)).sum((2, 4))  # [B, R, C]
    return ((tokens * mask).sum((1, 2)) / tokens.sum((1, 2))).mean()
