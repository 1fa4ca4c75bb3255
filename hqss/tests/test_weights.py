"""The shipped weights: predict.py finds them, and they lighten a synthetic shadow on a photograph never seen."""

import hashlib
from pathlib import Path

from common.images import read_image, write_image
from common.shadow.metrics import REGIONS, score
from common.shadow.sources import SyntheticTriplets, embedded
from common.testing import python

import pytest

from hqss import weights

PROJECT = Path(weights.__file__).parent
SIDE = 224


@pytest.fixture(scope="module")
def triplet(tmp_path_factory):
    """A crop of a scikit-image photograph under a shadow of the kind that was trained on, and its files."""
    sample = SyntheticTriplets(embedded("test"), SIDE, 1, seed=1).read(0)
    folder = tmp_path_factory.mktemp("shipped")
    write_image(folder / "photo.png", sample.shadow)
    write_image(folder / "mask.png", sample.mask)
    return sample, folder


def test_they_are_small_and_the_card_is_that_of_the_file():
    assert weights.SHIPPED.stat().st_size <= 4_000_000
    card = (weights.SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(weights.SHIPPED.read_bytes()).hexdigest() in card


def test_predict_removes_a_shadow_out_of_the_box(triplet):
    sample, folder = triplet
    words = [str(folder / "photo.png"), "--mask", str(folder / "mask.png"), "--out", str(folder / "out")]
    done = python(PROJECT, ["predict.py", *words])
    assert done.returncode == 0, done.stderr
    result = read_image(folder / "out" / "photo.png")
    errors = [score(image, sample.free, sample.mask, None).error for image in (sample.shadow, result)]
    before, after = (dict(zip(REGIONS, error.tolist())) for error in errors)
    assert after["s"] < before["s"]
    assert after["ns"] == before["ns"], "pixels outside the mask are the photograph's own"


def test_predict_paints_a_shadow_out_of_the_box(triplet):
    _, folder = triplet
    words = [str(folder / "photo.png"), "--mask", str(folder / "mask.png"), "--out", str(folder / "painted")]
    done = python(PROJECT, ["predict.py", *words, "--synthesis"])
    assert done.returncode == 0, done.stderr
    assert read_image(folder / "painted" / "photo_synthesis.png").shape == (SIDE, 8 * SIDE, 3)
