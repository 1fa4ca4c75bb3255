"""Why Lab: how much of a shadow each colour channel carries; no training, seconds.

    python why_lab.py [--photographs DIR] [--count 60]

Shadows are cast on photographs (scikit-image's without --photographs). In the shadow: the mean absolute difference of
L, a and b, and the error (Lab, sum over channels, D50) left when one channel of the shadowed picture is replaced by
the lit picture's: L, or each of R, G and B.
"""

import argparse

from common.run import entry
from common.shadow.color import lab_to_rgb, rgb_to_lab
from common.shadow.sources import Sample, SyntheticTriplets, embedded, folder

import numpy as np
import torch
from torch import Tensor

SIDE = 256  # pixels of a crop
LONGEST = 640  # pixels of a folder's photographs


def main(argv: list[str]) -> dict[str, float]:
    """Print the table; returns its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", help="folder of lit photographs")
    parser.add_argument("--count", type=int, default=60, help="shadows (default: 60)")
    given = parser.parse_args(argv)
    pictures = {}
    for part in ("train", "test"):
        pictures |= folder(given.photographs, part, LONGEST) if given.photographs else embedded(part)
    found = shares(SyntheticTriplets(pictures, SIDE, given.count))
    for name, value in found.items():
        print(f"{name:<12}{value:8.2f}")
    return found


def shares(source) -> dict[str, float]:
    """Means over a source's triplets: dL, da, db, the input's error, and that left by each true channel."""
    rows = [of_one(source.read(number)) for number in range(len(source))]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def of_one(sample: Sample) -> dict[str, float]:
    """The numbers of `shares` for one triplet; its mask must not be empty."""
    shadow, free = (torch.from_numpy(picture).movedim(-1, 0).double() / 255 for picture in (sample.shadow, sample.free))
    inside = torch.from_numpy(sample.mask) > 0
    dark, lit = rgb_to_lab(shadow, "d50"), rgb_to_lab(free, "d50")
    channels = (dark - lit).abs()[:, inside].mean(1).tolist()

    def left(rgb: Tensor) -> float:
        return float((rgb_to_lab(rgb, "d50") - lit).abs().sum(0)[inside].mean())

    found = {**dict(zip(("dL", "da", "db"), channels)), "input": left(shadow)}
    found["true L"] = left(lab_to_rgb(torch.cat([lit[:1], dark[1:]]), "d50"))
    for number, name in enumerate(("true R", "true G", "true B")):
        found[name] = left(torch.stack([free[i] if i == number else shadow[i] for i in range(3)]))
    return found


if __name__ == "__main__":
    entry(main)
