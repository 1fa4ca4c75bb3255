"""Pairs of a moire picture and its clean partner: the paper's data sets, folders of one's own, synthetic pairs.

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from;
`python data.py --root DIR --name fhdmi` checks every pair of one: partners, sizes, readability (`--decode true`).
"""

import argparse
import functools
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from common import photos
from common.config import Count, Index
from common.errors import InputError
from common.images import READABLE, list_images, read_image
from common.run import entry

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dda.method.prior import resize_linear
from dda.synthesise import Moire, pairs_of

TIP = 256  # pixels a side of a TIP2018 picture in the usual protocol
TEST_FIRST = 1_000_000  # number of the first synthetic test pair, so that no test pair repeats a training pair's draws
EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
MOIRE, CLEAN = ("moire", "source", "input"), ("clear", "clean", "target", "gt")
MARK = re.compile(r"^(src|tar|source|target|moire|clear)_|_(source|target|moire|clear|gt)$", re.I)


class Source(NamedTuple):
    """A data set: the folders of its two sides below the root, where it comes from, and how large it is."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    origin: str
    size: str


SOURCES = {
    "aim": Source(
        ("train",), ("test", "val", "valid", "validation"), "LCDMoire: AIM 2019 demoireing challenge", "10,200 pairs"
    ),
    "fhdmi": Source(("train",), ("test",), "FHDMi: He et al. 2020, github.com/PKU-IMRE/FHDe2Net", "12,000 pairs"),
    "uhdm": Source(("train",), ("test",), "UHDM: Yu et al. 2022, github.com/CVMI-Lab/UHDM", "5,000 pairs"),
    "tip2018": Source(("trainData", "train"), ("testData", "test"), "TIP2018: Sun, Yu, Wang 2018", "135,000 pairs"),
    "classes": Source(("class1",), ("test",), "tiles that the release's scripts have scored and split", "any"),
    "pairs": Source(("train", "."), ("test",), "folders moire/ and clear/ of your own, or of synthesise.py", "any"),
}


@dataclass(frozen=True)
class Data:
    """Which pairs are trained and tested on."""

    name: Literal["photos", "pairs", "classes", "aim", "fhdmi", "uhdm", "tip2018"] = "photos"
    """photos: synthetic moire over photographs; pairs: train/ and test/ with moire/ and clear/; classes: the release's
    tiles, already split into class1/ to class3/, and test/; else a data set"""
    root: str = ""
    """folder of the data set, or of clean photographs; empty: the photographs inside scikit-image"""
    limit: Index = 0
    """use only the first so many pairs of each side; 0 is all"""
    resident: bool = True
    """whether the training pairs are decoded once and kept in memory; otherwise at every crop"""
    workers: Index = 4
    """threads that decode when not resident"""
    height: Count = 256
    """pixels of a synthetic picture"""
    width: Count = 384
    """pixels of a synthetic picture"""
    variants: Count = 4
    """synthetic training pairs of each photograph"""
    test_variants: Count = 8
    """synthetic test pairs of each photograph kept out"""
    train_photos: tuple[str, ...] = ()
    """names of the photographs for training; none: all that are not for testing"""
    test_photos: tuple[str, ...] = ("chelsea",)
    """names of the photographs kept out of training"""
    whole_test: Index = 0
    """short side of whole test photographs in pixels; 0 tests on cuts as in training"""
    moire_seed: Index = 0
    """seed of the synthesis; apart from the run's seed, so that runs of several seeds share their data"""
    moire: Moire = field(default_factory=Moire)


