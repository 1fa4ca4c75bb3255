"""Takes moiré out of photographs: any image or folder, of any size.

    python predict.py photo.jpg                            the shipped network; writes demoired/photo.png
    python predict.py photos/ --out clean --overlap 32 --map
    python predict.py photo.jpg --weights ckpt_best.pth --widths 0.6 0.5 0.4 --route budget --budget 0.4

Prints each image's multiply-adds, time and tiles per width. --map writes photo_map.png beside the result: red tiles
went through the widest network, yellow through the middle one, green through the narrowest.
"""

import argparse
import itertools
from pathlib import Path

from common import checkpoint, distributed
from common.config import from_dict
from common.errors import CheckpointError, InputError
from common.images import list_images, read_image, write_image
from common.run import entry

import torch
from torch import nn
from tqdm import tqdm

from dda import models
from dda.config import Config, Prior, Routing
from dda.inference import Demoirer, overlay
from dda.metrics import to_uint8

SHIPPED = Path(__file__).parent / "weights" / "dmcnn_dda.safetensors"
WIDTHS = (0.75, 0.5, 0.25)


def main(argv: list[str]) -> list[Path]:
    """Restore the images; returns the files written."""
    given = parse(argv)
    inputs = gather(given.input)
    device = distributed.start(given.device)
    network, widths = load(Path(given.weights), given.widths)
    demoirer = Demoirer(
        network.to(device).eval(),
        widths,
        tile=given.tile,
        routing=Routing(kind=given.route, fixed=given.fixed, budget=given.budget),
        prior=Prior(mode=given.prior),
        overlap=given.overlap,
        thresholds=given.thresholds,
        precision=given.precision,
    )
    outputs = targets(inputs, Path(given.out))
    written = []
    for path, target in tqdm([*zip(inputs, outputs)], "demoiré", disable=None if len(inputs) > 1 else True):
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        result = demoirer(image)
        restored = to_uint8(result.image[None], "round")[0].cpu()
        write_image(target, restored.permute(1, 2, 0).contiguous().numpy())
        written.append(target)
        if given.map:
            marked = map_of(target)
            write_image(marked, overlay(restored, result, len(widths)).permute(1, 2, 0).contiguous().numpy())
            written.append(marked)
        counts = torch.bincount(result.choice, minlength=len(widths)).tolist()
        tiles = ", ".join(f"{n} at {w:g}" for n, w in zip(counts, widths))
        cost = f"{result.macs / 1e9:.1f} GMAC, {result.seconds:.2f} s"
        tqdm.write(f"{target}: {image.shape[2]} x {image.shape[1]}, {tiles}; {cost}")
    return written


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Errors: InputError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="+", help="image files or folders")
    parser.add_argument("--weights", default=str(SHIPPED), help="ours or the release's (default: the shipped DMCNN)")
    parser.add_argument("--out", default="demoired", help="folder of the results (default: demoired)")
    parser.add_argument("--widths", nargs="+", type=float, help="falling; default: a run's own, else 0.75 0.5 0.25")
    parser.add_argument("--tile", default="512x512", type=size, help="HEIGHTxWIDTH of a tile (default: 512x512)")
    parser.add_argument("--overlap", type=int, default=0, help="pixels that tiles share and fade over, against seams")
    routes = ("rank", "released", "threshold", "budget", "fixed", "random", "inverse")
    parser.add_argument("--route", choices=routes, default="rank", help="how tiles get their widths (default: rank)")
    parser.add_argument("--fixed", type=int, default=0, help="position in --widths for --route fixed, 0 the widest")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the widest network for --route budget")
    parser.add_argument("--thresholds", nargs="+", type=float, default=[], help="falling scores for --route threshold")
    modes = ("paper", "official_train", "official_test")
    parser.add_argument("--prior", choices=modes, default="paper", help="arithmetic of the prior (default: paper)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic of the network")
    parser.add_argument("--map", action="store_true", help="also write the map of widths")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    given = parser.parse_args(argv)
    if not 0 < given.budget <= 1:
        raise InputError(f"--budget {given.budget} is a share of the widest network; give a number in (0, 1]")
    if given.fixed < 0:
        raise InputError(f"--fixed {given.fixed} is a position in --widths; give 0 or more")
    if given.thresholds != sorted(given.thresholds, reverse=True):
        raise InputError(f"--thresholds {given.thresholds} must fall, that of the widest network first")
    return given


def size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH, or one number for both. Errors: argparse's."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not HEIGHTxWIDTH in pixels, such as 512x640")
    return int(parts[0]), int(parts[-1])


def gather(inputs: list[str]) -> list[Path]:
    """The image files, those of folders included. Errors: InputError for what is not there."""
    found = []
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise InputError(f"{name}: there is no such file or folder")
        found += list_images(path) if path.is_dir() else [path]
    return found


def targets(inputs: list[Path], folder: Path) -> list[Path]:
    """A .png of its own for every input, told apart by a number where names repeat; never an input itself."""
    taken, made = {path.resolve() for path in inputs}, []
    for path in inputs:
        names = (folder / f"{path.stem}{f'_{i}' if i > 1 else ''}.png" for i in itertools.count(1))
        made.append(next(n for n in names if not taken & {n.resolve(), map_of(n).resolve()}))
        taken |= {made[-1].resolve(), map_of(made[-1]).resolve()}
    return made


def map_of(target: Path) -> Path:
    """Where the map of widths of a result goes."""
    return target.with_name(f"{target.stem}_map.png")


def load(path: Path, widths: list[float] | None) -> tuple[nn.Module, tuple[float, ...]]:
    """The network of a weight file, whatever wrote it, and its widths. Errors: InputError."""
    if path == SHIPPED and not path.is_file():
        raise InputError(f"{path}: the shipped weights are not there; give --weights")
    options, own = {}, WIDTHS
    if path.suffix == ".safetensors" and path.is_file():
        options, noted = models.stored_options(path)
        own = noted or WIDTHS
    else:
        try:
            config = from_dict(Config, checkpoint.load_own(path, "dda")["config"])
            n = config.network
            options = {"lbf": n.lbf, "head": n.head, "fix_conv5_cat": n.fix_conv5_cat}
            own = config.widths
        except CheckpointError:
            pass  # a released file, or one that models.restore refuses with a reason
    return models.restore(path, **options), tuple(widths or own)


if __name__ == "__main__":
    entry(main)
