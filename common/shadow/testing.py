"""A shadow on a photograph never seen, for tests of shipped weights."""

from pathlib import Path

from common.images import write_image
from common.shadow.metrics import REGIONS, score
from common.shadow.sources import Sample, SyntheticTriplets, embedded

import numpy as np


def example(folder: Path, side: int) -> Sample:
    """A crop of a scikit-image photograph under a synthetic shadow, written to folder as photo.png and mask.png."""
    sample = SyntheticTriplets(embedded("test"), side, 1, seed=1).read(0)
    write_image(folder / "photo.png", sample.shadow)
    write_image(folder / "mask.png", sample.mask)
    return sample


def errors(image: np.ndarray, sample: Sample) -> dict[str, float]:
    """The Lab error of uint8 [H, W, 3] in each region."""
    return dict(zip(REGIONS, score(image, sample.free, sample.mask, None).error.tolist()))
