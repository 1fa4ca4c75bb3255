"""Augmentation, colour, sources and what the data path refuses."""

from pathlib import Path

from common import config
from common.errors import InputError
from common.images import write_image
from common.shadow.sources import Sample, SyntheticTriplets, embedded
from common.testing import python

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labnet import data, restore, train, transforms, why_lab
from labnet.config import Config, Data, Model

PROJECT = Path(train.__file__).parent


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def small(*words: str) -> Config:
    return config.override(config.load(Config, PROJECT / "cfg.yaml"), ["--data.count=6", "--data.test_count=2", *words])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.integers(24, 60),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.integers(-20, 19),
    st.booleans(),
    st.sampled_from(["stretched", "swapped"]),
)
def test_the_look_up_is_the_steps_one_by_one(height, width, short, codes, angle, mirror, turned):
    draws = transforms.Draws(*transforms.sized((height, width), short), codes, angle, 1, 2, mirror)
    source = picture(0, height, width)
    places = transforms.places((height, width), draws, 20, turned)
    fast = transforms.look_up(source, places)
    assert np.array_equal(fast, transforms.step_by_step(source, draws, 20, turned, "nearest"))
    assert np.array_equal(places.outside, (fast == 0).all(-1))  # no pixel of the source is black


def test_draws_cover_their_ranges_and_depend_on_seed_epoch_and_index():
    options = Data(load_size=40, upper=60, crop=40)
    draw = lambda seed, epoch, n=600, o=options: transforms.draw(seed, epoch, torch.arange(n), [(60, 80)] * n, o)
    drawn = draw(0, 1)
    assert {d.height for d in drawn} == set(range(40, 60)) and {d.angle for d in drawn} == set(range(-20, 20))
    assert {code for d in drawn for code in d.codes} == {0, 1, 2} and {d.mirror for d in drawn} == {True, False}
    assert all(0 <= d.left <= max(0, d.width - 41) and 0 <= d.top <= max(0, d.height - 41) for d in drawn)
    assert any(d.left == d.width - 41 for d in drawn)
    reaching = draw(0, 1, o=Data(load_size=40, upper=60, crop=40, offsets="all"))
    assert any(d.left == d.width - 40 for d in reaching)
    assert transforms.draw(0, 1, torch.tensor([7]), [(60, 80)], options) == [drawn[7]]
    assert draw(0, 2, 8)[7] != drawn[7] != draw(1, 1, 8)[7]


def test_pictures_beyond_16_bit_coordinates_are_refused():
    draws = transforms.Draws(40, 60, (2, 2, 2, 2), 0, 0, 0, False)
    with pytest.raises(InputError, match="20000x30 cannot be augmented; shrink it"):
        transforms.places((30, 20_000), draws, 20)


def test_sizes_are_cut_off_as_in_the_release():
    assert transforms.sized((480, 640), 300) == (300, 400) and transforms.sized((640, 480), 300) == (400, 300)
    assert transforms.sized((427, 640), 257)[1] == int(640 * (257 / 427))


@pytest.mark.parametrize("model", [Model(), Model(lab="float"), Model(lab="centred"), Model(space="rgb")], ids=str)
def test_colours_come_back(model):
    rgb = picture(1, 30, 40) // 2 + 64  # 8-bit Lab does not hold extreme colours
    there = transforms.to_network(rgb, model)
    assert there.shape == (3, 30, 40) and there.dtype == torch.float32
    back = transforms.to_picture(there, model)
    allowed = 8 if model.space == "lab" and model.lab == "8bit" else 1
    assert np.abs(back.astype(int) - rgb).max() <= allowed
    grey = transforms.to_network(np.full((1, 1, 3), 128, np.uint8), model)
    assert torch.allclose(grey[1:], transforms.neutral(model)[1:], atol=5e-3)


def test_truncation_and_rounding_differ_by_one_level_at_most():
    values = torch.rand(3, 20, 20) * 1.4 - 0.2
    model = Model(space="rgb")
    rounded, cut = (transforms.to_picture(values, model, truncate) for truncate in (False, True))
    difference = rounded.astype(int) - cut
    assert difference.min() == 0 and difference.max() == 1


def test_a_batch_holds_what_a_step_reads():
    conf = small()
    training, _, _ = data.load(conf)
    network = train.build(conf)
    prepared = data.TrainingSet(training, conf, network)
    values = prepared.fetch(torch.tensor([0, 3]), 1)
    assert values["input"].shape == values["target"].shape == (2, 3, 48, 48) and values["mask"].shape == (2, 1, 48, 48)
    again = prepared.fetch(torch.tensor([3]), 1)
    assert torch.equal(values["input"][1], again["input"][0]) and set(values["mask"].unique().tolist()) <= {0, 1}
    mask = values["mask"]
    for given_, found in zip(data.where_of(values), network.regions(mask)):
        assert (given_ is None and found is None) or torch.equal(given_, found)
    lit = (values["input"] - values["target"]).abs().sum(1, keepdim=True)
    assert lit[mask > 0].mean() > 5 * lit[mask == 0].mean()


