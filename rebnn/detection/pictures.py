"""Detections drawn on images."""

from collections.abc import Sequence
from pathlib import Path

from common.images import write_image

import cv2
import numpy as np
import torch
from torchvision.ops import nms

from rebnn.detection.data import Scenes
from rebnn.detection.records import Found

SHOWN, COLUMNS, SIDE = 8, 4, 240
"""images of a sheet, in a row, and pixels of a side"""
LEAST = 0.3
"""score from which a detection is drawn"""
TRUTH, FOUND = (0, 200, 0), (235, 40, 40)


def draw_sheet(path: Path, scenes: Scenes, found: Sequence[Found], count: int = SHOWN) -> None:
    """The first images of a set: boxes that are there in green, detections in red with class and score."""
    tiles = [tile(scenes, i, found[i]) for i in range(min(count, len(scenes)))]
    tiles += [np.full((SIDE, SIDE, 3), 255, np.uint8)] * (-len(tiles) % min(COLUMNS, len(tiles)))
    columns = min(COLUMNS, len(tiles))
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    write_image(path, np.concatenate(rows))


def tile(scenes: Scenes, i: int, found: Found) -> np.ndarray:
    """One image on a square of SIDE pixels, uint8; of detections in one place, whatever their class, the best."""
    image = scenes.pixels(i)
    scale = SIDE / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)[:SIDE, :SIDE]
    canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    for box, label in zip(scenes.scenes[i].boxes, scenes.scenes[i].labels):
        frame(canvas, box * scale, TRUTH, scenes.classes[label], top=True)
    likely = Found(*(part[found.scores >= LEAST] for part in found))
    shown = nms(torch.from_numpy(likely.boxes).float(), torch.from_numpy(likely.scores).float(), 0.5).tolist()
    for box, label, score in zip(*(part[shown] for part in likely)):
        frame(canvas, box * scale, FOUND, f"{scenes.classes[label]} {score:.2f}", top=False)
    return canvas


def frame(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], text: str, top: bool) -> None:
    """A box and its text, above or below, in place."""
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, 1 if top else 2)
    at = (x1 + 2, max(10, y1 - 3) if top else min(SIDE - 3, y2 + 12))
    for ink, width in ((255, 255, 255), 3), (colour, 1):  # on a white rim, since pictures have all colours
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, ink, width, cv2.LINE_AA)
