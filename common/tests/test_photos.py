"""The photographs are those of scikit-image; crops are cut where they say and stay on their side of the split."""

import subprocess
import sys

from common import photos
from common.errors import InputError

import numpy as np
import pytest
import skimage.data


def places(crop, photo):
    """Where the crop occurs in the photograph."""
    size = len(crop)
    hit = np.ones((photo.shape[0] - size + 1, photo.shape[1] - size + 1), bool)
    for row, column in ((0, 0), (0, size - 1), (size - 1, 0), (size - 1, size - 1), (size // 2, size // 2)):
        window = photo[row : row + hit.shape[0], column : column + hit.shape[1]]
        hit &= (window == crop[row, column]).all(-1)
    return [(r, c) for r, c in zip(*hit.nonzero()) if (photo[r : r + size, c : c + size] == crop).all()]


@pytest.mark.parametrize("name", photos.PHOTOS)
def test_photographs_equal_scikit_image(name):
    if name.startswith("motorcycle"):
        expected = skimage.data.stereo_motorcycle()[name == "motorcycle_right"]
    else:
        expected = getattr(skimage.data, name)()
    assert np.array_equal(photos.load(name), expected)


@pytest.mark.parametrize("name", [name for name in photos.PHOTOS if not name.startswith("motorcycle")])
def test_licences_are_stated_by_scikit_image(name):
    text = " ".join(getattr(skimage.data, name).__doc__.split())
    licence = photos.PHOTOS[name].licence
    stated = {"CC0 1.0": "CC0 1.0 Universal", "public domain": "public domain", "CC0": "CC0 by the photographer"}
    assert stated.get(licence, "No known copyright restrictions") in text
    assert photos.PHOTOS[name].source.split(",")[0].replace("NASA Great Images", "NASA Great Images database") in text


def test_loading_needs_no_network():
    code = """
import socket
def refuse(*a, **k): raise OSError("no network")
socket.socket.connect = socket.create_connection = refuse
import sys
from common import photos
assert len([photos.load(name) for name in photos.PHOTOS]) == 9
assert "pooch" not in sys.modules and "skimage.data" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_photograph_is_on_both_sides():
    sides = photos.split()
    assert sorted(sides["train"] + sides["test"]) == sorted(photos.PHOTOS)
    assert sides["train"] and sides["test"]
    assert len({photos.PHOTOS[name].split for name in ("motorcycle_left", "motorcycle_right")}) == 1


def test_loaded_pixels_are_the_callers_own():
    first = photos.load("chelsea")
    first[:] = 0
    assert photos.load("chelsea").any()


def test_crops_come_from_the_named_photographs():
    names = photos.split()["test"]
    cut = photos.crops(names, 32, 24, seed=3)
    assert (cut.shape, cut.dtype) == ((24, 32, 32, 3), np.uint8)
    source = [[len(places(crop, photos.load(name))) > 0 for name in names] for crop in cut]
    assert all(sum(found) == 1 for found in source)
    assert all(np.any(source, 0))
    assert len({crop.tobytes() for crop in cut}) == 24


def test_crops_depend_on_the_seed_and_their_number_alone():
    names = ["rocket", "coffee"]
    assert np.array_equal(photos.crops(names, 16, 9, 5), photos.crops(names, 16, 30, 5)[:9])
    assert not np.array_equal(photos.crops(names, 16, 9, 5), photos.crops(names, 16, 9, 6))
    assert photos.crops(names, 16, 0, 5).shape == (0, 16, 16, 3)


def test_crops_reach_every_edge():
    rows, columns = np.transpose([places(c, photos.load("chelsea"))[0] for c in photos.crops(["chelsea"], 297, 60, 0)])
    assert set(rows) == {0, 1, 2, 3}
    assert columns.min() < 15 and columns.max() > 139 and columns.max() <= 154
    assert len(set(zip(rows, columns // 39))) > 10  # row and column are drawn independently
    assert {places(c, photos.load("chelsea"))[0][0] for c in photos.crops(["chelsea"], 300, 3, 0)} == {0}


def test_fingerprint_sees_pixels_and_names():
    assert photos.fingerprint() == photos.fingerprint(reversed(list(photos.PHOTOS)))
    assert len({photos.fingerprint(), photos.fingerprint(["coffee"]), photos.fingerprint(["chelsea"])}) == 3
    pixels = photos._pixels("coffee")
    before = photos.fingerprint(["coffee"])
    try:
        pixels.setflags(write=True)
        pixels[7, 9, 1] ^= 1
        assert photos.fingerprint(["coffee"]) != before
    finally:
        pixels[7, 9, 1] ^= 1
        pixels.setflags(write=False)
    assert photos.fingerprint(["coffee"]) == before


def test_impossible_requests_are_refused():
    with pytest.raises(InputError, match=r"'lena'.*astronaut"):
        photos.load("lena")
    with pytest.raises(InputError, match=r"301 pixels from .*chelsea.*300, 451"):
        photos.crops(["coffee", "chelsea"], 301, 4, 0)
    for arguments in (([], 8, 1, 0), (["coffee"], 0, 1, 0), (["coffee"], 8, -1, 0)):
        with pytest.raises(InputError, match="cannot cut"):
            photos.crops(*arguments)
