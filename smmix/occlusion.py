"""Accuracy where patches of the images are removed (Naseer et al. 2021, random PatchDrop).

    python occlusion.py --checkpoint runs/imagenet_deit_tiny/train/last.pt --root imagenet/val
    python occlusion.py --checkpoint runs/cfg/train/last.pt --grid 8

Tenths of the patches of a grid (14 x 14 as published) are made black, over several random choices; the images are those
of --root (class folders) or the test set of the experiment. Each image has its own choice, where the published code has
one for each batch. Writes occlusion/metrics.json beside the checkpoint.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

from common import distributed
from common.errors import InputError
from common.labelled import place
from common.randomness import uniform
from common.run import entry

import torch
from torch import Tensor, nn

from smmix import data, restore, robustness
from smmix.config import Config
from smmix.robustness import ClassFolders, accuracy, class_numbers, side_of

TENTHS = range(10)  # of the patches are removed
PATCH = 4096  # slot of the number that ranks the patches of an image; one for each patch


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    robustness.add_options(parser)
    parser.add_argument("--grid", type=int, default=14, help="patches a side (default: 14)")
    parser.add_argument("--runs", type=int, default=5, help="random choices of patches (default: 5)")
    given, overrides = parser.parse_known_args(argv)
    conf, network = restore.restore(given, overrides)
    device = distributed.start(conf.run.device)
    metrics = occlusion(given, conf, network.to(device), device)
    return robustness.report(metrics, given, "occlusion", conf, network)


def occlude(images: Tensor, drop: Tensor, black: Tensor) -> Tensor:
    """Images [B, C, H, W] with the patches of drop, bool [B, g, g], in the colour black [C]."""
    height, width = (side // drop.shape[1] for side in images.shape[2:])
    pixels = drop.repeat_interleave(height, 1).repeat_interleave(width, 2)
    return torch.where(pixels[:, None], black.to(images).view(-1, 1, 1), images)


def dropped(seed: int, run: int, index: Tensor, grid: int, tenths: int) -> Tensor:
    """Which patches are removed, bool [B, g, g]: tenths·g²//10 of them, chosen at random for each image and run.

    A run removes from every image what it removes at a smaller share, and more.
    """
    count = grid * grid
    slots = torch.arange(PATCH, PATCH + count, device=index.device)
    rank = uniform(seed, run, index[:, None], slots).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < tenths * count // 10).unflatten(1, (grid, grid))


def occlusion(given: argparse.Namespace, conf: Config, network: nn.Module, device: torch.device) -> dict:
    """The accuracy at each share of removed patches: mean over runs and, of several, standard deviation."""
    numbers = None
    if given.root:
        test = ClassFolders(Path(given.root), side_of(conf), data.eval_transform)
        numbers = class_numbers(given, test, network.num_classes)
    else:
        _, test = data.load(conf)
        place(test, conf.data, device)
    images, _ = test.fetch(torch.zeros(1, dtype=torch.int64, device=test.labels.device), 0)
    height, width = images.shape[2:]
    if given.grid < 2 or height % given.grid or width % given.grid:
        raise InputError(f"--grid {given.grid}: images of {height} x {width} do not split into so many patches a side")
    if given.runs < 1:
        raise InputError(f"--runs {given.runs}: give at least 1")
    mean, std = (torch.tensor(s) for s in test.statistics)
    report, curve = {}, []
    for tenths in TENTHS:
        results = []
        for run in range(given.runs if tenths else 1):
            drop = partial(dropped, conf.seed, run, grid=given.grid, tenths=tenths)
            hide = lambda images, index, drop=drop: occlude(images, drop(index), -mean / std)
            results.append(accuracy(network, test, conf, device, numbers, change=hide)["top1"])
        curve.append(statistics.fmean(results))
        report[f"occlusion_top1_{10 * tenths}"] = curve[-1]
        if len(results) > 1:
            report[f"occlusion_std_{10 * tenths}"] = statistics.stdev(results)
    return {"occlusion_mean_top1": statistics.fmean(curve), **report, "images": len(test)}


if __name__ == "__main__":
    entry(main)
