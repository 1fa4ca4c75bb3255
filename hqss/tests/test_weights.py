"""The shipped weights: predict.py finds them, and they lighten a synthetic shadow on a photograph never seen."""

from pathlib import Path

from common.images import read_image
from common.shadow.testing import errors, example
from common.testing import card_is_of, python

import pytest

from hqss import weights

PROJECT = Path(weights.__file__).parent
SIDE = 224


@pytest.fixture(scope="module")
def triplet(tmp_path_factory):
    """A crop of a scikit-image photograph under a shadow of the kind that was trained on, and its files."""
    folder = tmp_path_factory.mktemp("shipped")
    return example(folder, SIDE), folder


def test_they_are_small_and_the_card_is_that_of_the_file():
    assert weights.SHIPPED.stat().st_size <= 4_000_000
    assert card_is_of(weights.SHIPPED)


def test_predict_removes_a_shadow_out_of_the_box(triplet):
    sample, folder = triplet
    words = [str(folder / "photo.png"), "--mask", str(folder / "mask.png"), "--out", str(folder / "out")]
    done = python(PROJECT, ["predict.py", *words])
    assert done.returncode == 0, done.stderr
    result = read_image(folder / "out" / "photo.png")
    before, after = (errors(picture, sample) for picture in (sample.shadow, result))
    assert after["s"] < before["s"]
    assert after["ns"] == before["ns"], "pixels outside the mask are the photograph's own"


def test_predict_paints_a_shadow_out_of_the_box(triplet):
    _, folder = triplet
    words = [str(folder / "photo.png"), "--mask", str(folder / "mask.png"), "--out", str(folder / "painted")]
    done = python(PROJECT, ["predict.py", *words, "--synthesis"])
    assert done.returncode == 0, done.stderr
    assert read_image(folder / "painted" / "photo_synthesis.png").shape == (SIDE, 8 * SIDE, 3)
