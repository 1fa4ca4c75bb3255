"""Accuracy on images that are not those of training: ImageNet-A, -R, -Sketch and -C.

    python robustness.py imagenet_a --checkpoint runs/imagenet_deit_tiny/train/last.pt --root imagenet-a
    python robustness.py imagenet_c --checkpoint official.pth --config configs/imagenet_deit_tiny.yaml --root DIR

imagenet_a, imagenet_r (Hendrycks et al. 2021): root/WNID/*, of which each names one of the network's classes; only the
logits of the classes that are there compete (200 of 1,000). sketch (Wang et al. 2019): the same layout, all logits.
imagenet_c (Hendrycks and Dietterich 2019): root/CORRUPTION/SEVERITY/WNID/*, 15 corruptions at severities 1 to 5; images
are taken as they are, 224 pixels. Each writes PROTOCOL/metrics.json beside the checkpoint.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

from common import distributed
from common.config import nearest
from common.environment import environment
from common.errors import InputError
from common.imagesets import FolderSet, normalise
from common.labelled import test_batches
from common.metrics import Accuracy
from common.report import print_metrics, write_metrics
from common.run import entry

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn

from smmix import data, restore
from smmix.config import Config

# Top-1 errors of AlexNet, mean over severities, to which corruption errors relate (github.com/hendrycks/robustness).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
SEVERITIES = range(1, 6)


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint by one protocol; prints a table, writes metrics.json and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=PROTOCOLS)
    add_options(parser)
    given, overrides = parser.parse_known_args(argv)
    if not given.root:
        raise InputError(f"{given.protocol} needs --root, the folder of its images")
    conf, network = restore.restore(given, overrides)
    device = distributed.start(conf.run.device)
    metrics = PROTOCOLS[given.protocol](given, conf, network.to(device), device)
    return report(metrics, given, given.protocol, conf, network)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, the images, the classes and the result."""
    restore.add_options(parser)
    parser.add_argument("--root", help="folder of the images")
    parser.add_argument(
        "--wnids", help="text file with the network's classes in order, one a line (default: ImageNet's)"
    )
    parser.add_argument("--out", help="metrics file (default: PROTOCOL/metrics.json beside the checkpoint)")


def report(metrics: dict, given: argparse.Namespace, protocol: str, conf: Config, network: nn.Module) -> dict:
    """Complete, print and write the metrics of a protocol, from rank 0; returns them."""
    path = Path(given.checkpoint)
    metrics["_meta"] = {"checkpoint": path.name, "network": network.architecture, "protocol": protocol}
    metrics["_meta"]["environment"] = environment(conf, {})
    out = Path(given.out) if given.out else path.parent / protocol / "metrics.json"
    if distributed.is_main():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_metrics(out, metrics)
        print_metrics(metrics)
    return metrics


# -- class folders ---------------------------------------------------------------------------------------------------


class ClassFolders(FolderSet):
    """Class folders for evaluation; prepared: uint8 [H, W, 3] and pixels a side -> normalised [3, S, S]."""

    def __init__(self, root: Path, size: int, prepared: Callable[[np.ndarray, int], Tensor]):
        super().__init__(root)
        self.size, self.prepared = size, prepared

    def fetch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        images = [self.prepared(self.read(i), self.size) for i in index.tolist()]
        return torch.stack(images), self.labels[index]


