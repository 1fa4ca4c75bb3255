"""Shadow, mask and shadow-free photographs on disk, paired by the stem of their names.

Layouts: ISTD and its descendants, `root/{train,test}/{train,test}_{A,B,C}` or `root/{train,test}_{A,B,C}` without the
folder in between: A shadow photographs, B masks, C shadow-free ones. ISTD+ keeps its adjusted photographs in
`test_C_fixed_official` (and `train_C_fixed_official` or `_ours`), which is taken when asked for.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from common.errors import InputError
from common.images import read_image

import cv2
import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp")
SHOWN = 5
ADJUSTED = ("_official", "_ours", "")  # endings under which ISTD+'s photographs are passed around
FreeFolder = Literal["original", "adjusted", "none"]


class Triplet(NamedTuple):
    """The files of one photograph; free is None where a set has no ground truth."""

    name: str
    shadow: Path
    mask: Path
    free: Path | None


def listing(folder: Path) -> dict[str, Path]:
    """Images of a folder and its subfolders by stem, in the order of their names.

    Errors: InputError for a folder that is missing or empty, and for two files of one stem.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder} {'holds no image' if folder.is_dir() else 'does not exist'}; see `python data.py`")
    by_stem: dict[str, Path] = {}
    for path in paths:
        if path.stem in by_stem:
            raise InputError(f"{by_stem[path.stem]} and {path} have one name; keep one of them")
        by_stem[path.stem] = path
    return by_stem


def find(root: str | Path, part: Literal["train", "test"], free: FreeFolder = "original") -> list[Triplet]:
    """The triplets of one side of a set.

    free: which shadow-free photographs, `original` (C), `adjusted` (ISTD+) or `none`. Errors: InputError for missing
    folders and for photographs without partner, by name: nothing is ever paired by position.
    """
    root = Path(root)
    inner = root / part if (root / part).is_dir() else root
    folders = {"shadow": f"{part}_A", "mask": f"{part}_B"}
    if free != "none":
        names = [f"{part}_C"] if free == "original" else [f"{part}_C_fixed{end}" for end in ADJUSTED]
        folders["free"] = next((name for name in names if (inner / name).is_dir()), names[0])
    files = {what: listing(inner / folder) for what, folder in folders.items()}
    for what, found in files.items():
        lonely = sorted(files["shadow"].keys() ^ found.keys())
        if lonely:
            more = f" and {len(lonely) - SHOWN} more" if len(lonely) > SHOWN else ""
            raise InputError(
                f"{inner}: {folders['shadow']} and {folders[what]} do not pair; without partner: "
                f"{', '.join(lonely[:SHOWN])}{more}"
            )
    return [
        Triplet(name, path, files["mask"][name], files.get("free", {}).get(name))
        for name, path in files["shadow"].items()
    ]


def read_mask(path: str | Path, threshold: float | None = 0.5) -> np.ndarray:
    """A mask file as uint8 [H, W] of 0 and 1: shadow where its value / 255 is above the threshold.

    threshold None: the levels as stored. Of a colour file the first channel counts. Errors: InputError for a file that
    cannot be read.
    """
    levels = read_image(path)[..., 0]
    return levels if threshold is None else (levels > threshold * 255).astype(np.uint8)


def read(triplet: Triplet, threshold: float | None = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Shadow image uint8 [H, W, 3], mask uint8 [H, W] (see `read_mask`), shadow-free image or None.

    Errors: InputError for files of different sizes.
    """
    shadow, mask = read_image(triplet.shadow), read_mask(triplet.mask, threshold)
    free = None if triplet.free is None else read_image(triplet.free)
    for path, other in ((triplet.mask, mask), (triplet.free, free)):
        if other is not None and other.shape[:2] != shadow.shape[:2]:
            raise InputError(
                f"{path} is {other.shape[1]}x{other.shape[0]}, {triplet.shadow} {shadow.shape[1]}x{shadow.shape[0]}"
            )
    return shadow, mask, free


def dilate(mask: np.ndarray, size: int) -> np.ndarray:
    """Dilation by a size x size square with odd size; what lies outside counts as lit."""
    kernel = np.ones((size, size), np.uint8)
    return cv2.dilate(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def dilate_diamond(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilation by all pixels at most `radius` steps away (up, down, left, right): one distance transform, uint8."""
    if not mask.any():
        return np.zeros_like(mask, dtype=np.uint8)
    lit = (mask == 0).astype(np.uint8)
    return (cv2.distanceTransform(lit, cv2.DIST_L1, 3) <= radius).astype(np.uint8)
