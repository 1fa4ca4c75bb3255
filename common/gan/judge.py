"""Judging a generator on a test set, as often as a run asks for it: the real images' features are kept."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator

from common.gan.data import TwoDomains, prepare
from common.gan.evaluation import extractor, features, generated, kernel_distance, load_statistics
from common.gan.frechet import Statistics, frechet_distance, statistics, to_uint8
from common.gan.settings import Judging
from common.images import write_image

import torch
from torch import Tensor, nn

LARGEST_SUBSET = 1000
"""images of a subset of KID"""


class Judge:
    """The Fréchet distance and KID between a generator's images of all test sources and the real target images.

    The distance is called `fid` for Inception's features, otherwise `fd_<network>` (`name`). released: whether the
    given statistics file counts, which belongs to the direction of the config. Every process judges the whole test set.
    """

    def __init__(self, settings: Judging, test: TwoDomains, device: torch.device, released: bool = True):
        self.name, extract = extractor(settings.network, settings.weights)
        self.extract, self.test, self.device = extract.to(device), test, device
        self.given = load_statistics(settings.statistics) if settings.statistics and released else None
        self.kept: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """Features [n, D] of the real target images."""
        if self.kept is None:
            self.kept = features(self.extract, (image.to(self.device) for image in targets(self.test)))
        return self.kept

    def statistics(self) -> Statistics:
        """Of the real target images: those that were given, or the test set's."""
        return self.given or statistics(self.real)

    def __call__(
        self, generator: nn.Module, precision: contextlib.AbstractContextManager | None = None
    ) -> dict[str, float]:
        """{name: distance, kid: …, images: n}; precision: a context for the generator alone, whose mode is restored."""
        found = features(self.extract, self._images(generator, precision or contextlib.nullcontext()))
        subsets = 100 if min(len(found), len(self.real)) > LARGEST_SUBSET else 1
        kid = kernel_distance(found, self.real, subsets, LARGEST_SUBSET)
        return {self.name: frechet_distance(statistics(found), self.statistics()), "kid": kid, "images": len(found)}

    def _images(self, generator: nn.Module, precision: contextlib.AbstractContextManager) -> Iterator[Tensor]:
        """Of all test sources, batch by batch; the context is left before the features are computed."""
        for source, _ in pairs(self.test):
            with precision:
                (image,) = generated(generator, [source], self.device)
            yield image


def pairs(test: TwoDomains) -> Iterator[tuple[Tensor, Tensor]]:
    """Source and target images of a test set in its order, in batches of data.test_batch_size."""
    for index in torch.arange(len(test)).split(test.settings.test_batch_size):
        yield test.fetch(index, 0)


def targets(test: TwoDomains) -> Iterator[Tensor]:
    """All images of the target domain one by one, unscaled but for sides that are no multiple of 4 (A.9)."""
    side, s = int(test.settings.direction == "AtoB"), test.settings
    for number in range(test.counts[side]):
        yield prepare(test.read(side, number), "none", s.load_size, s.crop_size)[None]


def turned(test: TwoDomains) -> TwoDomains:
    """The same images in the other direction."""
    other = copy.copy(test)
    direction = "BtoA" if test.settings.direction == "AtoB" else "AtoB"
    other.settings = dataclasses.replace(test.settings, direction=direction)
    return other


@torch.inference_mode()
def draw_samples(path, test: TwoDomains, networks: list[nn.Module], device: torch.device, count: int = 6) -> None:
    """A picture with a column for each of the first test images: source, target, then each network's image."""
    source, target = test.fetch(torch.arange(min(count, len(test))), 0)
    rows = [source, target, *(torch.cat(list(generated(n, source.split(1), device))).cpu() for n in networks)]
    picture = to_uint8(torch.cat([torch.cat(list(row), 2) for row in rows], 1)[None])[0]
    write_image(path, picture.numpy())
