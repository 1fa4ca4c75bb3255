"""Photographs with shadow masks: where they come from, and the items that a step is made of.

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.images import list_images
from common.randomness import integers, uniform
from common.run import entry
from common.shadow.sources import FileTriplets, SyntheticTriplets, embedded, folder
from common.shadow.triplets import find, listing, read_mask

import numpy as np
import torch
from torch import Tensor

from hqss import donors
from hqss.config import Config, Data
from hqss.items import Crop, dilate, prepare, resize
from hqss.models import MULTIPLE, SMALLEST_CRITIC

ROW, COLUMN, MIRROR = 64, 65, 66  # slots
SRD_FRAME = (640, 840)  # rows, columns to which the release brings SRD's photographs
TEST_SEED = 0


class Test(NamedTuple):
    """A photograph to test on: uint8 images [H, W, 3], mask levels uint8 [H, W] given to removal, and true ones."""

    name: str
    shadow: np.ndarray
    given: np.ndarray
    mask: np.ndarray
    free: np.ndarray


def levels(image: np.ndarray) -> np.ndarray:
    """uint8 images as they are, float32 ones in [0, 1] cut to 8 bits."""
    return image if image.dtype == np.uint8 else (image * 255).astype(np.uint8)


class Photographs:
    """A source's photographs and binary masks, at the size that their set prescribes.

    frame: (H, W) to which photographs are resized in [0, 1] and masks with a threshold of one half, None as they are.
    """

    def __init__(self, source, frame: tuple[int, int] | None = None, detected: dict[str, Path] | None = None):
        self.source, self.frame, self.detected = source, frame, detected

    def __len__(self) -> int:
        return len(self.source)

    def names(self) -> list[str]:
        return [self.source.name(index) for index in range(len(self))]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The shadow photograph [H, W, 3], uint8 or (resized) float32 in [0, 1], and its mask uint8 of 0 and 1."""
        sample = self.source.read(index)
        return self._framed(sample.shadow), self._binary(sample.mask)

    def mask(self, index: int) -> np.ndarray:
        """The mask alone; of files, without decoding the photograph."""
        found = getattr(self.source, "found", None)
        return self._binary(read_mask(found[index].mask, None) if found else self.source.read(index).mask)

    def triplet(self, index: int) -> Test:
        """A test photograph with what it is judged by; of a resized set 8-bit levels are cut off, not rounded."""
        name, (shadow, mask, free) = self.source.name(index), self.source.read(index)
        given = mask if self.detected is None else read_mask(self.detected[name], None)
        if self.frame:
            shadow, free = (levels(self._framed(image)) for image in (shadow, free))
            mask, given = (self._binary(image) * np.uint8(255) for image in (mask, given))
        return Test(name, shadow, given, mask, free)

    def _binary(self, levels: np.ndarray) -> np.ndarray:
        if self.frame and levels.shape != self.frame:
            return (resize(levels.astype(np.float32) / 255, self.frame) > 0.5).astype(np.uint8)
        return (levels > 127.5).astype(np.uint8)

    def _framed(self, rgb: np.ndarray) -> np.ndarray:
        if self.frame and rgb.shape[:2] != self.frame:
            return resize(rgb.astype(np.float32) / 255, self.frame)
        return rgb


class Items:
    """What `common.shadow.loader.batches` fetches: photographs with a lit region from another one's mask.

    Crop, mirror and donor depend on (seed, epoch, index) alone.
    """

    def __init__(self, photographs: Photographs, partners: donors.Donors, settings: Data, seed: int):
        self.photographs, self.partners, self.settings, self.seed = photographs, partners, settings, seed

    def __len__(self) -> int:
        return len(self.photographs)

    def place(self, index: int, epoch: int) -> Crop:
        """The random crop of an item; offsets from 0 to size - crop, both included."""
        room = self.settings.size - self.settings.crop + 1
        row, column = (int(integers(self.seed, epoch, index, slot, room)) for slot in (ROW, COLUMN))
        return Crop(row, column, self.settings.mirror and float(uniform(self.seed, epoch, index, MIRROR)) < 0.5)

    def lit_region(self, mask: np.ndarray, index: int, epoch: int) -> np.ndarray:
        """The donor's mask without the photograph's own, uint8 [H, W]. Errors: InputError for another size."""
        donor = self.photographs.mask(self.partners.draw(self.seed, epoch, index))
        if donor.shape != mask.shape:
            raise InputError(
                f"masks of {mask.shape} and {donor.shape} cannot be donors to each other; resize the set to one size"
            )
        return donor & (1 - mask)

    def item(self, index: int, epoch: int) -> dict[str, Tensor]:
        """One item, whatever the size of its regions; see `prepare`."""
        rgb, mask = self.photographs.read(index)
        lit = self.lit_region(mask, index, epoch)
        s = self.settings
        dilated = dilate(lit, s.dilation, s.dilation_size)
        return prepare(rgb, mask, lit, dilated, s.size, s.crop, self.place(index, epoch), s.background)

    def fetch(self, index: Tensor, epoch: int) -> dict[str, Tensor]:
        """The usable items of positions [B], stacked. Where none is, the first with a key `unusable` beside it."""
        found = [self.item(i, epoch) for i in index.tolist()]
        least = self.settings.min_pixels
        usable = [x for x in found if min(x["shadow_mask"].sum(), x["lit_mask"].sum()) >= least]
        stacked = {name: torch.stack([x[name] for x in usable or found[:1]]) for name in found[0]}
        return stacked if usable else {**stacked, "unusable": torch.zeros(())}