class StoredPairs:
    """Pairs in memory, of any sizes, from which a batch of crops is one gather.

    storage: uint8 [all pixels, 6], moire then clean; sizes: [(H, W)]. masks: strength of the moire, where it is known.
    """

    classes: list[int] | None = None  # of each pair, 0 the widest network's; where the tiles come ready

    def __init__(self, names: list[str], storage: Tensor, sizes: list[tuple[int, int]], masks: list | None = None):
        self.names, self.storage, self.sizes, self.masks = names, storage, sizes, masks
        pixels = torch.tensor([h * w for h, w in sizes])
        self.start = (pixels.cumsum(0) - pixels).to(storage.device)
        self.widths = torch.tensor([w for _, w in sizes], device=storage.device)

    @classmethod
    def of(cls, pairs) -> "StoredPairs":
        """From (name, moire, clean, mask or None), read one after the other."""
        names, parts, sizes, masks = [], [], [], []
        for name, moire, clean, mask in pairs:
            names.append(name)
            parts.append(torch.from_numpy(np.concatenate([moire, clean], 2)).reshape(-1, 6))
            sizes.append(moire.shape[:2])
            masks.append(mask)
        return cls(names, torch.cat(parts), sizes, masks)

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> "StoredPairs":
        """The same pairs on a device; these stay where they are."""
        moved = StoredPairs(self.names, self.storage.to(device), self.sizes, self.masks)
        moved.classes = self.classes
        return moved

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of pair i."""
        return tuple(self.sizes[i])

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Moire and clean picture of pair i, uint8 RGB [H, W, 3]."""
        height, width = self.sizes[i]
        first = int(self.start[i])
        both = self.storage[first : first + height * width].view(height, width, 6).cpu().numpy()
        return both[..., :3].copy(), both[..., 3:].copy()

    def mask(self, i: int) -> np.ndarray | None:
        """The true strength of the moire, float [H, W]; None where nobody knows it."""
        return self.masks[i] if self.masks else None

    def crops(self, image: Tensor, top: Tensor, left: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Squares cut from pairs: int64 [B] each -> moire, clean uint8 [B, 3, size, size] (channels last)."""
        image, top, left = (t.to(self.storage.device) for t in (image, top, left))
        along = torch.arange(size, device=image.device)
        rows, columns = top[:, None] + along, left[:, None] + along
        place = self.start[image][:, None, None] + rows[:, :, None] * self.widths[image][:, None, None]
        place = place + columns[:, None, :]
        both = self.storage.index_select(0, place.flatten()).view(*place.shape, 6).permute(0, 3, 1, 2)
        return both[:, :3], both[:, 3:]

    def fingerprint(self) -> str:
        """sha256 over names, sizes and pixels."""
        sha = hashlib.sha256(repr((self.names, [tuple(s) for s in self.sizes])).encode())
        sha.update(self.storage.cpu().numpy().tobytes())
        return sha.hexdigest()


class FilePairs:
    """Pairs in files, decoded when asked for; the same calls as StoredPairs.

    resize: what the protocol does to a decoded picture [H, W, 3]; shape: the size that this gives from (H, W).
    """

    classes: list[int] | None = None

    def __init__(self, paths: dict[str, tuple[Path, Path]], resize=None, shape=None, workers: int = 0):
        self.names, self.paths = list(paths), list(paths.values())
        self.resize, self.shape, self.workers = resize, shape, workers

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> "FilePairs":
        """These pairs; files stay on the CPU."""
        return self

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of pair i after the protocol's resizing, from the file's header."""
        size = header_size(self.paths[i][0])
        return self.shape(size) if self.shape else size

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Moire and clean picture of pair i, uint8 RGB [H, W, 3]. Errors: InputError (unreadable, unequal sizes)."""
        moire, clean = (read_image(path) for path in self.paths[i])
        _require_same(moire.shape, clean.shape, *self.paths[i])
        return (self.resize(moire), self.resize(clean)) if self.resize else (moire, clean)

    def mask(self, i: int) -> None:
        """Nobody knows the true strength of the moire in a photograph."""

    def crops(self, image: Tensor, top: Tensor, left: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Squares cut from pairs: int64 [B] each -> moire, clean uint8 [B, 3, size, size] (channels last)."""

        def cut(place: tuple[int, int, int]) -> np.ndarray:
            i, y, x = place
            return np.concatenate([p[y : y + size, x : x + size] for p in self.read(i)], 2)

        places = zip(image.tolist(), top.tolist(), left.tolist())
        if self.workers:
            with ThreadPoolExecutor(self.workers) as pool:
                found = list(pool.map(cut, places))
        else:
            found = [cut(place) for place in places]
        both = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)
        return both[:, :3], both[:, 3:]

    def fingerprint(self) -> str:
        """sha256 over the names and sizes of the files."""
        listing = [(name, [path.stat().st_size for path in pair]) for name, pair in zip(self.names, self.paths)]
        return hashlib.sha256(repr(listing).encode()).hexdigest()

    def stored(self) -> StoredPairs:
        """All pairs decoded into memory."""
        stored = StoredPairs.of((name, *self.read(i), None) for i, name in enumerate(self.names))
        stored.classes = self.classes
        return stored


