"""The data of this project's configs; layouts and crops are tested in common/tests/test_gan.py."""

from pathlib import Path

from common import config
from common.errors import InputError
from common.gan.data import Domains
from common.gan.settings import Networks
from common.images import write_image

import numpy as np
import pytest
import torch

from crd import data, train
from crd.config import Config

PROJECT = Path(train.__file__).parent


def test_the_embedded_pairs():
    training, test = data.load(config.load(Config, PROJECT / "cfg.yaml"))
    assert len(training) == 256 and len(test) == 128
    scenes, edges = training.fetch(torch.arange(4), 1)
    assert edges.shape == scenes.shape == (4, 3, 64, 64)
    assert torch.equal(edges[:, 0], edges[:, 2]) and not torch.equal(scenes[:, 0], scenes[:, 2])


def test_the_embedded_domains():
    training, _ = data.load(config.load(Config, PROJECT / "configs" / "photos_unpaired.yaml"))
    first, second = (training.fetch(torch.arange(6), epoch) for epoch in (1, 2))
    assert first[0].shape == (6, 3, 64, 64) and not torch.equal(first[1], second[1]), "partners are drawn anew"


def test_images_must_suit_model_and_networks(tmp_path):
    write_image(tmp_path / "trainA" / "1.png", np.zeros((8, 8, 3), np.uint8))
    small = {"load_size": 64, "crop_size": 64}
    cases = [
        (Config("pix2pix", data=Domains("photos_unpaired", **small)), "needs pairs"),
        (Config(data=Domains("photos_unpaired", load_size=66, crop_size=66)), "multiple of 4"),
        (Config(data=Domains("photos_unpaired", **small), networks=Networks("unet_256")), "multiple of 256"),
        (Config(data=Domains("photos_unpaired", load_size=20, crop_size=20)), "at least 24"),
        (Config(data=Domains(root=str(tmp_path))), "trainB does not exist"),
        (Config(data=Domains("photos_unpaired", load_size=64, crop_size=128)), "below data.crop_size"),
    ]
    for conf, words in cases:
        with pytest.raises(InputError, match=words):
            data.load(conf)


def test_sources_are_told(tmp_path, capsys):
    write_image(tmp_path / "horse2zebra" / "trainA" / "1.png", np.zeros((8, 8, 3), np.uint8))
    data.main(["--root", str(tmp_path)])
    text = capsys.readouterr().out
    assert "trainA: 1 images (expected 1067)" in text and "trainB: missing (expected 1334)" in text
    assert "edges2shoes-r" in text and "licence" in text
