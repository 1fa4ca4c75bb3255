"""Synthetic moire: the alias period of section 5.1, tone, geometry, stateless draws, and the command."""

import dataclasses
import json
from pathlib import Path

from common import photos
from common.errors import InputError
from common.images import read_image, write_image

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dda import synthesise
from dda.synthesise import LIT, Moire, develop

STILL = Moire(off_min=0.0, off_max=0.0, jitter=0.0, lens=0.0, noise=0.0)
GREY = np.full((96, 256, 3), 128, np.uint8)


def picture(height: int = 96, width: int = 128) -> np.ndarray:
    return synthesise.crop(photos.load("coffee"), height, width, 0, 0)


@pytest.mark.parametrize("scale", [1.9375, 2.0625, 2.125])
def test_bands_have_the_alias_period(scale):
    """2 s / |s - 2| camera pixels are 2 / |s - 2| output pixels: 256 |s - 2| / 2 bands across 256."""
    pair = synthesise.synthesise(GREY, dataclasses.replace(STILL, scale=scale), 0, 0)
    red, green, _ = pair.moire.astype(float).mean(0).T
    spectrum = np.abs(np.fft.rfft(red - green))
    spectrum[0] = 0
    assert spectrum.argmax() == 256 * abs(scale - 2) / 2
    assert spectrum.max() > 10 * 256 / 2, "bands of at least ten levels"


def test_without_contrast_of_the_sub_pixels_there_are_no_bands():
    flat = dataclasses.replace(STILL, scale=2.0625, strength_min=0.0, strength_max=0.0)
    assert synthesise.synthesise(GREY, flat, 0, 0).moire.std((0, 1)).max() < 1


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.585, 1.0]), st.sampled_from([0.0, 1.0]))
def test_mean_brightness_is_the_one_asked_for(seed, brightness, strength):
    dim = picture(192, 256) // 3  # so that nothing is clipped
    # Bands of at most 40 pixels: many of them, so that their light and dark halves balance.
    asked = Moire(brightness=brightness, strength_min=strength, strength_max=strength, off_min=0.05, noise=0.0)
    ratio = synthesise.brightness_ratio(synthesise.synthesise(dim, asked, seed, 0))
    assert ratio == pytest.approx(brightness, rel=0.05)


def test_both_sides_show_the_same_geometry():
    """Without moire and noise the photograph is the clean picture, wherever pose and lens have moved it."""
    plain = Moire(strength_min=0.0, strength_max=0.0, noise=0.0, brightness=1.0, jpeg_min=100, jpeg_max=100)
    for index in range(3):
        pair = synthesise.synthesise(picture(), plain, 1, index)
        rms = lambda clean, moire=pair.moire: np.sqrt(np.mean((moire.astype(float) - clean) ** 2))
        assert rms(pair.clean) < 8
        assert all(rms(np.roll(pair.clean, shift, axis)) > rms(pair.clean) for axis in (0, 1) for shift in (-1, 1))
        assert synthesise.misalignment(pair) < 0.25


def test_pose_and_lens_move_the_picture():
    still = synthesise.synthesise(picture(), STILL, 0, 0).clean
    for change in ({"jitter": 0.04}, {"lens": 0.2}):
        moved = synthesise.synthesise(picture(), dataclasses.replace(STILL, **change), 0, 0).clean
        assert np.abs(moved.astype(int) - still).mean() > 1, change


def test_a_pair_depends_on_seed_and_index_alone():
    one, same = (synthesise.synthesise(picture(), Moire(), 5, 2) for _ in range(2))
    assert np.array_equal(one.moire, same.moire) and np.array_equal(one.clean, same.clean) and one.drawn == same.drawn
    for seed, index in ((6, 2), (5, 3)):
        other = synthesise.synthesise(picture(), Moire(), seed, index)
        assert other.drawn != one.drawn and not np.array_equal(other.moire, one.moire)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 10**7))
def test_draws_stay_within_their_ranges(seed, index):
    asked = Moire(strength_min=0.2, strength_max=0.7, ramp=True)
    drawn = synthesise.draw(asked, seed, index)
    assert asked.off_min <= abs(drawn["scale"] - 2) + 1e-9 and abs(drawn["scale"] - 2) <= asked.off_max + 1e-9
    assert np.abs(drawn["corners"]).max() <= asked.jitter and abs(drawn["lens"]) <= asked.lens
    assert asked.blur_min - 1e-9 <= drawn["blur"] * drawn["scale"] / 1.5 <= asked.blur_max + 1e-9
    assert asked.jpeg_min <= drawn["jpeg"] <= asked.jpeg_max and 0.2 <= drawn["strength"] <= 0.7