Pairs = StoredPairs | FilePairs


def _require_same(one: tuple, two: tuple, moire: Path, clean: Path) -> None:
    if one[:2] != two[:2]:
        raise InputError(
            f"{moire} is {one[1]} x {one[0]} and {clean} {two[1]} x {two[0]}; a pair must show the same pixels"
        )


def header_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file after its EXIF rotation, without decoding it. Errors: InputError."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    except Exception as error:  # on broken bytes a decoder may raise nearly anything
        raise InputError(f"image {path} cannot be read: {error}; replace or remove it") from error
    return (width, height) if turned else (height, width)


def partners(root: Path) -> dict[str, tuple[Path, Path]]:
    """{stem: (moire, clean)} of two folders moire|source|input and clear|clean|target|gt, matched by stem.

    A leading src_, tar_ … or trailing _source, _gt … is no part of a stem. Errors: InputError for a picture without
    partner, two of one stem, or a folder that is missing.
    """
    sides = []
    for names in (MOIRE, CLEAN):
        there = [root / name for name in names if (root / name).is_dir()]
        if len(there) != 1:
            found = "none" if not there else "several"
            raise InputError(f"{root} must hold one folder named {' or '.join(names)}; there is {found} of them")
        sides.append(_by_stem(list_images(there[0]), lambda path: MARK.sub("", path.stem)))
    return _match(*sides, root)


def nested_partners(root: Path) -> dict[str, tuple[Path, Path]]:
    """{place: (moire, clean)} of UHDM's layout, X_moire.* beside X_gt.* in any subfolder. Errors: as `partners`."""
    if not root.is_dir():
        raise InputError(f"folder {root} does not exist; see `python data.py`")
    pictures = sorted(p for p in root.rglob("*") if p.suffix.lower() in READABLE and not p.name.startswith("."))
    sides = []
    for mark in ("_moire", "_gt"):
        own = [path for path in pictures if path.stem.endswith(mark)]
        place = lambda path, mark=mark: path.relative_to(root).with_name(path.stem.removesuffix(mark)).as_posix()
        sides.append(_by_stem(own, place))
    return _match(*sides, root)


def _by_stem(paths: list[Path], stem_of) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        stem = stem_of(path)
        if stem in found:
            raise InputError(f"{found[stem]} and {path} have the same stem {stem!r}; rename or remove one")
        found[stem] = path
    return found


def _match(moire: dict[str, Path], clean: dict[str, Path], root: Path) -> dict[str, tuple[Path, Path]]:
    alone = sorted(moire.keys() ^ clean.keys())
    if alone:
        first = ", ".join((moire.get(stem) or clean[stem]).name for stem in alone[:3])
        raise InputError(
            f"{root}: {len(alone)} pictures have no partner of the same stem ({first}, …); add or remove them"
        )
    if not moire:
        raise InputError(f"{root} holds no pair of X_moire and X_gt; see `python data.py`")
    return {stem: (moire[stem], clean[stem]) for stem in sorted(moire)}


# -- the protocols' sizes --------------------------------------------------------------------------------------------


def fhdmi_size(size: tuple[int, int]) -> tuple[int, int]:
    """1080 rows become 1024, which is divisible by 16; columns are kept (section 5)."""
    return size[0] * 1024 // 1080, size[1]


