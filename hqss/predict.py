"""Remove shadows from a photograph or a folder of them, or paint its shadow elsewhere in it.

    python predict.py photo.jpg --mask mask.png
    python predict.py photos/ --mask masks/ --weights runs/cfg/removal/last.pt --out results
    python predict.py photos/ --mask masks/ --weights G1.pth G2.pth                     (the release's)
    python predict.py photo.jpg --mask mask.png --synthesis [--lit region.png]

A mask is white in the shadow and of its photograph's size; of a folder each is found by its stem. Without --mask a
plain threshold of lightness stands in, which takes dark things for shadows: a stopgap, not a detector.

--synthesis writes what stage 1 makes of a photograph, as one row: photograph, S, S^, P_N, N, N^, P_S, and P_S pasted.
N is the region of --lit, by default the mirrored mask, without the shadow; --weights then holds E and G.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from common import distributed
from common.errors import InputError
from common.images import list_images, read_image, write_image
from common.run import entry
from common.shadow.triplets import listing, read_mask

import numpy as np
import torch

from hqss import pictures, weights
from hqss.inference import check, regions, restore, threshold_mask

Work = Callable[[Path, Path, np.ndarray, np.ndarray], Path]


def main(argv: list[str]) -> list[Path]:
    """Write the results as PNG files; returns their paths. Errors: InputError, before anything is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, help="photographs, or folders of them")
    parser.add_argument("--mask", type=Path, help="mask of the one photograph, or folder of masks")
    parser.add_argument("--synthesis", action="store_true", help="show what E and G make of the photographs")
    parser.add_argument("--lit", type=Path, help="with --synthesis: mask of the region to darken, or folder of masks")
    parser.add_argument("--weights", nargs="+", help="a run's last.pt, a .safetensors, or G1.pth G2.pth (E.pth G.pth)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results (default: results)")
    parser.add_argument("--clear", action="store_true", help="G1.pth and G2.pth were trained with removal.clear")
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
    if given.lit and not given.synthesis:
        raise InputError("--lit goes with --synthesis")
    masks, lit = find_masks(given.mask, named, "--mask"), find_masks(given.lit, named, "--lit")
    for path in paths:
        rgb, levels = read_image(path), mask_of(path, masks)
        check(rgb, levels)
        if given.synthesis:
            region = lit_of(path, levels, lit)
            check(rgb, region)
            if not all(mask.any() for name, mask in regions(rgb, levels, region).items() if name.endswith("mask")):
                raise InputError(
                    f"{path}: needs a shadow and a lit region outside it; give other masks (--mask, --lit)"
                )
    device = distributed.start(given.device)
    work = painting(given.weights, lit, device) if given.synthesis else removing(given.weights, given.clear, device)
    written = []
    for path in paths:
        rgb, levels = read_image(path), mask_of(path, masks)
        written.append(work(given.out, path, rgb, levels))
        print(f"{written[-1]}: {(levels > 0).mean():.1%} in shadow")
    return written


def removing(files: list[str] | None, clear: bool, device: torch.device) -> Work:
    """Write a photograph without its shadow."""
    coarse, refine, clear = weights.removers(files, clear)
    networks = coarse.to(device), refine.to(device)

    def work(out: Path, path: Path, rgb: np.ndarray, levels: np.ndarray) -> Path:
        write_image(out / f"{path.stem}.png", restore(*networks, rgb, levels, clear))
        return out / f"{path.stem}.png"

    return work


def painting(files: list[str] | None, lit: dict[str, Path], device: torch.device) -> Work:
    """Write what E and G make of a photograph's shadow and of a lit region."""
    networks = [network.to(device) for network in weights.painters(files)]

    def work(out: Path, path: Path, rgb: np.ndarray, levels: np.ndarray) -> Path:
        values = regions(rgb, levels, lit_of(path, levels, lit))
        pictures.synthesis(out / f"{path.stem}_synthesis.png", *networks, values, device)
        return out / f"{path.stem}_synthesis.png"

    return work


def find_masks(given: Path | None, named: dict[str, Path], option: str) -> dict[str, Path]:
    """The mask of each photograph by stem; {} where none is given. Errors: InputError naming what is missing."""
    if given is None:
        return {}
    if not given.is_dir():
        if len(named) > 1:
            raise InputError(f"{option} {given} is one file for {len(named)} photographs; give a folder of masks")
        return dict.fromkeys(named, given)
    found = listing(given)
    missing = sorted(named.keys() - found.keys())
    if missing:
        raise InputError(f"{option} {given}: has no mask for {len(missing)} photographs, as {missing[0]}")
    return found


def mask_of(path: Path, masks: dict[str, Path]) -> np.ndarray:
    """Mask levels uint8 [H, W] of a photograph."""
    return read_mask(masks[path.stem], None) if masks else threshold_mask(read_image(path))


def lit_of(path: Path, levels: np.ndarray, lit: dict[str, Path]) -> np.ndarray:
    """Levels uint8 [H, W] of the region to darken, by default the photograph's own mask, mirrored."""
    return read_mask(lit[path.stem], None) if lit else levels[:, ::-1]


if __name__ == "__main__":
    entry(main)
