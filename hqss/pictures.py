"""What both stages make, as pictures."""

from pathlib import Path

from common.images import write_image
from common.shadow.color import lab_to_rgb

import numpy as np
import torch
from torch import Tensor, nn

from hqss.data import Photographs
from hqss.inference import restore
from hqss.method import denormalise, synthesise

SHOWN = 4


def to_rgb(images: Tensor) -> np.ndarray:
    """Normalised Lab [N, 3, H, W] to uint8 [N, H, W, 3]."""
    rgb = lab_to_rgb(denormalise(images.float().cpu()))
    return (rgb * 255).round().byte().permute(0, 2, 3, 1).numpy()


@torch.inference_mode()
def synthesis(path: Path, encoder: nn.Module, generator: nn.Module, v: dict[str, Tensor], device: torch.device) -> None:
    """A row for each item: photograph, S, S^, P_N, N, N^, P_S, and P_S pasted into the photograph."""
    made = synthesise(encoder, generator, v["shadow"].to(device), v["lit"].to(device))
    pasted = made.pseudo_shadow.cpu() * v["lit_mask"] + v["image"] * (1 - v["lit_mask"])
    columns = [v["image"], v["shadow"], made.shadow, made.pseudo_lit, v["lit"], made.lit, made.pseudo_shadow, pasted]
    grid = np.stack([to_rgb(column) for column in columns], 2)  # [N, H, 8, W, 3]
    write_image(path, np.ascontiguousarray(grid.reshape(-1, grid.shape[2] * grid.shape[3], 3)))


def removal(path: Path, coarse: nn.Module, refine: nn.Module, test: Photographs, clear: bool) -> None:
    """A row for each of the first test photographs: shadow, mask, result, ground truth; shrunk to one height."""
    rows = []
    for index in range(min(SHOWN, len(test))):
        t = test.triplet(index)
        result = restore(coarse, refine, t.shadow, t.given, clear)
        rows.append(np.concatenate([t.shadow, np.repeat(t.given[..., None], 3, 2), result, t.free], 1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    write_image(path, np.concatenate(padded))
