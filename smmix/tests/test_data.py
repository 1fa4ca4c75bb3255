"""Batches that pair, augmentation that repeats itself, the evaluation transform, and what a folder must hold."""

import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from common.errors import InputError
from common.images import write_image
from common.run import Runtime
from common.testing import image_folders

import numpy as np
import pytest
import torch
from PIL import Image

from smmix import data
from smmix.config import Config, Data, Mix


def config(**options) -> Config:
    return Config(data=Data(**{"name": "canvas", "batch_size": 8, **options}))


def folders(root: Path, **options) -> Config:
    return config(**{"name": "imagenet", "root": str(root), "batch_size": 4, "size": 48, **options})


@pytest.fixture
def noisy(tmp_path) -> Path:
    """Eight images of noise in two classes, landscape and portrait."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for i in range(8):
            path = tmp_path / part / f"class{i % 2}" / f"{i}.png"
            write_image(path, rng.integers(0, 256, (60, 80, 3) if i < 4 else (90, 50, 3), dtype=np.uint8))
    return tmp_path


def test_an_epoch_is_whole_batches_and_visits_nothing_twice():
    conf = config(limit=30)
    train, _ = data.load(conf)
    orders = [data.order_of(conf, train, epoch).tolist() for epoch in (0, 1)]
    assert [len(order) for order in orders] == [24, 24] and orders[0] != orders[1]
    assert all(len(set(order)) == 24 for order in orders)


@pytest.mark.parametrize(("method", "micro", "expected"), [("smmix", 1, 28), ("smmix", 2, 28), ("none", 1, 29)])
def test_a_smaller_last_batch_is_cut_to_pairs(method, micro, expected):
    conf = replace(config(limit=29, drop_last=False), mix=Mix(method=method), run=Runtime(micro_batches=micro))
    train, _ = data.load(conf)
    assert len(data.order_of(conf, train, 0)) == expected


@pytest.mark.parametrize("batch_size", [7, 1])
def test_odd_batches_are_refused_where_images_are_paired(batch_size):
    conf = config(batch_size=batch_size)
    with pytest.raises(InputError, match="mixed in pairs"):
        data.load(conf)
    data.load(replace(conf, mix=Mix(method="none")))


def test_repeated_augmentation():
    rows = data.repeated_order(600, 3, 2, epoch=4)
    assert rows.shape == (2, 256)
    views = torch.cat([rows[0], rows[1]])
    assert len(views.unique()) == len(views), "an image comes back as another view"
    counts = Counter((views % 600).tolist())
    assert set(counts.values()) <= {1, 2, 3} and len(counts) == pytest.approx(512 / 3, abs=2)
    batches = data.repeated_batches(600, 3, 2, 64, epoch=4).view(8, 2, 32)
    assert torch.equal(batches[:, 1].flatten(), rows[1])
    assert not torch.equal(data.repeated_order(600, 3, 2, epoch=5), rows)


def test_augmentation_depends_on_seed_epoch_and_view_alone(noisy):
    train, _ = data.load(folders(noisy))
    torch.manual_seed(0)
    before = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    images, labels = train.fetch(torch.arange(8), 1)
    np.random.rand()  # noqa: NPY002
    assert torch.equal(torch.rand(1), before[0]), "the global generators are put back"
    assert images.shape == (8, 3, 48, 48) and labels.tolist() == [0] * 4 + [1] * 4
    alone, _ = train.fetch(torch.tensor([5]), 1)
    assert torch.equal(alone[0], images[5])
    for other in (train.fetch(torch.tensor([5]), 2)[0], train.fetch(torch.tensor([5 + 8]), 1)[0]):
        assert other.shape == alone.shape and not torch.equal(other, alone)
    seeded, _ = data.load(replace(folders(noisy), seed=1))
    assert not torch.equal(seeded.fetch(torch.tensor([5]), 1)[0], alone)


@pytest.mark.parametrize(("option", "value"), [("randaugment", None), ("erasing", 1.0), ("flip", False)])
def test_augmentation_switches_act(noisy, option, value):
    plain, other = (data.load(folders(noisy, **options))[0] for options in ({}, {option: value}))
    index = torch.arange(8)
    assert not torch.equal(plain.fetch(index, 3)[0], other.fetch(index, 3)[0])


@pytest.mark.parametrize("shape", [(75, 100, 3), (120, 64, 3), (60, 60, 3)])
@pytest.mark.parametrize("size", [56, 48])
def test_the_evaluation_transform_is_torchvisions(shape, size):
    from torchvision import transforms

    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    reference = transforms.Compose(
        [
            transforms.Resize(int(256 / 224 * size), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.testing.assert_close(data.eval_transform(image, size), reference(Image.fromarray(image)), rtol=0, atol=1e-5)


def test_small_images_are_not_resized():
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = (torch.from_numpy(image).permute(2, 0, 1) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    torch.testing.assert_close(data.eval_transform(image, 32), expected)


def test_training_and_test_folders(noisy):
    train, test = data.load(folders(noisy))
    images, labels = test.fetch(torch.arange(8), 0)
    assert images.shape == (8, 3, 48, 48) and labels.tolist() == train.labels.tolist()
    assert torch.equal(images[2], data.eval_transform(test.read(2), 48))
    shutil.rmtree(noisy / "train")
    assert len(data.load_test(folders(noisy))) == 8, "an evaluation needs no training images"


def test_unfit_folders(tmp_path, noisy):
    with pytest.raises(InputError, match="train"):
        data.load(folders(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="8 images"):
        data.load(folders(noisy, batch_size=16))
    with pytest.raises(InputError, match="no whole batch"):
        data.load(folders(noisy, repeats=3))
    with pytest.raises(InputError, match="class folders"):
        data.load(config(repeats=3))
    image_folders(tmp_path, images=4)
    (tmp_path / "val" / "class0").rename(tmp_path / "val" / "other")
    with pytest.raises(InputError, match="classes differ"):
        data.load(folders(tmp_path))


def test_the_command_says_what_is_there(tmp_path):
    script = Path(data.__file__)
    done = subprocess.run([sys.executable, script, "--root", tmp_path], capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "present" in lines["digits"] and "missing" in lines["imagenet"] and "https://" in lines["imagenet"]
