"""The data: UCF101, HMDB51 and Kinetics with their official splits and layouts, and the embedded moving digits.

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from.
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import run
from common.config import Count, Fraction, Index
from common.errors import InputError
from common.randomness import integers, uniform

import torch
from torch import Tensor

from winograd3d import lists, video
from winograd3d.moving_digits import CLIP, moving_digits

START, ROW, COLUMN, FLIP = 64, 65, 66, 67  # slots of the draws of a training clip


@dataclass(frozen=True)
class Clips:
    """A data set of labelled videos and how clips of them are fed (section 5)."""

    name: Literal["moving_digits", "ucf101", "hmdb51", "kinetics"] = "ucf101"
    """moving_digits (made of scikit-learn's digits, 20 classes), or videos below root"""
    root: str = "data"
    """folder of the data set in its official layout; videos may be files or folders of frames"""
    split: Literal[1, 2, 3] = 1
    """official split of UCF101 and HMDB51"""
    holdout: Fraction = 0.0
    """share of the training groups to evaluate on in the place of the test list (for choosing); 0: the test list"""
    clip_length: Count = 16
    """frames of a clip; a shorter video is looped"""
    interval: Count = 1
    """frames from one frame of a clip to the next"""
    size: Count = 112
    """side of the square crop, pixels"""
    keep_ratio: bool = False
    """resize to a short side of 8/7 of the crop (128) instead of 128 x 171"""
    normalisation: Literal["kinetics", "mmaction", "c3d_bgr"] = "kinetics"
    """mean, std and channel order; they belong to the pretrained weights"""
    flip: bool = True
    """mirror half of the training clips"""
    limit: Index = 0
    """use only so many training and test videos, evenly spread over the list; 0 uses all"""
    batch_size: Count = 30
    """clips of a step, over all processes"""
    test_batch_size: Count = 30
    """videos of an evaluation step, over all processes"""
    workers: Index = 0
    """loader processes"""

    # Clips are decoded or copied on the host; a plain attribute because the loops of common/ ask for it.
    resident = False


def shape_of(settings: Clips) -> tuple[int, int, int, int]:
    """(C, T, H, W) of a clip, known without the data."""
    if settings.name == "moving_digits":
        return (1, *CLIP)
    return 3, settings.clip_length, settings.size, settings.size


def class_count(settings: Clips) -> int:
    """Classes of the whole data set, known without it."""
    return {"moving_digits": 20, "ucf101": 101, "hmdb51": 51, "kinetics": 400}[settings.name]


def load(settings: Clips, seed: int) -> tuple:
    """The training and the test set that a config names.

    Errors: InputError for data that is missing, for a list that does not fit its folder or leaks a group, and for
    fewer training clips than a batch.
    """
    if settings.name == "moving_digits":
        train, test = moving_digits(settings.limit)
    else:
        read = {"ucf101": lists.ucf101, "hmdb51": lists.hmdb51, "kinetics": lists.kinetics}[settings.name]
        parts = read(Path(settings.root), settings.split)
        if settings.holdout:
            first, second = lists.hold_out(parts.train, parts.group, settings.holdout, seed)
            parts = parts._replace(train=first, test=second)
        train, test = (
            VideoSet(lists.spread(part, settings.limit), parts.classes, settings, seed, is_train)
            for part, is_train in ((parts.train, True), (parts.test, False))
        )
    if len(train) < settings.batch_size:
        raise InputError(f"the training set has {len(train)} clips, fewer than data.batch_size {settings.batch_size}")
    return train, test


class VideoSet:
    """Videos decoded when asked for. Training: a random clip, crop and mirror; evaluation: centre clip and crop."""

    def __init__(self, videos: list[lists.Video], classes: list[str], settings: Clips, seed: int, train: bool):
        self.paths = [item.path for item in videos]
        self.labels = torch.tensor([item.label for item in videos])
        self.classes, self.settings, self.seed, self.train = classes, settings, seed, train
        self.shape = shape_of(settings)

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """One clip of each video [B, 3, T, H, W] and labels [B] of int64 positions [B] on the CPU."""
        if not self.train:
            return self.clips(index, 1)[:, 0], self.labels[index]
        return torch.stack([self._random_clip(number, epoch) for number in index.tolist()]), self.labels[index]

    def clips(self, index: Tensor, count: int) -> Tensor:
        """`count` clips at even steps, centre crops: [B, count, 3, T, H, W]."""
        return torch.stack([self._even_clips(number, count) for number in index.tolist()])

    def fingerprint(self) -> str:
        """sha256 over the names and sizes of the videos, or of how many frames a folder has."""
        sizes = (len(list(path.iterdir())) if path.is_dir() else path.stat().st_size for path in self.paths)
        names = (f"{path.parent.name}/{path.name}:{size}" for path, size in zip(self.paths, sizes))
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    @property
    def _span(self) -> int:
        """Frames from the first to the last of a clip."""
        return (self.settings.clip_length - 1) * self.settings.interval + 1

    def _frames(self, number: int, starts_of: Callable[[int], Tensor]) -> Tensor:
        """Frames of the clips whose starts a function of the video's length gives, resized: [K·T, 3, h, w]."""
        length, interval = self.settings.clip_length, self.settings.interval
        choose = lambda frames: video.clip_frames(starts_of(frames), length, interval, frames).flatten()
        frames = video.read_frames(self.paths[number], choose)
        size = video.resized_size(*frames.shape[1:3], self.settings.size, self.settings.keep_ratio)
        return video.resize(frames, size)

    def _random_clip(self, number: int, epoch: int) -> Tensor:
        draw = lambda slot, high: integers(self.seed, epoch, number, slot, high)
        planes = self._frames(number, lambda frames: draw(START, max(1, frames - self._span + 1)).view(1))
        crop = self.settings.size
        top, left = (int(draw(slot, side - crop + 1)) for slot, side in zip((ROW, COLUMN), planes.shape[2:]))
        mirrored = self.settings.flip and bool(uniform(self.seed, epoch, number, FLIP) < 0.5)
        return self._pixels(planes, top, left, mirrored)

    def _even_clips(self, number: int, count: int) -> Tensor:
        planes = self._frames(number, lambda frames: video.clip_starts(frames, self._span, count))
        clips = self._pixels(planes, *video.centre(planes.shape[2:], self.settings.size))
        return clips.unflatten(1, (count, -1)).transpose(0, 1)

    def _pixels(self, planes: Tensor, top: int, left: int, mirrored: bool = False) -> Tensor:
        """[T, 3, h, w] -> the crop as the weights expect it, [3, T, H, W]."""
        crop = planes[..., top : top + self.settings.size, left : left + self.settings.size]
        return video.normalise(crop.flip(-1) if mirrored else crop, video.PIXELS[self.settings.normalisation])


SOURCES = {
    "moving_digits": ("-", "made of the digits inside scikit-learn", "1 MB", "CC BY 4.0 (UCI digits)"),
    "ucf101": ("UCF-101", "https://www.crcv.ucf.edu/data/UCF101.php", "7 GB", "not stated"),
    "hmdb51": ("hmdb51", "https://serre-lab.clps.brown.edu/resource/hmdb", "2 GB", "CC BY 4.0"),
    "kinetics": ("train", "https://github.com/cvdfoundation/kinetics-dataset", "450 GB", "CC BY 4.0 (lists)"),
}
LISTS = {"ucf101": "ucfTrainTestlist", "hmdb51": "testTrainMulti_7030_splits", "kinetics": "val"}


def main(argv: list[str]) -> None:
    """Print what lies below --root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder that holds a data set (default: data)")
    root = Path(parser.parse_args(argv).root)
    print(f"{'set':<14} {'here':<8} {'expected at':<56} {'size':<8} {'licence':<24} source")
    for name, (folder, source, size, licence) in SOURCES.items():
        needed = [root / folder, root / LISTS[name]] if name in LISTS else []
        here = "missing" if not all(path.is_dir() for path in needed) else "present"
        place = " and ".join(map(str, needed)) or "-"
        print(f"{name:<14} {here:<8} {place:<56} {size:<8} {licence:<24} {source}")


if __name__ == "__main__":
    run.entry(main)
