"""The knowledge: training images that can be condensed, whether they lie in memory or are decoded when needed.

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from.
"""

from pathlib import Path

from common import checkpoint, labelled, run
from common.errors import InputError
from common.images import write_image
from common.imagesets import ArraySet, FolderSet

import cv2
import numpy as np
import torch

from kcd.config import Config
from kcd.method import Condenser


class SummarisedFolder(FolderSet):
    """Class folders whose images are blended as they are decoded, by the history of a condenser.

    An image partakes in several blends; each is resolved as the condensation saw it, so the pixels are those of a data
    set held in memory. A lost image of another size is brought to its partner's.
    """

    mix_min = 0.7

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.blends: list[tuple[dict[int, tuple[int, int]], int]] = []  # ({partner: (lost, i)}, L)

    def follow(self, condenser: Condenser) -> None:
        """Take over the blends that the condenser's history holds."""
        self.mix_min = condenser.mix_min
        for partners, lost in condenser.history[len(self.blends) :]:
            pairs = {p: (q, i) for i, (p, q) in enumerate(zip(partners.tolist(), lost.tolist()))}
            self.blends.append((pairs, len(pairs)))

    def read(self, index: int) -> np.ndarray:
        """The image after all blends so far, uint8 [H, W, 3]."""
        return self._read_after(index, len(self.blends))

    def _read_after(self, index: int, blends: int) -> np.ndarray:
        for number in reversed(range(blends)):
            pairs, count = self.blends[number]
            if index in pairs:
                partner, i = pairs[index]
                kept, lost = self._read_after(index, number), self._read_after(partner, number)
                if kept.shape != lost.shape:
                    lost = cv2.resize(lost, kept.shape[1::-1], interpolation=cv2.INTER_AREA)
                return _mix_one(kept, lost, i, count, self.mix_min)
        return super().read(index)


def condense(train, condenser: Condenser) -> dict[str, torch.Tensor]:
    """`Condenser.condense` on a data set: at once in memory, or when an image is decoded."""
    if isinstance(train, ArraySet):
        return condenser.condense(train.pixels)
    change = condenser.condense()
    train.follow(condenser)
    return change


def draw_blends(blends: torch.Tensor, path: Path) -> None:
    """Kept images, lost images, blends [3, n, H, W, 3] as three rows of a picture, the strongest at the right."""
    grid = blends.cpu().transpose(1, 2).flatten(2, 3).flatten(0, 1)  # [3 H, n W, 3]
    scale = max(1, 64 // blends.shape[2])
    write_image(path, grid.repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy())


def replay(train, condenser: Condenser) -> None:
    """Bring a freshly loaded data set to the state of a resumed condenser."""
    if isinstance(train, ArraySet):
        condenser.replay(train.pixels)
    else:
        train.follow(condenser)


def _mix_one(kept: np.ndarray, lost: np.ndarray, i: int, count: int, mix_min: float) -> np.ndarray:
    """`mix` for the i-th of `count` pairs alone, with the same float32 arithmetic."""
    one = np.float32(1)
    q = np.float32(count - i) / np.float32(count)
    r = np.float32(1 - mix_min) * q + np.float32(mix_min)
    return (r * kept.astype(np.float32) + (one - r) * lost.astype(np.float32)).astype(np.uint8)


def load(config: Config) -> tuple:
    """Training set (condensable) and test set of a config. Errors: InputError (missing, unfit or damaged data)."""
    return labelled.load(config.data, config.seed, folder=SummarisedFolder)


def load_official_state(config: Config, train, condenser: Condenser) -> None:
    """Start from the kept list and the mixed images that an official run has saved. Errors: InputError."""
    if config.condense.start_kept:
        path = Path(config.condense.start_kept)
        try:
            kept = torch.tensor([int(float(word)) for word in path.read_text().split()], dtype=torch.int64)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: is not a text file of positions ({error})") from error
        if not len(kept) or kept.min() < 0 or kept.max() >= len(train) or len(kept.unique()) != len(kept):
            raise InputError(f"{path}: must hold different positions between 0 and {len(train) - 1}")
        condenser.kept = kept.to(condenser.kept.device)
        condenser.removed.fill_(True)
        condenser.removed[condenser.kept] = False
    if config.condense.start_images:
        path = Path(config.condense.start_images)
        images = checkpoint.load(path)
        if not isinstance(train, ArraySet) or not isinstance(images, torch.Tensor):
            raise InputError(f"{path}: mixed images need a data set in memory and a tensor of images")
        if images.shape != train.pixels.shape or images.dtype != torch.uint8:
            raise InputError(
                f"{path}: holds {images.dtype} {tuple(images.shape)}, the data set is uint8 {tuple(train.pixels.shape)}"
            )
        train.pixels.copy_(images)


def main(argv: list[str]) -> None:
    """Print what lies below --root."""
    labelled.report_sources(argv, __doc__)


if __name__ == "__main__":
    run.entry(main)
