"""Remove shadows from a photograph or a folder of them.

    python predict.py photo.jpg --mask mask.png
    python predict.py photos/ --mask masks/ --weights best_net_G.pth --out results/

Masks pair with photographs by the stem of their names; non-zero above 0.9 of full scale is shadow. Without --mask a
crude detector guesses where it is dark: a stand-in for a learned one, which `predict(…, detector=function)` takes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from common import checkpoint, config
from common.distributed import start
from common.errors import CheckpointError, InputError
from common.images import list_images, read_image, write_image
from common.run import entry
from common.shadow.color import rgb8_to_lab8
from common.shadow.sources import shrink
from common.shadow.triplets import listing, read_mask

import cv2
import numpy as np
import safetensors
import torch

from labnet import models
from labnet.config import Config, Data, Evaluation, Model
from labnet.restore import remove_shadow
from labnet.train import build

WEIGHTS = Path(__file__).parent / "weights" / "labnet_small.safetensors"
LONGEST = 1600  # pixels: every map of the network has the picture's full size
LONGEST_HELP = f"shrink larger pictures to so many pixels a side, for memory (default: {LONGEST}); 0 keeps all"
OPENING = 7  # pixels of the square that removes specks from a guessed mask


def main(argv: list[str]) -> list[Path]:
    """Write NAME_free.png for each input; returns the paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="photograph or folder")
    parser.add_argument("--mask", type=Path, help="mask, or folder of masks for a folder")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="file of train.py, export.py or the release")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the results")
    parser.add_argument("--longest", type=int, default=LONGEST, help=LONGEST_HELP)
    parser.add_argument("--paste", action="store_true", help="take lit pixels from the photograph")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    given = parser.parse_args(argv)
    photographs = list_images(given.input) if given.input.is_dir() else [given.input]
    masks = pair(photographs, given.mask)
    network, conf = load(given.weights, given.paste)
    device = start(given.device)
    network = network.to(device, memory_format=torch.channels_last).eval()
    written = []
    for photograph, mask in zip(photographs, masks):
        levels = None if mask is None else read_mask(mask, threshold=None)
        picture = read_image(photograph)
        if levels is not None and levels.shape != picture.shape[:2]:
            raise InputError(
                f"{mask} is {levels.shape[1]}x{levels.shape[0]}, {photograph} {picture.shape[1]}x{picture.shape[0]}; "
                "a mask has the size of its photograph"
            )
        if 0 < given.longest < max(picture.shape[:2]):
            print(f"{photograph}: shrunk to {given.longest} pixels; --longest 0 keeps its size", file=sys.stderr)
            picture = shrink(picture, given.longest)
            if levels is not None:
                whole = np.where(levels > conf.data.test_threshold * 255, 255, 0).astype(np.uint8)
                levels = np.where(shrink(whole, given.longest) > 127, 255, 0).astype(np.uint8)
        path = given.out / f"{photograph.stem}_free.png"
        write_image(path, predict(network, conf, picture, levels, device=device))
        print(path)
        written.append(path)
    return written


def predict(
    network: models.LABNet,
    conf: Config,
    picture: np.ndarray,
    levels: np.ndarray | None = None,
    detector: Callable[[np.ndarray], np.ndarray] | None = None,
    device="cpu",
) -> np.ndarray:
    """The picture uint8 [H, W, 3] without shadow; levels: its mask uint8 [H, W], else what the detector finds."""
    if levels is None:
        levels = (detector or dark_regions)(picture)
    return remove_shadow(network, picture, levels, conf, device)


def dark_regions(picture: np.ndarray) -> np.ndarray:
    """A crude shadow detector: L below Otsu's threshold, without specks; uint8 [H, W] of 0 and 255."""
    luminance = cv2.GaussianBlur(np.ascontiguousarray(rgb8_to_lab8(picture)[..., 0]), (0, 0), 2)
    _, dark = cv2.threshold(luminance, 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    return cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((OPENING, OPENING), np.uint8))


def pair(photographs: list[Path], mask: Path | None) -> list[Path | None]:
    """The mask of each photograph. Errors: InputError for a photograph without one, and for two of one name."""
    stems = [photograph.stem for photograph in photographs]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise InputError(f"several photographs are called {', '.join(twice[:5])}; their results would have one name")
    if mask is None or mask.is_file():
        if mask is not None and len(photographs) > 1:
            raise InputError(f"--mask {mask} is one file for {len(photographs)} photographs; give a folder of masks")
        return [mask] * len(photographs)
    found = listing(mask)
    lonely = [photograph.name for photograph in photographs if photograph.stem not in found]
    if lonely:
        raise InputError(f"{mask} has no mask for {', '.join(lonely[:5])} ({len(lonely)} photographs)")
    return [found[photograph.stem] for photograph in photographs]


def load(path: Path, paste: bool = False) -> tuple[models.LABNet, Config]:
    """Network and config of a checkpoint of ours, an export, or the release's weights. Errors: CheckpointError."""
    if not path.is_file() and path == WEIGHTS:
        raise CheckpointError(f"{path} is not shipped with this version; give --weights, from train.py or the release")
    conf = describe(path)
    network = build(conf)
    models.load_weights(network, path)
    data = Data(test_size=None, test_threshold=conf.data.test_threshold)
    return network, Config(data=data, model=conf.model, eval=Evaluation(paste=paste))


def describe(path: Path) -> Config:
    """The config that a file carries; for bare weights the paper's network with their width."""
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safetensors.safe_open(path, "pt") as file:
                stored = (file.metadata() or {}).get("config")
        except Exception as error:  # a damaged file can make the reader raise anything
            raise CheckpointError(f"{path} cannot be read as weights ({error})") from error
        if stored:
            return config.from_dict(Config, json.loads(stored))
    else:
        try:
            return config.from_dict(Config, checkpoint.load_own(path, "labnet")["config"])
        except CheckpointError as error:
            if "belongs to" in str(error) or "there is no" in str(error):
                raise
    return Config(model=Model(channels=models.channels_of(path)))


if __name__ == "__main__":
    entry(main)
