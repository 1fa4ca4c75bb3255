"""The data of this project's configs; layouts and crops are tested in common/tests/test_gan.py."""

from pathlib import Path

from common import config
from common.errors import InputError
from common.gan.data import Domains
from common.gan.settings import Networks

import pytest
import torch

from dcd import data, train
from dcd.config import Config

PROJECT = Path(train.__file__).parent


def test_the_embedded_pairs():
    training, test = data.load(config.load(Config, PROJECT / "cfg.yaml"))
    assert len(training) == 256 and len(test) == 128
    scenes, edges = training.fetch(torch.arange(4), 1)  # BtoA: edges are drawn from photographs
    assert edges.shape == scenes.shape == (4, 3, 64, 64)
    assert torch.equal(edges[:, 0], edges[:, 1]) and not torch.equal(scenes[:, 0], scenes[:, 1])


def test_images_must_suit_model_and_networks():
    small = {"load_size": 64, "crop_size": 64}
    cases = [
        (Config("pix2pix", data=Domains("photos_unpaired", **small)), "needs pairs"),
        (Config(data=Domains("photos_unpaired", load_size=66, crop_size=66)), "multiple of 4"),
        (Config(data=Domains("photos_unpaired", **small), networks=Networks("unet_256")), "multiple of 256"),
        (Config(data=Domains("photos_unpaired", load_size=20, crop_size=20)), "at least 24"),
        (Config(data=Domains("photos_unpaired", preprocess="none", batch_size=2, **small)), "batch_size"),
    ]
    for conf, words in cases:
        with pytest.raises(InputError, match=words):
            data.load(conf)


def test_sources_are_told(tmp_path, capsys):
    (tmp_path / "horse2zebra" / "trainA").mkdir(parents=True)
    (tmp_path / "horse2zebra" / "trainA" / "1.jpg").touch()
    data.main(["--root", str(tmp_path)])
    text = capsys.readouterr().out
    assert "trainA: 1 images (expected 1067)" in text and "trainB: missing (expected 1334)" in text
    assert "cityscapes-dataset.com" in text and "licence" in text