def test_the_ramp_makes_some_of_the_picture_harder():
    pair = synthesise.synthesise(picture(), Moire(ramp=True, brightness=1.0), 0, 0)
    assert pair.mask.shape == pair.clean.shape[:2] and pair.mask.min() < 0.2 and pair.mask.max() > 0.7
    error = np.abs(pair.moire.astype(float) - pair.clean).mean(2)
    assert error[pair.mask > 0.6].mean() > 1.5 * error[pair.mask < 0.2].mean()


def test_noise_is_standard_normal_and_repeatable():
    noise = synthesise.normal(0, 0, 300, 200)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02 and np.isfinite(noise).all()
    assert np.array_equal(noise, synthesise.normal(0, 0, 300, 200))
    assert abs(np.corrcoef(noise.ravel(), synthesise.normal(0, 1, 300, 200).ravel())[0, 1]) < 0.02


def test_the_mosaic_is_red_at_the_corner():
    raw = np.zeros((16, 16), np.uint8)
    raw[::2, ::2] = 200
    assert develop(raw)[6:10, 6:10].reshape(-1, 3).mean(0).tolist() == [200, 0, 0]


def test_the_cell_lets_two_ninths_through():
    white = np.full((32, 32, 3), 255, np.uint8)
    columns, rows = (a.astype(np.float32) for a in np.meshgrid(np.arange(4, 28, 1 / 3), np.arange(4, 28, 1 / 3)))
    for strength in (0, 1):
        light = synthesise.expose(white, columns, rows, np.full(columns.shape, strength, np.float32), {"blur": 3.0})
        assert light.mean() == pytest.approx(LIT, rel=0.01)


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (96, 17)])
def test_any_size_keeps_its_size(size):
    pair = synthesise.synthesise(np.zeros((*size, 3), np.uint8), Moire(), 0, 0)
    assert pair.moire.shape == pair.clean.shape == (*size, 3) and pair.moire.dtype == np.uint8


@pytest.mark.parametrize(
    "change",
    [
        {"off_min": 0.2},
        {"blur_min": 2.0},
        {"strength_min": 0.5, "strength_max": 0.1},
        {"jpeg_min": 96},
        {"jpeg_max": 101},
        {"scale": 0.1},
        {"jitter": 0.5},
        {"lens": 0.5},
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(change):
    with pytest.raises(InputError):
        synthesise.synthesise(GREY, dataclasses.replace(Moire(), **change), 0, 0)


@pytest.mark.parametrize("bad", [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3)), np.zeros((8, 32, 3), np.uint8)])
def test_pictures_that_cannot_be_photographed_are_refused(bad):
    with pytest.raises(InputError):
        synthesise.synthesise(bad, Moire(), 0, 0)


def test_crops_are_shrunk_cuts():
    photo = photos.load("astronaut")
    cuts = [synthesise.crop(photo, 64, 96, 0, i) for i in range(6)]
    assert all(cut.shape == (64, 96, 3) for cut in cuts)
    assert len({cut.tobytes() for cut in cuts}) == 6
    with pytest.raises(InputError, match="no cut of"):
        synthesise.crop(photo, 600, 96, 0, 0)


def test_the_command_writes_pairs_and_what_was_drawn(tmp_path: Path):
    write_image(tmp_path / "photos" / "one.png", picture(160, 200))
    write_image(tmp_path / "photos" / "grey.jpg", cv2.cvtColor(picture(160, 200), cv2.COLOR_RGB2GRAY))
    words = [str(tmp_path / "photos"), str(tmp_path / "out"), "--variants", "2", "--height", "64", "--width", "80"]
    out = synthesise.main([*words, "--off", "0.03", "0.05", "--ramp", "true"])
    lines = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["grey_00", "grey_01", "one_00", "one_01"]
    for line in lines:
        assert 0.03 <= abs(line["scale"] - 2) <= 0.05 and line["seed"] == 1111 and line["ramp"]
        moire, clean = (read_image(out / side / f"{line['name']}.png") for side in ("moire", "clear"))
        assert moire.shape == clean.shape == (64, 80, 3)
        assert line["brightness_ratio"] == pytest.approx(moire.mean() / clean.mean())
    with pytest.raises(InputError, match="not an empty folder"):
        synthesise.main(words)


@pytest.mark.parametrize("words", [["--height", "4"], ["--variants", "0"], ["--blur", "2", "1"], ["--height", "500"]])
def test_bad_words_are_refused_before_anything_is_written(words, tmp_path: Path):
    write_image(tmp_path / "photos" / "one.png", picture(160, 200))
    with pytest.raises(InputError):
        synthesise.main([str(tmp_path / "photos"), str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
