"""Labelled images for classification: where they come from, and how an epoch of them is fed to a loop."""

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from common import distributed
from common.config import Count, Index
from common.errors import InputError
from common.images import decode_image
from common.imagesets import ArraySet, FolderSet
from common.randomness import permutation

import numpy as np
import torch
from torch.utils.data import DataLoader

STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


@dataclass(frozen=True)
class Labelled:
    """A data set of labelled images and how it is fed."""

    name: Literal["digits", "cifar10", "cifar100", "imagenet"] = "cifar100"
    """digits (1,797 8x8 images inside scikit-learn), CIFAR, or ImageNet's class folders root/{train,val}/CLASS"""
    root: str = "data"
    """folder of the data set, or for CIFAR an .npz of encoded images (train_jpeg, train_offset, train_label, …)"""
    download: bool = False
    """fetch CIFAR from its authors' server when root does not hold it"""
    limit: Index = 0
    """use only the first so many training and test images; 0 uses all"""
    batch_size: Count = 64
    """images of a step, over all processes"""
    test_batch_size: Count = 500
    """images of an evaluation step, over all processes"""
    crop_padding: Index = 4
    """zero pixels around an image before its random crop (not for imagenet)"""
    flip: bool = True
    """mirror half of the training images"""
    resident: bool = True
    """keep small images as uint8 on the device and augment there in batch; otherwise use loader workers"""
    workers: Index = 0
    """loader processes where the data is not resident"""


