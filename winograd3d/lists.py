"""Which videos a data set has, of which class, to train or test on: official lists, group-safe splits (section 5)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.randomness import uniform

import torch

from winograd3d import video

GROUP = 68  # slot of the draw that holds a group out


class Video(NamedTuple):
    """A video file or folder of frames, and its class."""

    path: Path
    label: int


class Listing(NamedTuple):
    """The two parts of a data set, its classes in the order of their labels, and the group of a path."""

    train: list[Video]
    test: list[Video]
    classes: list[str]
    group: Callable[[Path], str]


def ucf101(root: Path, split: int) -> Listing:
    """UCF-101/<Class>/v_<Class>_gXX_cYY.avi with ucfTrainTestlist/; classes in the order of classInd.txt."""
    lists = root / "ucfTrainTestlist"
    index = [line.split() for line in _lines(lists / "classInd.txt")]
    if any(len(words) != 2 or not words[0].isdigit() for words in index):
        raise InputError(f"{lists / 'classInd.txt'}: must hold lines `<number> <class>`")
    classes = [name for _, name in sorted(index, key=lambda words: int(words[0]))]
    label = {name: number for number, name in enumerate(classes)}
    parts, missing = [], []
    for part in ("train", "test"):
        path, videos = lists / f"{part}list{split:02d}.txt", []
        for number, line in enumerate(_lines(path), 1):
            name, _, given = line.partition(" ")
            kind = name.partition("/")[0]
            # The class is told twice in a training line; a list of another numbering would train on wrong labels.
            if kind not in label or (given and given.strip() != str(label[kind] + 1)):
                raise InputError(f"{path}:{number}: {line!r} does not fit the classes of classInd.txt")
            _add(videos, missing, root / "UCF-101" / name, label[kind])
        parts.append(videos)
    _require(missing, parts, "UCF-101")
    _require_no_leak(parts, ucf101_group, lists)
    return Listing(*parts, classes, ucf101_group)


def ucf101_group(path: Path) -> str:
    """`v_<Class>_gXX` of `v_<Class>_gXX_cYY`: clips of a group are cut from one scene."""
    return re.sub(r"_c\d+$", "", path.stem)


def hmdb51_group(path: Path) -> str:
    """The source of `<source>_<class>_<properties>_<number>`: clips of one film are alike."""
    return path.stem.partition(f"_{path.parent.name}_")[0]


def hmdb51(root: Path, split: int) -> Listing:
    """hmdb51/<class>/*.avi with testTrainMulti_7030_splits/<class>_test_split<k>.txt; classes by the alphabet."""
    folder, lists = root / "hmdb51", root / "testTrainMulti_7030_splits"
    files = sorted(lists.glob(f"*_test_split{split}.txt"))
    if not files:
        raise InputError(f"{lists}: holds no <class>_test_split{split}.txt; see python data.py")
    classes = sorted(file.name.rpartition("_test_split")[0] for file in files)
    parts, missing = ([], []), []
    for label, name in enumerate(classes):
        path = lists / f"{name}_test_split{split}.txt"
        for number, line in enumerate(_lines(path), 1):
            words = line.split()
            if len(words) != 2 or words[1] not in "012":
                raise InputError(f"{path}:{number}: {line!r} is not `<file> <0, 1 or 2>`")
            if words[1] != "0":
                _add(parts[int(words[1]) - 1], missing, folder / name / words[0], label)
    _require(missing, parts, "hmdb51")
    return Listing(*parts, classes, hmdb51_group)


def kinetics(root: Path, split: int) -> Listing:
    """train/<class>/ and val/<class>/, whatever the split; classes by the alphabet."""
    found = {part: sorted(p.name for p in (root / part).glob("*") if p.is_dir()) for part in ("train", "val")}
    classes = found["train"]
    if not classes or found["val"] != classes:
        only = sorted(set(classes) ^ set(found["val"]))[:5]
        raise InputError(
            f"{root}: needs train/<class>/ and val/<class>/ of the same classes (on one side only: {only})"
        )
    parts = tuple(
        [
            Video(path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / part / name).iterdir())
            if path.is_dir() or path.suffix.lower() in video.VIDEOS
        ]
        for part in ("train", "val")
    )
    _require([], parts, "train and val")
    return Listing(*parts, classes, lambda path: path.stem[:11])  # a name begins with its source, 11 letters


def _lines(path: Path) -> list[str]:
    """Lines of a list that are not empty. Errors: InputError if it is not there or not text."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); `python data.py` says where the lists come from"
        ) from error


def _add(videos: list[Video], missing: list[Path], path: Path, label: int) -> None:
    found = video.find(path)
    if found is None:
        missing.append(path)
    else:
        videos.append(Video(found, label))


def _require(missing: list[Path], parts, where: str) -> None:
    if missing:
        raise InputError(
            f"{len(missing)} listed videos are not there, the first is {missing[0]} (or a folder of frames)"
        )
    if not all(parts):
        raise InputError(f"{where}: {len(parts[0])} training and {len(parts[1])} test videos; both are needed")


def _require_no_leak(parts, group, lists: Path) -> None:
    """A random split puts clips of one scene on both sides; accuracies are then not comparable (section 10)."""
    train, test = ({group(item.path) for item in part} for part in parts)
    if shared := sorted(train & test):
        raise InputError(
            f"{lists}: {len(shared)} groups are in the training and in the test list, the first is {shared[0]}; "
            "use the official lists, which split by group"
        )


def hold_out(videos: list[Video], group, share: float, seed: int) -> tuple[list[Video], list[Video]]:
    """Training videos in two parts of which no group of clips (one scene, one source) is in both.

    group: path -> name. A group lies in the second part with the probability `share`. Errors: InputError when a part
    is left without a video.
    """
    names = sorted({group(item.path) for item in videos})
    held = uniform(seed, 0, torch.arange(len(names)), GROUP) < share
    out = {name for name, is_held in zip(names, held.tolist()) if is_held}
    parts = tuple([item for item in videos if (group(item.path) in out) == second] for second in (False, True))
    if not all(parts):
        raise InputError(f"data.holdout {share} leaves {[*map(len, parts)]} videos of {len(names)} groups; change it")
    return parts


def spread(videos: list[Video], limit: int) -> list[Video]:
    """`limit` videos at even steps of a list that is sorted by class; 0 is all."""
    count = min(limit, len(videos)) or len(videos)
    return [videos[i * len(videos) // count] for i in range(count)]
