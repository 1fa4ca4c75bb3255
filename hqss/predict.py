"""Remove shadows from a photograph or a folder of them.

    python predict.py photo.jpg --mask mask.png
    python predict.py photos/ --mask masks/ --weights runs/cfg/removal/last.pt --out results
    python predict.py photos/ --mask masks/ --weights G1.pth G2.pth                     (the release's)

A mask is white in the shadow and of its photograph's size; of a folder each is found by its stem. Without --mask a
plain threshold of lightness stands in, which takes dark things for shadows: a stopgap, not a detector.
"""

import argparse
from pathlib import Path

from common import distributed
from common.errors import InputError
from common.images import list_images, read_image, write_image
from common.run import entry
from common.shadow.triplets import listing, read_mask

import numpy as np

from hqss import weights
from hqss.inference import check, restore, threshold_mask


def main(argv: list[str]) -> list[Path]:
    """Write the results as PNG files; returns their paths. Errors: InputError, before anything is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, help="photographs, or folders of them")
    parser.add_argument("--mask", type=Path, help="mask of the one photograph, or folder of masks")
    parser.add_argument("--weights", nargs="+", help="a run's removal/last.pt, a .safetensors, or G1.pth G2.pth")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results (default: results)")
    parser.add_argument("--clear", action="store_true", help="networks trained with removal.clear")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    given = parser.parse_args(argv)
    if given.weights and len(given.weights) > 2:
        raise InputError(f"--weights takes one file or two (G1 and G2), found {len(given.weights)}")
    paths = [path for item in given.inputs for path in (list_images(item) if item.is_dir() else [item])]
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise InputError(f"{named[path.stem]} and {path} would have one result; call them apart")
        named[path.stem] = path
    masks = find_masks(given.mask, named)
    for path in paths:
        check(read_image(path), mask_of(path, masks))
    device = distributed.start(given.device)
    coarse, refine = (network.to(device) for network in weights.removers(given.weights))
    written = []
    for path in paths:
        rgb, levels = read_image(path), mask_of(path, masks)
        written.append(given.out / f"{path.stem}.png")
        write_image(written[-1], restore(coarse, refine, rgb, levels, given.clear))
        print(f"{written[-1]}: {(levels > 0).mean():.1%} in shadow")
    return written


def find_masks(given: Path | None, named: dict[str, Path]) -> dict[str, Path]:
    """The mask of each photograph by stem; {} where none is given. Errors: InputError naming what is missing."""
    if given is None:
        return {}
    if not given.is_dir():
        if len(named) > 1:
            raise InputError(f"--mask {given} is one file for {len(named)} photographs; give a folder of masks")
        return dict.fromkeys(named, given)
    found = listing(given)
    missing = sorted(named.keys() - found.keys())
    if missing:
        raise InputError(f"--mask {given}: has no mask for {len(missing)} photographs, as {missing[0]}")
    return found


def mask_of(path: Path, masks: dict[str, Path]) -> np.ndarray:
    """Mask levels uint8 [H, W] of a photograph."""
    return read_mask(masks[path.stem], None) if masks else threshold_mask(read_image(path))


if __name__ == "__main__":
    entry(main)
