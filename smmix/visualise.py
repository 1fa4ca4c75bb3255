"""What a network sees and mixes, as one picture: originals, attention, boxes, mixed images, masks.

python visualise.py --checkpoint runs/cfg/train/last.pt [--images 8] [--side 4] [--out mixes.png]
"""

import argparse
from pathlib import Path

from common import distributed
from common.errors import InputError
from common.images import write_image
from common.run import entry

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smmix.adapters import Adapter, adapt
from smmix.method import SMMix, infer_grid, region_mask, region_sizes

CELL, GAP, LABELS = 128, 4, 76  # pixels: least side of a cell, space between cells, strip with the rows' names
CUT, PASTE = (64, 220, 90), (255, 70, 50)  # colours of the region that is cut from an image, and of what it loses
ROWS = ("image", "attention", "boxes", "mixed", "mask")


def main(argv: list[str]) -> Path:
    """Draw the first images of the test set; returns the picture's path."""
    from smmix import data, restore  # they need train.py, which draws at the end of a run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    restore.add_options(parser)
    parser.add_argument("--images", type=int, default=8, help="images to draw, an even number (default: 8)")
    parser.add_argument("--side", type=int, help="side of the regions in tokens (default: the middle of the allowed)")
    parser.add_argument("--out", help="picture (default: samples/mixes.png beside the checkpoint)")
    given, overrides = parser.parse_known_args(argv)
    conf, network = restore.restore(given, overrides)
    device = distributed.start(conf.run.device)
    test = data.load_test(conf)
    if not 2 <= given.images <= len(test) or given.images % 2:
        raise InputError(f"--images {given.images}: give an even number between 2 and {len(test)}")
    # Spread over the set, whose classes may lie one after another.
    images, _ = test.fetch(torch.arange(given.images) * (len(test) // given.images), 0)
    adapter = adapt(network.to(device), score=conf.model.score, layers=conf.model.score_layers)
    path = Path(given.out) if given.out else Path(given.checkpoint).parent / "samples" / "mixes.png"
    draw(adapter, images.to(device), path, test.statistics, side=given.side)
    print(path)
    return path


def draw(adapter: Adapter, images: Tensor, path: Path, statistics: tuple, *, side: int | None = None) -> None:
    """Write one picture with a column for each image and the rows `ROWS`.

    images: an even number, normalised by statistics (mean and standard deviation of each channel), [B, C, H, W] with
    C 1 or 3. side: of the regions, in tokens. In `boxes` green is what the image gives as a source (its region of
    highest attention), red what it loses as a target (its lowest). Errors: InputError for a side off the grid.
    """
    logits, scores = adapter.look(images)
    grid = infer_grid(scores.shape[1], *images.shape[2:])
    sides = region_sizes(min(grid))
    side = side or sides[len(sides) // 2]
    if not 1 <= side < min(grid):
        raise InputError(f"a region of {side} tokens a side does not fit a grid of {grid[0]} x {grid[1]}")
    attention = scores.float().unflatten(1, grid)
    size = torch.full((len(images),), side, device=images.device)
    mixed = SMMix(logits.shape[1]).apply(images, logits, logits, attention, size)
    scale = -(-CELL // min(images.shape[2:]))
    pixels, result = (to_pixels(x, statistics, scale) for x in (images, mixed.images))
    height, width = pixels.shape[1:3]

    def tokens(values: Tensor) -> np.ndarray:
        """[B, R, C] of 0..1 as uint8 [B, H, W]."""
        enlarged = F.interpolate(values[:, None].float(), (height, width), mode="nearest")[:, 0]
        return (enlarged * 255).round().to(torch.uint8).cpu().numpy()

    heat = [cv2.applyColorMap(one, cv2.COLORMAP_VIRIDIS)[..., ::-1] for one in tokens(stretched(attention))]
    seen = (0.45 * pixels + 0.55 * np.stack(heat)).astype(np.uint8)
    boxes = pixels.copy()
    for corner, colour in ((mixed.paste, PASTE), (mixed.cut, CUT)):
        for picture, inside in zip(boxes, tokens(region_mask(corner, size, *grid))):
            outline(picture, inside > 0, colour)
    mask = tokens(mixed.source.unflatten(1, grid))[..., None].repeat(3, axis=-1)
    write_image(path, framed([pixels, seen, boxes, result, mask]))


def to_pixels(images: Tensor, statistics: tuple, scale: int) -> np.ndarray:
    """Normalised [B, 1 or 3, H, W] as uint8 RGB [B, scale·H, scale·W, 3]."""
    mean, std = (torch.tensor(s, device=images.device).view(-1, 1, 1) for s in statistics)
    values = (images.float() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    values = values.expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return values.permute(0, 2, 3, 1).cpu().numpy()


def stretched(attention: Tensor) -> Tensor:
    """Each image's scores [B, R, C] between 0 (its least) and 1 (its greatest)."""
    low, high = attention.amin((1, 2), keepdim=True), attention.amax((1, 2), keepdim=True)
    return (attention - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)


def outline(picture: np.ndarray, inside: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw the border of a region, bool [H, W], into a picture [H, W, 3], three pixels wide on its inner side."""
    core = cv2.erode(inside.astype(np.uint8), np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    picture[inside & (core == 0)] = colour


def framed(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of cells, each uint8 [B, H, W, 3], as one picture on white with the rows' names at the left."""
    count, height, width, _ = rows[0].shape
    page = np.full((len(rows) * (height + GAP) + GAP, LABELS + count * (width + GAP) + GAP, 3), 255, np.uint8)
    for r, (name, cells) in enumerate(zip(ROWS, rows)):
        top = GAP + r * (height + GAP)
        place = (6, top + height // 2)
        cv2.putText(page, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
        for c, cell in enumerate(cells):
            left = LABELS + c * (width + GAP)
            page[top : top + height, left : left + width] = cell
    return page


if __name__ == "__main__":
    entry(main)
