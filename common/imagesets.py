"""Sets of labelled images in memory or in folders, fetched by position and augmented in batch.

Everything an augmentation decides comes from (seed, epoch, index), so a sample looks the same whether it is prepared
on the device in a batch, in the main process, or by any number of loader workers.
"""

import functools
import hashlib
from pathlib import Path

from common.errors import InputError
from common.images import read_image
from common.randomness import integers, uniform

import numpy as np
import torch
from PIL import Image

CROP_ROW, CROP_COLUMN, FLIP, RESIZE = 2, 3, 4, 16  # slots; RESIZE takes four for each of its ten attempts
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ArraySet:
    """Equally sized images held in memory as uint8, fetched and augmented in batch on their device.

    pixels: uint8 [N, H, W, 3], labels: [N]. Stored with `padding` zero pixels around each image, so that a random crop
    is one gather; `pixels` is a view of the images alone, which may be written to.
    """

    def __init__(self, pixels, labels, classes, statistics, *, seed=0, padding=0, flip=False):
        n, self.height, self.width, _ = pixels.shape
        self.seed, self.padding, self.flip = seed, padding, flip
        self.storage = torch.zeros(n, self.height + 2 * padding, self.width + 2 * padding, 3, dtype=torch.uint8)
        self.pixels.copy_(torch.as_tensor(pixels))
        self.labels, self.classes, self.statistics = torch.as_tensor(labels).long(), list(classes), statistics

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> torch.Tensor:
        p = self.padding
        return self.storage[:, p : p + self.height, p : p + self.width]

    def to(self, device: torch.device) -> "ArraySet":
        """Move images and labels to a device, in place."""
        self.storage, self.labels = self.storage.to(device), self.labels.to(device)
        return self

    def fetch(self, index: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images [B, 3, H, W] (channels last) and labels [B] of int64 positions [B]."""
        rows = torch.arange(self.height, device=index.device).expand(len(index), -1)
        columns = torch.arange(self.width, device=index.device).expand(len(index), -1)
        if self.flip:
            mirrored = uniform(self.seed, epoch, index, FLIP) < 0.5
            columns = torch.where(mirrored[:, None], self.width - 1 - columns, columns)
        if self.padding:
            size = 2 * self.padding + 1
            rows = rows + integers(self.seed, epoch, index, CROP_ROW, size)[:, None]
            columns = columns + integers(self.seed, epoch, index, CROP_COLUMN, size)[:, None]
        _, height, width, _ = self.storage.shape
        place = (index[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]  # [B, H, W]
        cropped = self.storage.view(-1, 3).index_select(0, place.flatten()).view(*place.shape, 3)
        return normalise(cropped, self.statistics), self.labels[index]

    def fingerprint(self) -> str:
        """sha256 over images and labels as they are now."""
        sha = hashlib.sha256(self.labels.cpu().numpy().tobytes())
        sha.update(self.pixels.cpu().numpy().tobytes())  # without the padding, which belongs to the augmentation
        return sha.hexdigest()


class FolderSet:
    """Images of any size in class folders, decoded when asked for (ImageNet's layout and transforms).

    Training: RandomResizedCrop(224; area 0.08-1, aspect 3/4-4/3) and flip; evaluation: short side 256, centre 224.
    """

    statistics = IMAGENET

    def __init__(self, root: Path, *, seed=0, train=False, limit=0):
        from torchvision.datasets import ImageFolder

        try:
            listing = ImageFolder(str(root))
        except OSError as error:
            raise InputError(f"{root}: is not a folder of class folders with images ({error})") from error
        samples = listing.samples[:limit] if limit else listing.samples
        self.paths = [path for path, _ in samples]
        self.labels = torch.tensor([label for _, label in samples])
        self.classes, self.seed, self.train = listing.classes, seed, train

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """The decoded image, uint8 [H, W, 3]."""
        return read_image(self.paths[index])

    def fetch(self, index: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images [B, 3, 224, 224] and labels [B] of int64 positions [B] on the CPU."""
        crop = self._random_crop if self.train else self._centre_crop
        draws = uniform(self.seed, epoch, index[:, None], torch.arange(RESIZE, RESIZE + 40)[None]).double().numpy()
        mirrored = uniform(self.seed, epoch, index, FLIP).numpy() < 0.5
        images = []
        for sample, draw, mirror in zip(index.tolist(), draws, mirrored):
            image = crop(Image.fromarray(self.read(sample)), draw.reshape(10, 4))
            images.append(image[:, ::-1] if mirror and self.train else image)
        return normalise(torch.from_numpy(np.stack(images)), self.statistics), self.labels[index]

    @staticmethod
    def _random_crop(image: Image.Image, draws: np.ndarray) -> np.ndarray:
        """The first of ten proposals (area, aspect, top, left) that lies inside, otherwise torchvision's fallback."""
        width, height = image.size
        area = width * height * (0.08 + 0.92 * draws[:, 0])
        aspect = np.exp(np.log(3 / 4) + np.log(16 / 9) * draws[:, 1])
        w, h = np.round(np.sqrt(area * aspect)).astype(int), np.round(np.sqrt(area / aspect)).astype(int)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        if fits.any():
            k = fits.argmax()
            w, h = int(w[k]), int(h[k])
            top, left = int(draws[k, 2] * (height - h + 1)), int(draws[k, 3] * (width - w + 1))
        else:
            w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
            top, left = (height - h) // 2, (width - w) // 2
        return np.asarray(image.crop((left, top, left + w, top + h)).resize((224, 224), Image.BILINEAR))

    @staticmethod
    def _centre_crop(image: Image.Image, _draws: np.ndarray) -> np.ndarray:
        width, height = image.size
        short = min(width, height)
        image = image.resize((int(256 * width / short), int(256 * height / short)), Image.BILINEAR)
        left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
        return np.asarray(image.crop((left, top, left + 224, top + 224)))

    def fingerprint(self) -> str:
        """sha256 over the names and sizes of the files."""
        names = [f"{Path(p).parent.name}/{Path(p).name}:{Path(p).stat().st_size}" for p in self.paths]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


def normalise(images: torch.Tensor, statistics: tuple) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] (channels last), ((x / 255) - mean) / std.

    Rows are treated as long vectors, and each operation rounds by itself, so every device gives the same bits.
    """
    b, h, w, _ = images.shape
    full, mean, std = _row_statistics(statistics, w, images.device)
    rows = images.reshape(b, h, w * 3).to(torch.float32).div_(full).sub_(mean).div_(std)
    return rows.view(b, h, w, 3).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _row_statistics(statistics: tuple, width: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """255, mean and standard deviation for each value of an image row [W * 3]; copied to the device once."""
    mean, std = (torch.tensor(s, device=device).repeat(width) for s in statistics)
    return torch.full_like(mean, 255), mean, std