def resize_train(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] to (height, width) as OpenCV's bilinear rule has it, without antialiasing."""
    return resize_linear(torch.from_numpy(picture).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy()


def resize_test(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] to (height, width) with Pillow's bilinear rule, which antialiases."""
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.BILINEAR))


def fhdmi_train(picture: np.ndarray) -> np.ndarray:
    """A training picture of FHDMi at the size that it is cut into tiles."""
    return resize_train(picture, fhdmi_size(picture.shape[:2]))


def fhdmi_test(picture: np.ndarray) -> np.ndarray:
    """A test picture of FHDMi at the size that the scores refer to."""
    return resize_test(picture, fhdmi_size(picture.shape[:2]))


def tip_size(_size: tuple[int, int]) -> tuple[int, int]:
    """Every picture of TIP2018 is brought to one size."""
    return TIP, TIP


def tip_square(picture: np.ndarray) -> np.ndarray:
    """The middle two thirds of a TIP2018 picture, without the frame around it, as 256 x 256 (UHDM's protocol)."""
    height, width = picture.shape[:2]
    middle = picture[height // 6 : height * 5 // 6, width // 6 : width * 5 // 6]
    return resize_test(middle, (TIP, TIP))


RULES = {
    ("fhdmi", "train"): (fhdmi_train, fhdmi_size),
    ("fhdmi", "test"): (fhdmi_test, fhdmi_size),
    ("tip2018", "train"): (tip_square, tip_size),
    ("tip2018", "test"): (tip_square, tip_size),
}
"""what each protocol does to a decoded picture, and the size that results; the other sets are left as they are"""

# -- loading ---------------------------------------------------------------------------------------------------------


def find(name: str, root: str, side: Literal["train", "test"], limit: int = 0, workers: int = 0) -> FilePairs:
    """One side of a data set in files. Errors: InputError (missing folder, missing partner)."""
    places = [Path(root) / folder for folder in getattr(SOURCES[name], side)]
    there = [place for place in places if place.is_dir()]
    if not root or not there:
        wanted = " or ".join(map(str, places))
        raise InputError(
            f"--data.root {root or '(empty)'}: {name}'s {side} pairs are looked for in {wanted}; give its folder"
        )
    if (name, side) == ("classes", "train"):
        return ready_classes(Path(root), limit, workers)
    pairs = (nested_partners if name == "uhdm" else partners)(there[0])
    pairs = dict(list(pairs.items())[:limit]) if limit else pairs
    return FilePairs(pairs, *RULES.get((name, side), (None, None)), workers)


def ready_classes(root: Path, limit: int, workers: int) -> FilePairs:
    """The tiles below class1/, class2/ and class3/, each with moire/ and clear/; limit: pairs of each class.

    Errors: InputError for a class without a folder, or a tile without a partner.
    """
    paths, classes = {}, []
    for number in range(3):
        folder = root / f"class{number + 1}"
        own = list(partners(folder).items())[: limit or None]
        paths |= {f"{folder.name}/{stem}": pair for stem, pair in own}
        classes += [number] * len(own)
    pairs = FilePairs(paths, workers=workers)
    pairs.classes = classes
    return pairs


def photographs(settings: Data) -> tuple[dict, dict]:
    """{name: reader} of the training and of the test photographs. Errors: InputError for an unknown name."""
    if settings.root:
        every = {path.stem: functools.partial(read_image, path) for path in list_images(settings.root)}
    else:
        every = {name: functools.partial(photos.load, name) for name in photos.PHOTOS}
    unknown = [name for name in (*settings.train_photos, *settings.test_photos) if name not in every]
    if unknown:
        raise InputError(f"there is no photograph {', '.join(unknown)}; choose from {', '.join(every)}")
    test = {name: every[name] for name in settings.test_photos}
    train = {name: every[name] for name in settings.train_photos or every if name not in test}
    both = set(settings.train_photos) & set(settings.test_photos)
    if both or not train or not test:
        raise InputError(
            f"photographs for training {[*train]} and testing {[*test]}"
            f"{f' share {sorted(both)}' if both else ''}; name at least one of each, none twice"
        )
    return train, test


@functools.lru_cache(maxsize=4)
def synthetic(settings: Data, side: Literal["train", "test"]) -> StoredPairs:
    """The synthetic pairs of one side; kept, because several runs in one process may use the same."""
    train, test = photographs(settings)
    seed, size = settings.moire_seed, (settings.height, settings.width)
    if side == "train":
        pairs = pairs_of(train, settings.variants, size, settings.moire, seed)
    else:
        whole = settings.whole_test
        readers = {name: functools.partial(shrink, read, whole) for name, read in test.items()} if whole else test
        pairs = pairs_of(readers, settings.test_variants, None if whole else size, settings.moire, seed, TEST_FIRST)
    kept = (item for i, item in enumerate(pairs) if not settings.limit or i < settings.limit)
    return StoredPairs.of((name, pair.moire, pair.clean, pair.mask) for name, pair in kept)


def shrink(read, short: int) -> np.ndarray:
    """A whole photograph with the given short side, averaged down. Errors: InputError for a smaller one."""
    picture = read()
    height, width = picture.shape[:2]
    if min(height, width) < short:
        raise InputError(f"a photograph of {width} x {height} has no short side of {short}; give a smaller whole_test")
    factor = short / min(height, width)
    size = (max(short, round(height * factor)), max(short, round(width * factor)))
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)


