"""Triplets for LAB-Net: sources, augmented batches, test pictures.

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.run import entry
from common.shadow.sources import FileTriplets, Sample, SyntheticTriplets, embedded, folder
from common.shadow.triplets import dilate, find

import numpy as np
import torch
from torch import Tensor

from labnet import transforms
from labnet.config import Config
from labnet.method import BOX, Regions
from labnet.models import LABNet

TEST_SEED = 1_000_003  # of the test pictures' shadows and crops, the same whatever the training seed


def load(config: Config) -> tuple:
    """Training, validation (None without a share) and test source of a config. Errors: InputError."""
    data = config.data
    if data.crop > data.load_size:
        raise InputError(f"data.crop {data.crop} is larger than data.load_size {data.load_size}; no crop fits")
    if data.upper < data.load_size:
        raise InputError(f"data.upper {data.upper} lies below data.load_size {data.load_size}")
    if data.crop < config.model.reach + 1:
        raise InputError(f"data.crop {data.crop}: the network needs {config.model.reach + 1} pixels a side")
    train, test = _photographs(config) if data.name == "photographs" else _files(config)
    kept = round(data.validation * len(train))
    if data.validation and not 0 < kept < len(train):
        raise InputError(f"data.validation {data.validation} of {len(train)} pictures leaves one side empty")
    if not kept:
        return train, None, test
    numbers = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed)).tolist()
    return Subset(train, sorted(numbers[kept:])), Subset(train, sorted(numbers[:kept])), test


def _photographs(config: Config) -> tuple:
    data = config.data
    pictures = [folder(data.root, part, data.longest) if data.root else embedded(part) for part in ("train", "test")]
    train = SyntheticTriplets(pictures[0], data.picture, data.count, config.seed, not data.validation, data.linear)
    size = None if data.whole else data.picture
    return train, SyntheticTriplets(pictures[1], size, data.test_count, TEST_SEED, linear=data.linear)


def _files(config: Config) -> tuple:
    data = config.data
    if not data.root:
        raise InputError("data.root is missing: give the folder of the set, with --data.root DIR (see README.md)")
    both = [find(data.root, part, data.free)[: data.limit or None] for part in ("train", "test")]
    return tuple(FileTriplets(found, data.resident) for found in both)


def describe(config: Config, train) -> dict:
    """What env.json and checkpoints say of the data."""
    return {"name": config.data.name, "images": len(train), "sha256": train.fingerprint()}


@dataclass(frozen=True)
class Subset:
    """Some triplets of a source."""

    source: FileTriplets | SyntheticTriplets
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        return self.source.name(self.numbers[index])

    def read(self, index: int, epoch: int = 0):
        return self.source.read(self.numbers[index], epoch)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class TrainingSet:
    """Augmented batches of a source, ready for a step: `fetch` gives everything that the step reads.

    network: for the grid of its attention; may lie on the meta device.
    """

    def __init__(self, source, config: Config, network: LABNet):
        self.source, self.seed, self.data, self.model = source, config.seed, config.data, config.model
        self.regions = network.regions

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, index: Tensor, epoch: int) -> dict[str, Tensor]:
        """input, target [B, 3, c, c], mask [B, 1, c, c], and with `fill: ignored` counted (bool); the regions."""
        data, side = self.data, self.data.crop
        samples = [self.source.read(number, epoch) for number in index.tolist()]
        drawn = transforms.draw(self.seed, epoch, index, [sample.mask.shape for sample in samples], data)
        pictures = np.empty((2, len(samples), side, side, 3), np.uint8)
        mask, outside = (np.empty((len(samples), side, side), kind) for kind in (np.uint8, bool))
        for number, (sample, draws) in enumerate(zip(samples, drawn)):
            mask[number], outside[number] = self.cut(sample, draws, pictures[:, number])
        corner = transforms.neutral(self.model) if data.fill == "ignored" else torch.zeros(3, 1, 1)
        values = dict(zip(("input", "target"), transforms.to_network(pictures, self.model)))
        for picture in values.values():
            transforms.fill_(picture, outside, corner)
        values["mask"] = torch.from_numpy(mask)[:, None].float()
        if data.fill == "ignored":
            values["counted"] = torch.from_numpy(~outside)[:, None]
        grown = torch.from_numpy(np.stack([dilate(one, BOX) for one in mask]))[:, None].float()
        where = self.regions(values["mask"], grown)
        return values | {name: value for name, value in where._asdict().items() if value is not None}

    def cut(self, sample: Sample, draws: transforms.Draws, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write shadow and free picture into out, uint8 [2, c, c, 3]; mask of 0 and 1 and opened corners, [c, c]."""
        data = self.data
        places = transforms.places(sample.mask.shape, draws, data.crop, data.turned)
        for picture, cut in zip((sample.shadow, sample.free), out):
            if data.interpolation == "nearest":
                transforms.look_up(picture, places, cut)
            else:
                cut[:] = transforms.step_by_step(picture, draws, data.crop, data.turned, data.interpolation)
        return transforms.look_up(sample.mask, places) > data.train_threshold * 255, places.outside


def where_of(values: dict[str, Tensor]) -> Regions:
    """The regions that `TrainingSet.fetch` has put into a batch."""
    return Regions(values["shadow"], values["ring"], values.get("valid"), values.get("lit"))


SOURCES = {
    "scikit-image": (".", "inside scikit-image", "9 photographs", "see common/photos.py"),
    "ISTD": ("ISTD_Dataset", "https://github.com/DeepInsight-PCALab/ST-CGAN", "1330 + 540, 640x480", "not stated"),
    "ISTD+": ("ISTD+", "https://github.com/cvlab-stonybrook/SID", "1330 + 540, 640x480", "not stated"),
    "SRD": ("SRD", "https://github.com/Liangqiong/DeShadowNet", "2680 + 408, 840x640", "not stated"),
    "Video": ("Video", "SBU-TimeLapse (Le and Samaras)", "8 videos, no ground truth", "not stated"),
}
NOTES = """SRD has no masks of its own: put third-party ones into train_B and test_B (README.md, data).
Video: a folder of frames each, for predict.py; hqss/video.py scores results against each pixel's brightest value."""


def main(argv: list[str]) -> None:
    """Print what lies below --root, and what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder that holds the data sets (default: data)")
    root, problems = Path(parser.parse_args(argv).root), []
    print(f"{'set':<14} {'here':<22} {'expected at':<26} {'pictures':<26} {'licence':<22} source")
    for name, (place, source, size, licence) in SOURCES.items():
        inside = place == "."
        state, problem = ("present", "") if inside else _state(root / place, name)
        print(f"{name:<14} {state:<22} {'-' if inside else str(root / place):<26} {size:<26} {licence:<22} {source}")
        problems += [f"{name}: {problem}"] * bool(problem)
    print(NOTES, *problems, sep="\n")


def _state(root: Path, name: str) -> tuple[str, str]:
    """present with its numbers of triplets, or what is wrong and why."""
    if not root.is_dir():
        return "missing", ""
    if name == "Video":
        folders = [folder for folder in root.iterdir() if folder.is_dir()]
        return f"{len(folders)} videos", ""
    try:
        counts = [len(find(root, part, "adjusted" if name == "ISTD+" else "original")) for part in ("train", "test")]
    except InputError as error:
        return "incomplete", str(error)
    return f"{counts[0]} + {counts[1]} triplets", ""


if __name__ == "__main__":
    entry(main)
