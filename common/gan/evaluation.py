"""Distances between generated and real images: FID, the same with other features, and KID for few samples.

Only the Inception network with the released weights makes an FID; with any other features the number is called
`fd_<network>`. Images pass as uint8, as if they had been written to disk without loss.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path

from common.errors import InputError
from common.gan.frechet import Statistics, statistics, to_uint8
from common.gan.inception import fid_inception
from common.gan.perceptual import vgg16

import numpy as np
import torch
from torch import Tensor, nn

Extractor = Callable[[Tensor], Tensor]
NETWORKS = ("inception", "vgg16", "random")


class RandomFeatures(nn.Module):
    """A small convolutional network with fixed random weights: images [B, 3, H, W] in [0, 1] -> features [B, 64].

    It needs no file and knows nothing of the world: it tells colours and textures apart, not objects.
    """

    WIDTHS = (3, 16, 32, 64)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convs = nn.ModuleList()
        for before, after in zip(self.WIDTHS, self.WIDTHS[1:]):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            with torch.no_grad():
                conv.weight.normal_(0, (2 / (9 * before)) ** 0.5, generator=generator)
            self.convs.append(conv)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = images * 2 - 1
        for conv in self.convs:
            x = conv(x).relu()
        return x.mean((2, 3))


class PooledVGG(nn.Module):
    """relu4_3 of VGG-16, averaged over the image: images in [0, 1] -> [B, 512]."""

    def __init__(self, vgg: nn.Module):
        super().__init__()
        self.vgg = vgg.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.vgg(images * 2 - 1)[-1].mean((2, 3))


def extractor(name: str, weights: str | PathLike | None = None) -> tuple[str, nn.Module]:
    """What the distance is called (`fid`, `fd_vgg16`, `fd_random`) and the network that makes its features.

    weights: file of the network's released weights; without one they are downloaded. Errors: InputError,
    CheckpointError.
    """
    if name == "inception":
        return "fid", fid_inception(weights)
    if name == "vgg16":
        return "fd_vgg16", PooledVGG(vgg16(weights))
    if name == "random":
        return "fd_random", RandomFeatures()
    raise InputError(f"feature network {name}: not one of {', '.join(NETWORKS)}")


@torch.inference_mode()
def features(extract: Extractor, images: Iterable[Tensor]) -> Tensor:
    """Features [n, D] on the CPU of batches of images in [-1, 1], which are truncated to uint8 before.

    Errors: InputError for no image at all.
    """
    found = [extract(to_uint8(batch).permute(0, 3, 1, 2).float() / 255).cpu() for batch in images]
    if not found:
        raise InputError("there are no images to judge")
    return torch.cat(found)


@torch.inference_mode()
def generated(network: nn.Module, sources: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The network's images [B, 3, H, W] for batches of source images, in evaluation mode; its mode is restored."""
    training = network.training
    network.eval()
    try:
        for batch in sources:
            yield network(batch.to(device, non_blocking=True)).float()
    finally:
        network.train(training)


def kernel_distance(a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """KID: the unbiased squared MMD with kernel (x·y / D + 1)³, the mean over random subsets of both feature sets.

    a: [n, D], b: [m, D]. Unbiased for any number of samples, so that it suits small sets. Errors: InputError for
    fewer than two samples or different dimensions.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"KID of features {[*a.shape]} and {[*b.shape]}: give two or more of the same dimension")
    generator, values = torch.Generator().manual_seed(seed), []
    size = min(size, len(a), len(b))
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    mean_off_diagonal = lambda k: (k.sum() - k.trace()) / (size * (size - 1))
    for _ in range(subsets):
        x, y = (f[torch.randperm(len(f), generator=generator)[:size]].double() for f in (a, b))
        values.append(mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean())
    return float(torch.stack(values).mean())


def save_statistics(path: str | PathLike, given: Statistics) -> None:
    """Write `mu`, `sigma` and the number of samples as .npz, whole or not at all."""
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"{path}: statistics are written as .npz; give such a name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp.npz")
    try:
        np.savez(temporary, mu=given.mean.numpy(), sigma=given.covariance.numpy(), samples=given.samples)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_statistics(path: str | PathLike) -> Statistics:
    """Read `mu` and `sigma`; released files do not say how many samples they are of (0). Errors: InputError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {key: np.asarray(archive[key]) for key in archive.files}
    except Exception as error:  # whatever numpy and zip readers raise on a damaged file
        raise InputError(f"{path}: no readable statistics ({error}); make them with `eval.py --statistics`") from error
    mean, covariance = content.get("mu"), content.get("sigma")
    if mean is None or covariance is None or covariance.shape != (mean.size, mean.size):
        raise InputError(f"{path}: does not hold mu [D] and sigma [D, D]; make them with `eval.py --statistics`")
    tensors = (torch.from_numpy(np.asarray(part, np.float64)) for part in (mean, covariance))
    return Statistics(*tensors, int(content.get("samples", 0)))


def real_statistics(extract: Extractor, images: Iterable[Tensor], cache: str | PathLike | None = None) -> Statistics:
    """Statistics of real images, read from the cache file where it exists and written there otherwise."""
    if cache and Path(cache).is_file():
        return load_statistics(cache)
    found = statistics(features(extract, images))
    if cache:
        save_statistics(cache, found)
    return found