class Batch(NamedTuple):
    """images [B, 3, H, W] float32 normalised, labels [B], index [B] in the whole data set, weight of the mean loss."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    weight: float


def load(settings: Labelled, seed: int, folder: type[FolderSet] = FolderSet) -> tuple:
    """The training and the test set that a config names; `folder` reads class folders.

    Errors: InputError for data that is missing, damaged, too small for a batch, or has labels outside its classes.
    """
    if settings.name == "imagenet":
        root = Path(settings.root)
        train = folder(root / "train", seed=seed, train=True, limit=settings.limit)
        test = FolderSet(root / "val", limit=settings.limit)
    else:
        parts, classes = _digits() if settings.name == "digits" else _cifar(settings)
        parts = [(pixels[: settings.limit or None], labels[: settings.limit or None]) for pixels, labels in parts]
        statistics = STATISTICS.get(settings.name) or _statistics(parts[0][0])
        augment = {"seed": seed, "padding": settings.crop_padding, "flip": settings.flip}
        train = ArraySet(*parts[0], classes, statistics, **augment)
        test = ArraySet(*parts[1], classes, statistics)
    for part, data in (("training", train), ("test", test)):
        out = (data.labels < 0) | (data.labels >= len(data.classes))
        if out.any():
            raise InputError(
                f"{settings.name}: {int(out.sum())} {part} labels lie outside 0..{len(data.classes) - 1}, the first "
                f"is {int(data.labels[out][0])} of image {int(out.nonzero()[0])}"
            )
    if train.classes != test.classes:
        raise InputError(
            f"{settings.root}: training and test classes differ "
            f"({sorted(set(train.classes) ^ set(test.classes))[:5]} are on one side only)"
        )
    if len(train) < settings.batch_size:
        raise InputError(f"the training set has {len(train)} images, fewer than data.batch_size {settings.batch_size}")
    return train, test


def place(data, settings: Labelled, device: torch.device) -> None:
    """Put a set held in memory on the device for good, where the settings say so."""
    if isinstance(data, ArraySet) and settings.resident:
        data.to(device)


def describe(settings: Labelled, train) -> dict:
    """What env.json and checkpoints say of the data."""
    return {"name": settings.name, "images": len(train), "sha256": train.fingerprint()}


def batches(
    data,
    order: torch.Tensor,
    epoch: int,
    settings: Labelled,
    device: torch.device,
    *,
    start: int = 0,
    micro_batches: int = 1,
) -> Iterator[list[Batch]]:
    """This rank's micro-batches of every step from `start` on, as one list a step.

    order: int64 [n], positions in the data set in the order of the epoch; the last batch may be smaller.
    """
    resident = isinstance(data, ArraySet) and settings.resident
    order = order.to(data.storage.device if resident else "cpu")
    steps = [distributed.share(b, micro_batches) for b in order.split(settings.batch_size)[start:]]
    if resident or settings.workers == 0:
        fetched = (data.fetch(part, epoch) for step in steps for part, _ in step)
    else:
        parts = [part for step in steps for part, _ in step]
        fetched = iter(_loader(data, parts, epoch, settings.workers, device))
    for step in steps:
        ready = []
        for part, weight in step:
            images, labels = next(fetched)
            ready.append(
                Batch(
                    images.to(device, non_blocking=True),
                    labels.to(device, non_blocking=True),
                    part.to(device, non_blocking=True),
                    weight,
                )
            )
        yield ready


def test_batches(data, settings: Labelled, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's share of a data set, unaugmented, in order: images and labels."""
    share = torch.arange(len(data)).tensor_split(distributed.world())[distributed.rank()]
    parts = list(share.split(max(1, settings.test_batch_size // distributed.world())))
    if isinstance(data, ArraySet) or settings.workers == 0:
        fetched = (data.fetch(part.to(data.labels.device), 0) for part in parts)
    else:
        fetched = iter(_loader(data, parts, 0, settings.workers, device))
    for images, labels in fetched:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def epoch_order(seed: int, epoch: int, kept: torch.Tensor) -> torch.Tensor:
    """The positions in `kept` ([n]) in the random order of an epoch."""
    return kept[permutation(seed, epoch, len(kept), kept.device)]


class _Fetch(torch.utils.data.Dataset):
    """A data set whose items are whole batches, for loader workers."""

    def __init__(self, data, epoch: int):
        self.data, self.epoch = data, epoch

    def __getitem__(self, index: torch.Tensor):
        return self.data.fetch(index, self.epoch)


def _loader(data, parts: list[torch.Tensor], epoch: int, workers: int, device: torch.device) -> DataLoader:
    # The loader's own generator, or it would draw from the global one and a resumed run would differ.
    return DataLoader(
        _Fetch(data, epoch),
        batch_size=None,
        sampler=parts,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )


SOURCES = {
    "digits": (".", "inside scikit-learn", "1 MB", "UCI optical digits, CC BY 4.0"),
    "cifar10": ("cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar.html", "170 MB", "not stated"),
    "cifar100": ("cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar.html", "169 MB", "not stated"),
    "imagenet": ("imagenet/train", "https://image-net.org (registration)", "150 GB", "non-commercial research"),
}


def report_sources(argv: list[str], description: str) -> None:
    """The command line of a project's data.py: which sets lie below --root, and where the others come from."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", default="data", help="folder that holds the data sets (default: data)")
    root = Path(parser.parse_args(argv).root)
    print(f"{'set':<10} {'here':<8} {'expected at':<32} {'size':<8} {'licence':<28} source")
    for name, (folder, source, size, licence) in SOURCES.items():
        here = name == "digits" or (root / folder).is_dir()
        place = "-" if name == "digits" else str(root / folder)
        print(f"{name:<10} {'present' if here else 'missing':<8} {place:<32} {size:<8} {licence:<28} {source}")
    print("--data.download true fetches CIFAR; --data.root also takes an .npz of encoded images (see README.md)")


def _digits() -> tuple[list, list[str]]:
    """The first 1,000 and last 797 of scikit-learn's digits (other writers), 0-16 stretched to 0-255, as RGB."""
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise InputError("the digits come with scikit-learn: pip install scikit-learn")
    # Its file is read as it lies there: to import the package takes longer than many a run on it.
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    values = np.loadtxt(path, delimiter=",", dtype=np.int64)
    pixels = np.rint(values[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    labels = values[:, -1]
    return [(pixels[:1000], labels[:1000]), (pixels[1000:], labels[1000:])], [str(c) for c in range(10)]


def _cifar(settings: Labelled) -> tuple[list, list[str]]:
    if settings.root.endswith(".npz"):
        return archive(Path(settings.root))
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[settings.name]
    try:
        sets = [kind(settings.root, train=train, download=settings.download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{settings.root}: holds no {kind.base_folder} ({error}); unpack {kind.url} there, or give "
            "--data.download true where there is a network"
        ) from error
    return [(part.data, np.asarray(part.targets)) for part in sets], sets[0].classes


def archive(
    path: Path, parts: tuple[str, ...] = ("train", "test"), only: tuple[str, ...] = ()
) -> tuple[list, list[str]]:
    """Encoded images back to back in an .npz: image i is bytes[offset[i]:offset[i + 1]] (scalars, JPEG or PNG).

    Returns (pixels uint8 [N, H, W, 3], labels [N]) for each part, and the names of all classes. `only` leaves out the
    images of other classes before they are decoded. Errors: InputError for an archive that is missing, damaged or
    incomplete, for images that differ in size, and for a class that it does not know or has no image of.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {key: archive[key] for key in archive.files}
    except Exception as error:
        raise InputError(f"{path}: is not a readable .npz archive ({error})") from error
    needed = [f"{part}_{what}" for part in parts for what in ("jpeg", "offset", "label")] + ["classes"]
    missing = [key for key in needed if key not in content]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}")
    names = [str(c) for c in content["classes"]]
    for name in only:
        if name not in names:
            raise InputError(f"{path}: has no class {name!r}; choose from {', '.join(names)}")
    return [_decoded(path, part, content, [names.index(name) for name in only]) for part in parts], names


def _decoded(path: Path, part: str, content: dict, only: list[int]) -> tuple[np.ndarray, np.ndarray]:
    data, offset, labels = (content[f"{part}_{what}"] for what in ("jpeg", "offset", "label"))
    if len(offset) != len(labels) + 1:
        raise InputError(
            f"{path}: {part}_offset has {len(offset)} entries for {len(labels)} labels; one more is needed"
        )
    kept = np.flatnonzero(np.isin(labels, only)) if only else np.arange(len(labels))
    absent = sorted(set(only) - set(labels[kept].tolist()))
    if absent:
        raise InputError(f"{path}: {part} holds no image of class {content['classes'][absent[0]]}")
    images = [decode_image(data[offset[i] : offset[i + 1]].tobytes(), f"{path}:{part}[{i}]") for i in kept]
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{path}: the {part} images differ in size")
    return np.stack(images), labels[kept]


def _statistics(pixels: np.ndarray) -> tuple:
    """Mean and standard deviation of each channel in [0, 1]."""
    values = pixels.reshape(-1, 3) / 255
    return tuple(values.mean(0).tolist()), tuple(values.std(0).tolist())
