"""Labelled images, and the colour noise that the ImageNet recipe adds to them.

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from.
"""

import argparse
import math
from pathlib import Path

from common import labelled, run
from common.imagesets import FLIP, RESIZE, FolderSet, normalise
from common.randomness import uniform

import numpy as np
import torch
from PIL import Image

from rebnn.config import Config
from rebnn.detection import sources
from rebnn.glue import data as sentences

EIGENVALUES = (0.2175, 0.0188, 0.0045)
"""of the colours of ImageNet in [0, 1], as every AlexNet descendant has them"""
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""rows for red, green and blue, columns for the three eigenvalues"""
LIGHT = 64  # slots of the three normal numbers of an image: six uniform ones


def lighting(image: np.ndarray, draw: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The colour noise of AlexNet on bytes: the same V·(draw·λ)·scale is added to every pixel (section 4).

    image: uint8 [H, W, 3] RGB; draw: [3], normal numbers times their standard deviation. The sum is clipped to [0, 255]
    and truncated. λ belongs to images in [0, 1], so with scale 1, the release's, a value changes by 0 or -1 at most.
    """
    shift = np.asarray(EIGENVECTORS, np.float64) @ (np.asarray(draw, np.float64) * EIGENVALUES) * scale
    return (image + shift).clip(0, 255).astype(np.uint8)


class LitFolder(FolderSet):
    """ImageNet's training images with colour noise between the random crop and the flip."""

    std, scale = 0.1, 1.0

    def fetch(self, index: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images [B, 3, 224, 224] and labels [B] of int64 positions [B] on the CPU."""
        draws = uniform(self.seed, epoch, index[:, None], torch.arange(RESIZE, RESIZE + 40)[None]).double().numpy()
        mirrored = uniform(self.seed, epoch, index, FLIP).numpy() < 0.5
        light = self.std * normal(self.seed, epoch, index, LIGHT, 3).numpy()
        images = []
        for sample, draw, rgb, mirror in zip(index.tolist(), draws, light, mirrored):
            image = self._random_crop(Image.fromarray(self.read(sample)), draw.reshape(10, 4))
            image = lighting(image, rgb, self.scale)
            images.append(image[:, ::-1] if mirror else image)
        return normalise(torch.from_numpy(np.stack(images)), self.statistics), self.labels[index]


def normal(seed: int, epoch: int, index: torch.Tensor, slot: int, count: int) -> torch.Tensor:
    """Standard normal numbers, float64 [B, count], from 2·count slots (Box and Muller)."""
    slots = torch.arange(slot, slot + 2 * count).view(2, count)
    radius, angle = uniform(seed, epoch, index[:, None, None], slots[None]).double().unbind(1)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)


def load(config: Config) -> tuple:
    """Training and test set of a config. Errors: InputError (missing, unfit or damaged data)."""
    reader = type("Lit", (LitFolder,), {"std": config.light.std, "scale": config.light.scale})
    return labelled.load(config.data, config.seed, folder=reader)


def main(argv: list[str]) -> None:
    """Print what lies below --root."""
    labelled.report_sources(argv, __doc__)
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path("data"))
    root = parser.parse_args(argv).root
    sources.report(root)
    sentences.report(root / "glue")


if __name__ == "__main__":
    run.entry(main)
