"""The shipped weights: predict.py finds them, and they lighten a synthetic shadow on a photograph never seen."""

import hashlib
from pathlib import Path

from common.images import read_image, write_image
from common.shadow.metrics import REGIONS, score
from common.shadow.sources import SyntheticTriplets, embedded
from common.testing import python

import pytest

from labnet import predict

PROJECT = Path(predict.__file__).parent
SIDE = 192


@pytest.fixture(scope="module")
def triplet(tmp_path_factory):
    """A crop of a scikit-image photograph under a shadow of the kind that was trained on, and its files."""
    sample = SyntheticTriplets(embedded("test"), SIDE, 1, seed=1).read(0)
    folder = tmp_path_factory.mktemp("shipped")
    write_image(folder / "photo.png", sample.shadow)
    write_image(folder / "mask.png", sample.mask)
    return sample, folder


def test_they_are_small_and_the_card_is_that_of_the_file():
    assert predict.WEIGHTS.stat().st_size <= 2_500_000
    card = (predict.WEIGHTS.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(predict.WEIGHTS.read_bytes()).hexdigest() in card


def test_predict_lightens_a_shadow_out_of_the_box(triplet):
    sample, folder = triplet
    words = [str(folder / "photo.png"), "--mask", str(folder / "mask.png"), "--out", str(folder / "out")]
    done = python(PROJECT, ["predict.py", *words])
    assert done.returncode == 0, done.stderr
    result = read_image(folder / "out" / "photo_free.png")
    before, after = (
        dict(zip(REGIONS, score(picture, sample.free, sample.mask, None).error.tolist()))
        for picture in (sample.shadow, result)
    )
    assert after["s"] < 0.8 * before["s"] and after["all"] < before["all"]
