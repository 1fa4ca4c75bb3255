"""Statistics and crops of the paper's recipes, and data that cannot be used."""

import subprocess
import sys
from pathlib import Path

from common.errors import InputError
from common.imagesets import FolderSet
from common.labelled import Labelled
from common.testing import image_archive, image_folders

import numpy as np
import pytest
import torch
from PIL import Image

from lts import data
from lts.config import Config


def digits(**options) -> Config:
    return Config(data=Labelled("digits", batch_size=64, crop_padding=0, flip=False, **options))


def test_digits_are_split_by_writer():
    train, test = data.load(digits())
    assert (len(train), len(test), len(train.classes)) == (1000, 797, data.CLASSES["digits"])
    images, labels = train.fetch(torch.arange(4), 1)
    assert images.shape == (4, 3, 8, 8) and labels.shape == (4,)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_statistics_are_the_papers(tmp_path, name):
    classes = data.CLASSES[name]
    path = image_archive(tmp_path, list(range(classes)), classes)
    train, test = data.load(Config(data=Labelled(name, root=str(path), batch_size=4)))
    mean, std = {
        "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    }[name]
    images, _ = test.fetch(torch.arange(3), 0)
    pixels = test.pixels[:3].double().permute(0, 3, 1, 2)
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(images.double(), expected, atol=1e-4)
    assert train.statistics == test.statistics and (train.padding, train.flip) == (4, True)


def test_crops_cover_at_least_the_given_area(monkeypatch):
    image, areas, crop = Image.new("RGB", (400, 400)), [], Image.Image.crop
    draws = np.full((10, 4), 0.5)  # an aspect of 1 always fits

    def recorded(self, box):
        areas.append((box[2] - box[0]) * (box[3] - box[1]) / 400**2)
        return crop(self, box)

    monkeypatch.setattr(Image.Image, "crop", recorded)
    for smallest, draw in ((0.2, 0.0), (0.2, 1.0), (0.08, 0.0)):
        draws[:, 0] = draw
        data.cropped_from(smallest)._random_crop(image, draws)
    FolderSet._random_crop(image, draws)
    assert areas == pytest.approx([0.2, 1.0, 0.08, 0.08], abs=0.01)


@pytest.mark.parametrize(("smallest", "low", "high"), [(0.6, 0.55, 1), (0.08, 0.05, 0.5)])
def test_the_smallest_crop_of_a_config_reaches_the_training_set(tmp_path, monkeypatch, smallest, low, high):
    image_folders(tmp_path, size=(240, 240))
    areas, crop = [], Image.Image.crop
    monkeypatch.setattr(
        Image.Image, "crop", lambda self, box: areas.append((box[2] - box[0]) * (box[3] - box[1])) or crop(self, box)
    )
    settings = Labelled("imagenet", root=str(tmp_path), batch_size=2)
    train, test = data.load(Config(data=settings, smallest_crop=smallest))
    for epoch in range(6):
        train.fetch(torch.arange(4), epoch)
    assert low < min(areas) / 240**2 < high and type(test) is FolderSet


def test_missing_folder_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match="cifar-100-python"):
        data.load(Config(data=Labelled("cifar100", root=str(tmp_path))))
    with pytest.raises(InputError, match="train"):
        data.load(Config(data=Labelled("imagenet", root=str(tmp_path / "nowhere"))))


def test_a_set_without_a_single_step_is_refused():
    with pytest.raises(InputError, match=r"20 images, fewer than data\.batch_size 64"):
        data.load(digits(limit=20))


def test_the_command_says_what_is_there(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    script = Path(data.__file__)
    done = subprocess.run([sys.executable, script, "--root", tmp_path], capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "present" in lines["cifar100"] and "missing" in lines["cifar10"] and "https://" in lines["cifar10"]