def as_it_is(image: np.ndarray, size: int) -> Tensor:
    """A normalised image whose short side is already `size` (ImageNet-C's is 224); others are resized to it first."""
    picture = Image.fromarray(image)
    short = min(picture.size)
    if short != size:
        picture = picture.resize([round(side * size / short) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in picture.size)
    cropped = np.array(picture.crop((left, top, left + size, top + size)))
    return normalise(torch.from_numpy(cropped)[None], FolderSet.statistics)[0]


def class_numbers(given: argparse.Namespace, folders: ClassFolders, classes: int) -> Tensor:
    """Which of the network's classes each folder is, int64 [folders].

    Errors: InputError for a folder that names none of them, or a list of another length.
    """
    if given.wnids:
        try:
            names = Path(given.wnids).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{given.wnids}: cannot be read as a text file ({error})") from error
    elif classes == 1000:
        names = ImageNetInfo("imagenet-1k").label_names()
    else:
        raise InputError(f"the network has {classes} classes, ImageNet 1000; name them in order in a file with --wnids")
    if len(names) != classes or len(set(names)) != classes:
        raise InputError(f"{given.wnids}: names {len(set(names))} different classes, the network has {classes}")
    unknown = [name for name in folders.classes if name not in names]
    if unknown:
        raise InputError(
            f"{given.root}: {len(unknown)} folders are no class of the network, the first is "
            f"{unknown[0]}{nearest(unknown[0], names)}"
        )
    return torch.tensor([names.index(name) for name in folders.classes])


def side_of(conf: Config) -> int:
    """Pixels a side of the network's images. Errors: InputError for a network that was not made for photographs."""
    if conf.data.name != "imagenet":
        raise InputError(
            f"a network of {conf.data.name} cannot classify ImageNet's variants; give one of data.name imagenet"
        )
    return conf.data.size or 224


@torch.inference_mode()
def accuracy(
    network: nn.Module,
    folders,
    conf: Config,
    device: torch.device,
    numbers: Tensor | None = None,
    restrict: bool = False,
    change: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 in percent.

    numbers: the network's class of each folder; restrict: only these compete. change: (images, their positions in the
    set) -> the images that are to be classified.
    """
    meter, numbers = Accuracy(), None if numbers is None else numbers.to(device)
    share = torch.arange(len(folders)).tensor_split(distributed.world())[distributed.rank()]
    seen = int(share[0]) if len(share) else 0  # a rank's images follow one another
    for images, labels in test_batches(folders, conf.data, device):
        if change is not None:
            images = change(images, torch.arange(seen, seen + len(images), device=device))
        seen += len(images)
        with torch.autocast(device.type, torch.bfloat16, enabled=conf.run.precision == "bf16"):
            logits = network(images).float()
        if restrict:
            logits = logits[:, numbers]
        elif numbers is not None:
            labels = numbers[labels]
        meter.update(logits, labels)
    return meter.result()


def natural(given: argparse.Namespace, conf: Config, network: nn.Module, device: torch.device) -> dict:
    """ImageNet-A, ImageNet-R (the folders' classes compete) and ImageNet-Sketch (all do)."""
    folders = ClassFolders(Path(given.root), side_of(conf), data.eval_transform)
    numbers = class_numbers(given, folders, network.num_classes)
    result = accuracy(network, folders, conf, device, numbers, restrict=given.protocol != "sketch")
    counts = {"images": len(folders), "classes": len(folders.classes)}
    return {**{f"{given.protocol}_{name}": value for name, value in result.items()}, **counts}


def relative_error(errors: dict[str, float]) -> float:
    """Mean corruption error (mCE): the mean of each corruption's error in percent over AlexNet's; AlexNet has 100."""
    return statistics.fmean(error / ALEXNET[name] for name, error in errors.items())


def corrupted(given: argparse.Namespace, conf: Config, network: nn.Module, device: torch.device) -> dict:
    """ImageNet-C: errors of each corruption over severities, their mean, and the mean relative to AlexNet's (mCE)."""
    root, size = Path(given.root), side_of(conf)
    places = {(c, s): root / c / str(s) for c in ALEXNET for s in SEVERITIES}
    missing = [str(path.relative_to(root)) for path in places.values() if not path.is_dir()]
    if missing:
        raise InputError(
            f"{root}: lacks {len(missing)} of the 75 folders CORRUPTION/SEVERITY, the first is {missing[0]}"
        )
    errors: dict[str, list[float]] = {name: [] for name in ALEXNET}
    images = 0
    for (name, _), path in places.items():
        folders = ClassFolders(path, size, as_it_is)
        numbers = class_numbers(given, folders, network.num_classes)
        errors[name].append(100 - accuracy(network, folders, conf, device, numbers)["top1"])
        images += len(folders)
    means = {name: statistics.fmean(values) for name, values in errors.items()}
    return {
        "imagenet_c_mce": relative_error(means),
        "imagenet_c_mean_error": statistics.fmean(means.values()),
        **{f"imagenet_c_error_{name}": mean for name, mean in means.items()},
        "images": images,
    }


PROTOCOLS = {"imagenet_a": natural, "imagenet_r": natural, "sketch": natural, "imagenet_c": corrupted}

if __name__ == "__main__":
    entry(main)