def load(settings: Data, seed: int = 0) -> tuple[Pairs, Pairs]:
    """Training and test pairs; what is drawn depends on settings.moire_seed alone, not on the run's seed.

    Errors: InputError (missing or unfit data, before anything is written).
    """
    if settings.name == "photos":
        return synthetic(settings, "train"), synthetic(settings, "test")
    train, test = (find(settings.name, settings.root, s, settings.limit, settings.workers) for s in ("train", "test"))
    return (train.stored() if settings.resident else train), test


def describe(settings: Data, train: Pairs) -> dict:
    """What env.json and the checkpoints say of the data: name, sha256 and number of training pairs."""
    return {"name": settings.name, "sha256": train.fingerprint(), "images": len(train)}


def inspect(name: str, root: str, decode: bool) -> int:
    """Print what one data set holds, side by side; returns the number of pairs. Errors: InputError."""
    count = 0
    for side in ("train", "test"):
        pairs = find(name, root, side)
        sizes: dict[tuple, int] = {}
        for i, (moire, clean) in enumerate(pairs.paths):
            size = header_size(moire)
            _require_same(size, header_size(clean), moire, clean)
            sizes[size] = sizes.get(size, 0) + 1
            if decode:
                pairs.read(i)
        listed = ", ".join(f"{n} of {w} x {h}" for (h, w), n in sorted(sizes.items(), key=lambda item: -item[1])[:5])
        print(f"{name} {side}: {len(pairs)} pairs, every one with its partner; {listed}")
        count += len(pairs)
    return count


def main(argv: list[str]) -> None:
    """Print what lies below --root, or check one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder that holds the data sets (default: data)")
    parser.add_argument(
        "--name", choices=[*SOURCES], help="check the pairs of this data set, whose own folder is --root"
    )
    parser.add_argument("--decode", choices=("true", "false"), default="false", help="also decode every picture")
    given = parser.parse_args(argv)
    if given.name:
        inspect(given.name, given.root, given.decode == "true")
        return
    print(f"{'set':<8} {'here':<8} {'expected at':<28} {'size':<14} source")
    print(f"{'photos':<8} {'present':<8} {'-':<28} {'9 pictures':<14} inside scikit-image; moire by synthesise.py")
    for name, source in SOURCES.items():
        folder = Path(given.root) / name
        here = all(any((folder / part).is_dir() for part in parts) for parts in (source.train, source.test))
        row = f"{name:<8} {'present' if here else 'missing':<8} {folder!s:<28} {source.size:<14} {source.origin}"
        print(row)
    print("all of them for research use, under the terms of their authors; none is downloaded by this program")


if __name__ == "__main__":
    entry(main)
