"""Where the data sets and weights of image-to-image GANs come from, and which of them lie below a folder."""

import argparse
from pathlib import Path
from typing import NamedTuple

from common.gan.data import FOLDERS

CYCLEGAN = "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets"
COMPRESSION = "https://github.com/mit-han-lab/gan-compression"


class Source(NamedTuple):
    """A data set: its folders below the root with their expected counts, origin, licence, how to lay it out."""

    folders: dict[str, int]
    origin: str
    licence: str
    layout: str


SOURCES = {
    "horse2zebra": Source(
        {"trainA": 1067, "trainB": 1334, "valA": 120, "valB": 140},
        f"{CYCLEGAN}/horse2zebra.zip",
        "ImageNet's images, research only",
        "unzip, then link valA to testA and valB to testB",
    ),
    "summer2winter": Source(
        {"trainA": 1231, "trainB": 962, "valA": 309, "valB": 238},
        f"{CYCLEGAN}/summer2winter_yosemite.zip",
        "Flickr's images, licences differ",
        "unzip, then link valA to testA and valB to testB",
    ),
    "edges2shoes-r": Source(
        {"train": 47977, "val": 2048},
        f"edges2shoes-r.tar.gz, whose address {COMPRESSION} gives",
        "UT Zappos50K, research only",
        "unpack: pictures of A|B side by side",
    ),
    "cityscapes": Source(
        {"train": 2975, "val": 500},
        "https://www.cityscapes-dataset.com (registration)",
        "Cityscapes' own, no commercial use",
        "photo left, colour map right, both resized to 256x256, JPEG quality 100",
    ),
}


def report(argv: list[str], description: str) -> None:
    """The command line of a project's data.py."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", default="data", help="folder that holds the data sets (default: data)")
    root = Path(parser.parse_args(argv).root)
    print("photos_paired, photos_unpaired: inside scikit-image, nothing to fetch")
    print("folder_paired: any folder of photographs of one's own, given by --data.root; their edges are made")
    print("classes: an .npz of encoded images given by --data.root, for instance CIFAR-10; two classes are the domains")
    for name, source in SOURCES.items():
        print(f"{name}: {source.origin}\n  licence: {source.licence}\n  layout: {source.layout}")
        for folder, expected in source.folders.items():
            count = sum(path.suffix.lower() in FOLDERS for path in (root / name / folder).rglob("*"))
            print(f"  {root / name / folder}: {f'{count} images' if count else 'missing'} (expected {expected})")
    print("Statistics of real images (mu, sigma): eval.py --statistics makes them; for released ones")
    print(f"  (real_stat/<data>_<side>.npz) see {COMPRESSION}")