def load(config: Config) -> tuple[Items, Photographs]:
    """Training items and test photographs of a config. Errors: InputError (missing, unfit or damaged data)."""
    settings = config.data
    check(settings)
    train, test = sources(settings, config.seed)
    frame = SRD_FRAME if settings.name == "srd" else None
    photographs = Photographs(train, frame)
    return Items(photographs, partners(photographs, settings), settings, config.seed), Photographs(
        test, frame, detected_masks(settings, test)
    )


def check(settings: Data) -> None:
    """Errors: InputError for sizes that the networks cannot take."""
    if settings.crop % MULTIPLE or not SMALLEST_CRITIC <= settings.crop <= settings.size:
        raise InputError(
            f"data.crop {settings.crop}: must be a multiple of {MULTIPLE}, at least {SMALLEST_CRITIC} and at most"
            f" data.size ({settings.size})"
        )
    if settings.ratio_min > settings.ratio_max:
        raise InputError(f"data.ratio_min {settings.ratio_min} is above data.ratio_max {settings.ratio_max}")


def sources(settings: Data, seed: int) -> tuple:
    """Training and test source. Training files need no shadow-free photograph."""
    if settings.name in ("embedded", "photos"):
        lit = embedded if settings.name == "embedded" else lambda part: folder(settings.root, part, settings.longest)
        train = SyntheticTriplets(lit("train"), settings.side, settings.count, seed, linear=settings.linear)
        test_lit, side = lit("test"), settings.test_side or None
        count = settings.test_count if side else len(test_lit)
        return train, SyntheticTriplets(test_lit, side, count, TEST_SEED, linear=settings.linear)
    ground_truth = "adjusted" if settings.name == "istd" and settings.adjusted else "original"
    return (
        FileTriplets(find(settings.root, "train", "none"), settings.resident),
        FileTriplets(find(settings.root, "test", ground_truth)),
    )


def partners(photographs: Photographs, settings: Data) -> donors.Donors:
    """The donors of a set, from the file that keeps them where one is named. Errors: InputError."""
    found = getattr(photographs.source, "found", None)
    if settings.donor_map and found:
        files = [triplet.mask for triplet in found]
        return donors.load(Path(settings.donor_map), photographs.names(), files, photographs.mask, settings)
    bounds = settings.ratio_min, settings.ratio_max
    return donors.build(photographs.mask, len(photographs), *bounds, settings.donors)


def detected_masks(settings: Data, test) -> dict[str, Path] | None:
    """Files of detected masks by stem, one for each test photograph. Errors: InputError naming what is missing."""
    if settings.detected is None:
        return None
    found = listing(Path(settings.detected))
    missing = [name for name in (test.name(i) for i in range(len(test))) if name not in found]
    if missing:
        raise InputError(f"{settings.detected}: has no mask for {len(missing)} test photographs, as {missing[0]}")
    return found


def about(config: Config, train: Items) -> dict:
    """Name, number and fingerprint of the training photographs, as runs note them."""
    source = train.photographs.source
    return {"name": config.data.name, "images": len(train), "sha256": source.fingerprint()}


SETS = {
    "istd": "1,330 training and 540 test triplets 640x480, PNG; from its authors (Wang and others, CVPR 2018) on"
    " request, research use. Needs train/train_A, train/train_B, test/test_A, test/test_B; ground truth is ISTD+'s"
    " test/test_C_fixed_official (Le and Samaras, ICCV 2019)",
    "srd": "2,680 training and 408 test pairs, JPEG; from its authors (Qu and others, CVPR 2017), research use. Masks"
    " are third-party. Same folder names",
    "video": "8 videos of a static scene with moving shadows (SBU-TimeLapse, Le and Samaras): one folder of frames"
    " each, for video.py",
    "photos": "any folder of at least three lit photographs; synthetic shadows are cast on them",
    "embedded": "scikit-image's photographs; nothing to download",
}


def main(argv: list[str]) -> None:
    """Print what lies below --root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder to look into")
    root = Path(parser.parse_args(argv).root)
    for name, text in SETS.items():
        print(f"{name}: {text}")
    for name in ("istd", "srd"):
        for part in ("train", "test"):
            try:
                print(f"{root / name} {part}: {len(find(root / name, part, 'none'))} photographs with masks")
            except InputError as error:
                print(f"{root / name} {part}: {error}")
    try:
        print(f"{root}: {len(list_images(root))} photographs")
    except InputError as error:
        print(error)


if __name__ == "__main__":
    entry(main)
