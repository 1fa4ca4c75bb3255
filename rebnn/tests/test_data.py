"""Colour noise of the ImageNet recipe, and that folders are read with it."""

from common import config
from common.errors import InputError
from common.imagesets import FolderSet
from common.testing import image_folders

import numpy as np
import pytest
import torch

from rebnn import data
from rebnn.config import Config
from rebnn.data import EIGENVALUES, EIGENVECTORS, LIGHT, LitFolder, lighting, normal


def experiment(root, *words: str) -> Config:
    options = ["--data.name=imagenet", f"--data.root={root}", "--data.batch_size=2", *words]
    return config.override(Config(), options)


def test_released_noise_changes_a_byte_by_at_most_one_and_the_intended_one_is_seen():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    draws = 0.1 * np.random.default_rng(1).standard_normal((200, 3))
    changes = [lighting(image, draw).astype(int) - image for draw in draws]
    assert set(np.unique(changes)) == {-1, 0}, "a shift below one grey level, truncated"
    assert any(np.abs(lighting(image, draw, scale=255).astype(int) - image).max() > 5 for draw in draws)


def test_the_noise_is_one_colour_for_all_pixels_and_clips():
    draw = np.array([1.0, -0.5, 0.3])
    shift = np.array(EIGENVECTORS) @ (draw * EIGENVALUES) * 255
    image = np.full((4, 5, 3), 128, np.uint8)
    lit = lighting(image, draw, scale=255)
    assert (lit == np.trunc(128 + shift).astype(np.uint8)).all()
    bright, dark = np.full((1, 1, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8)
    assert (lighting(bright, -draw, 255) == 255).all() and (lighting(dark, draw, 255) == 0).all(), (
        "the shift is negative"
    )


def test_normal_draws_are_normal_and_belong_to_the_sample():
    index = torch.arange(20_000)
    draws = normal(0, 1, index, LIGHT, 3)
    assert draws.shape == (20_000, 3)
    assert draws.mean(0).abs().max() < 0.03 and (draws.std(0) - 1).abs().max() < 0.03
    assert torch.corrcoef(draws.T).fill_diagonal_(0).abs().max() < 0.03
    torch.testing.assert_close(normal(0, 1, index[7:9], LIGHT, 3), draws[7:9])
    assert not torch.equal(normal(0, 2, index, LIGHT, 3), draws) and not torch.equal(
        normal(1, 1, index, LIGHT, 3), draws
    )


def test_training_folders_are_lit_and_test_folders_are_not(tmp_path):
    image_folders(tmp_path)
    plain = FolderSet(tmp_path / "train", train=True)
    lit, test = data.load(experiment(tmp_path, "--light.scale=255", "--light.std=1"))
    assert isinstance(lit, LitFolder) and type(test) is FolderSet
    index = torch.arange(len(lit))
    images, labels = lit.fetch(index, 1)
    reference, _ = plain.fetch(index, 1)
    assert labels.tolist() == [0, 0, 1, 1] and images.shape == reference.shape
    # The images are of one colour, so the noise shifts whole channels.
    shifts = (images - reference) * torch.tensor(FolderSet.statistics[1])[:, None, None] * 255
    grey = torch.tensor([40 * c + 7 * i for c in range(2) for i in range(2)], dtype=torch.float64)
    inc = torch.tensor(EIGENVECTORS, dtype=torch.float64) * torch.tensor(EIGENVALUES) @ normal(0, 1, index, LIGHT, 3).T
    wanted = (grey[:, None] + 255 * inc.T).clamp(0, 255).trunc() - grey[:, None]
    assert torch.allclose(shifts.amax((2, 3)).double(), wanted, atol=1e-3)
    assert torch.allclose(shifts.amin((2, 3)).double(), wanted, atol=1e-3)
    assert wanted.abs().max() > 3


def test_released_noise_leaves_the_crop_and_the_flip_alone(tmp_path):
    image_folders(tmp_path)
    silent, _ = data.load(experiment(tmp_path, "--light.std=0"))
    index = torch.arange(len(silent))
    reference = FolderSet(tmp_path / "train", train=True)
    for epoch in (1, 2):
        assert torch.equal(silent.fetch(index, epoch)[0], reference.fetch(index, epoch)[0])


def test_sources_are_reported(capsys):
    data.main(["--root", "data"])
    assert "digits" in capsys.readouterr().out


def test_missing_data_is_refused(tmp_path):
    with pytest.raises(InputError, match="class folders"):
        data.load(experiment(tmp_path / "none"))
