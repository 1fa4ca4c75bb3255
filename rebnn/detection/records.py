"""What is known of an image and what a detector says of it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Scene(NamedTuple):
    """An image and its boxes: corners in pixels, float32 [N, 4]; labels int64 [N] from 0; difficult bool [N].

    Difficult boxes (VOC's, and COCO's crowds) are not trained on, and neither right nor wrong when they are found.
    areas: pixels of the shapes [N], by which COCO calls objects small, medium, large; None where only boxes are known.
    """

    name: str
    image: Path | np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray | None = None


class Found(NamedTuple):
    """Detections of an image in its own pixels: corners [M, 4], labels int64 [M], scores [M]."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