def test_ignored_corners_are_neutral_and_do_not_count():
    conf = small("--data.fill=ignored")
    training, _, _ = data.load(conf)
    values = data.TrainingSet(training, conf, train.build(conf)).fetch(torch.arange(6), 1)
    corner = ~values["counted"].expand_as(values["input"])
    assert corner.any() and torch.equal(values["input"][corner], values["target"][corner])
    official = data.TrainingSet(training, small(), train.build(conf)).fetch(torch.arange(6), 1)
    assert (official["input"][corner] == 0).all() and "counted" not in official


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_other_interpolations_mix_pixels_of_pictures_only(interpolation):
    conf = small(f"--data.interpolation={interpolation}")
    training, _, _ = data.load(conf)
    network = train.build(conf)
    mixed = data.TrainingSet(training, conf, network).fetch(torch.arange(2), 1)
    nearest = data.TrainingSet(training, small(), network).fetch(torch.arange(2), 1)
    assert torch.equal(mixed["mask"], nearest["mask"]) and not torch.equal(mixed["input"], nearest["input"])


def triplet_folder(root: Path, count: int = 3, size: tuple[int, int] = (60, 80)) -> Path:
    for part in ("train", "test"):
        for number in range(count):
            for letter in "ABC":
                array = picture(number, *size)
                if letter == "B":
                    array = np.zeros(size, np.uint8)
                    array[10:30, 10:40] = 255
                write_image(root / f"{part}_{letter}" / f"{number}.png", array)
    return root


def test_files_and_the_validation_share(tmp_path):
    root = triplet_folder(tmp_path, 4)
    conf = small("--data.name=triplets", f"--data.root={root}", "--data.validation=0.25")
    training, validation, test = data.load(conf)
    assert (len(training), len(validation), len(test)) == (3, 1, 4)
    assert not {training.name(i) for i in range(3)} & {validation.name(0)}
    assert data.load(small("--data.name=triplets", f"--data.root={root}", "--data.limit=2"))[1] is None


def test_data_says_what_is_there_and_what_is_wrong(tmp_path):
    triplet_folder(tmp_path / "SRD", 2)
    triplet_folder(tmp_path / "ISTD_Dataset", 2)
    (tmp_path / "ISTD_Dataset" / "train_C" / "1.png").unlink()
    report = python(PROJECT, ["data.py", "--root", str(tmp_path)])
    assert report.returncode == 0, report.stderr
    lines = {line.split()[0]: line for line in reversed(report.stdout.splitlines())}
    assert "2 + 2 triplets" in lines["SRD"] and "missing" in lines["ISTD+"] and "incomplete" in lines["ISTD"]
    assert "ISTD: " in report.stdout and "train_A and train_C do not pair; without partner: 1" in report.stdout


def test_grey_masks_are_cut_at_the_thresholds():
    conf = small("--data.test_threshold=0.9", "--data.test_size=null")
    levels = np.full((70, 80), 200, np.uint8)
    levels[:, 40:] = 240
    _, mask = restore.prepared(picture(0, 70, 80), levels, conf)
    assert mask[0, 0, :, :40].sum() == 0 and mask[0, 0, :, 40:].all()


BAD = {
    "no root": (["--data.name=triplets"], "data.root is missing"),
    "missing": (["--data.name=triplets", "--data.root=nowhere"], "does not exist"),
    "crop above load_size": (["--data.crop=65"], "no crop fits"),
    "crop below the minimum": (["--model.reach=64"], "needs 65 pixels"),
    "upper below load_size": (["--data.upper=40"], "lies below"),
    "one side empty": (["--data.validation=0.01"], "leaves one side empty"),
    "crops above photographs": (["--data.picture=450"], "cannot cut crops of 450"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused(name):
    words, message = BAD[name]
    with pytest.raises(InputError, match=message):
        data.load(small(*words))


def test_a_missing_partner_is_named(tmp_path):
    root = triplet_folder(tmp_path)
    (root / "train_B" / "1.png").unlink()
    with pytest.raises(InputError, match=r"without partner: 1"):
        data.load(small("--data.name=triplets", f"--data.root={root}"))


def test_the_true_luminance_repairs_most_of_a_shadow():
    """Section 1: a true L leaves less than half of the error, the best true RGB channel most of it."""
    found = why_lab.shares(SyntheticTriplets(embedded("train") | embedded("test"), 96, 40))
    assert found["true L"] < 0.55 * found["input"] < 0.8 * min(found[f"true {name}"] for name in "RGB")
    assert found["dL"] > 2 * max(found["da"], found["db"])


def test_a_channel_that_is_replaced_is_the_lit_one():
    free = picture(3, 40, 40)
    mask = np.full((40, 40), 255, np.uint8)
    found = why_lab.of_one(Sample(free // [2, 1, 1], mask, free))
    assert found["true R"] < 1e-9 < found["true G"] == found["input"] == found["true B"]
    assert why_lab.of_one(Sample(free, mask, free))["true L"] < 1e-3
