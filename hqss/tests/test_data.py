"""Items, donors, layouts, and the data that is refused."""

import pickle

from common import testing
from common.errors import InputError
from common.images import write_image

import numpy as np
import pytest
import torch

from hqss import data, donors, items
from hqss.config import Config, Data
from hqss.items import Crop, prepare

TINY = {"name": "embedded", "count": 6, "side": 40, "test_side": 40, "test_count": 3, "size": 40, "crop": 32}


def settings(**options) -> Config:
    return Config(seed=3, data=Data(**{**TINY, "dilation_size": 3, **options}))


def istd(root, n: int = 4, size: tuple[int, int] = (48, 64)):
    rng = np.random.default_rng(0)
    for part, folders in (("train", "AB"), ("test", "ABC")):
        for i in range(n):
            mask = np.zeros(size, np.uint8)
            mask[4 + i : 24 + i, 4 + 9 * i : 24 + 9 * i] = 255
            photograph = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            for letter, picture in zip("ABC", (photograph, mask, photograph)):
                if letter in folders:
                    name = "test_C_fixed_official" if letter == "C" else f"{part}_{letter}"
                    write_image(root / part / name / f"{i}.png", picture)
    return root


def test_an_item_is_made_of_its_regions():
    train, _ = data.load(settings())
    item = train.item(0, 1)
    assert {x.shape for name, x in item.items() if "mask" in name or name == "dilated"} == {(1, 32, 32)}
    assert (item["shadow_mask"] * item["lit_mask"]).sum() == 0
    assert (item["dilated"] >= item["lit_mask"]).all() and item["dilated"].sum() > item["lit_mask"].sum()
    assert torch.allclose(item["lit"] * item["lit_mask"], item["image"] * item["lit_mask"], atol=1e-6)
    assert torch.allclose(item["rest"] * (1 - item["lit_mask"]), item["image"] * (1 - item["lit_mask"]), atol=1e-6)
    outside = item["shadow"][:, item["shadow_mask"][0] == 0]
    assert torch.allclose(outside, torch.tensor([[-1.0], [1 / 255], [1 / 255]]).expand_as(outside), atol=1e-5)


def test_the_testing_background_is_that_of_inference():
    train, _ = data.load(settings(background="testing"))
    item = train.item(0, 1)
    outside = item["lit"][:, item["lit_mask"][0] == 0]
    assert torch.equal(outside, torch.tensor([[-1.0], [0], [0]]).expand_as(outside))


def test_items_depend_on_seed_epoch_and_index_alone():
    train, _ = data.load(settings())
    again, _ = data.load(settings())
    one = train.fetch(torch.tensor([2, 5]), 4)
    two = again.fetch(torch.tensor([5]), 4)
    assert all(torch.equal(one[name][1:], two[name]) for name in one)
    assert any(train.place(i, 4) != train.place(i, 5) for i in range(6))


def test_crops_reach_both_ends_and_are_mirrored_half_the_time():
    train, _ = data.load(settings())
    places = [train.place(i, 1) for i in range(400)]
    assert {p.row for p in places} == {p.column for p in places} == set(range(9))
    assert 140 < sum(p.mirror for p in places) < 260


def test_too_small_regions_are_left_out():
    train, _ = data.load(settings(min_pixels=32 * 32 + 1))
    fetched = train.fetch(torch.tensor([0, 1]), 1)
    assert "unusable" in fetched and len(fetched["image"]) == 1
    train, _ = data.load(settings(min_pixels=0))
    assert len(train.fetch(torch.tensor([0, 1]), 1)["image"]) == 2


@pytest.mark.parametrize(("size", "out"), [((9, 12), (9, 12)), ((12, 9), (5, 7)), ((5, 6), (9, 8)), ((6, 12), (9, 5))])
def test_resizing_is_scikit_images(size, out):
    from skimage.transform import resize

    image = np.random.default_rng(0).random((*size, 3)).astype(np.float32)
    assert np.abs(items.resize(image, out) - resize(image.astype(np.float64), out)).max() < 1e-5


def test_float_and_8_bit_photographs_are_prepared_alike():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    mask[5:20] = 1
    made = [prepare(x, mask, 1 - mask, mask, 40, 32, Crop(1, 2, True)) for x in (rgb, np.float32(rgb) / 255)]
    assert all(torch.allclose(made[0][name], made[1][name], atol=1e-5) for name in made[0])


def test_donors_are_drawn_among_the_admissible_and_fall_back():
    allowed = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    ratio = torch.tensor([[0, 1, 1, 9], [0, 0, 9.0, 0.01], [1, 9, 0, 9], [0.0, 0, 0, 0]]).double()
    drawn = donors.Donors(allowed, ratio)
    assert {drawn.draw(0, e, 0) for e in range(60)} == {1, 2}
    assert {drawn.draw(0, e, 1) for e in range(60)} == {2}, "at least 5 % of the own area"
    assert {drawn.draw(0, e, 3) for e in range(60)} == {0, 1, 2, 3}, "the last draw is taken whatever it is"
    anyone = donors.Donors(allowed, ratio, "any")
    assert {anyone.draw(0, e, 0) for e in range(60)} == {1, 2, 3}


def test_counting_in_blocks_is_one_product():
    masks = np.random.default_rng(0).integers(0, 2, (5, 150, 231), dtype=np.uint8)
    flat = torch.from_numpy(masks).flatten(1).double()
    assert torch.equal(donors.count_common(masks.__getitem__, 5), flat @ flat.T)


def test_the_map_is_kept_and_rebuilt_when_a_mask_changes(tmp_path, monkeypatch):
    root = istd(tmp_path / "set")
    conf = settings(name="istd", root=str(root), donor_map=str(tmp_path / "map.npz"))
    first = data.load(conf)[0].partners
    with monkeypatch.context() as patch:
        patch.setattr(donors, "count_common", lambda *_: pytest.fail("the kept map was not used"))
        assert torch.equal(data.load(conf)[0].partners.ratio, first.ratio)
    write_image(root / "train" / "train_B" / "0.png", np.full((48, 64), 255, np.uint8))
    assert not torch.equal(data.load(conf)[0].partners.ratio, first.ratio)


def test_the_releases_map_is_matched_by_name_and_never_executed(tmp_path):
    names = ["a", "b", "c"]
    content = {f"/x/train_B/{n}.png": [f"/x/train_B/{m}.png" for m in names if m != n] for n in names}
    path = tmp_path / "map0.81.2.pickle"
    path.write_bytes(pickle.dumps(content))
    assert torch.equal(donors.read_released(path, names), ~torch.eye(3, dtype=torch.bool))
    with pytest.raises(InputError):
        donors.read_released(path, ["a", "b", "d"])
    canary = tmp_path / "canary"
    with pytest.raises(InputError):
        donors.read_released(testing.hostile(tmp_path / "bad.pickle", canary), names)
    assert not canary.exists()


def test_istd_needs_no_shadow_free_training_photograph(tmp_path):
    train, test = data.load(settings(name="istd", root=str(istd(tmp_path))))
    assert len(train) == len(test) == 4 and train.item(0, 1)["image"].shape == (3, 32, 32)
    assert test.triplet(1).free.shape == (48, 64, 3)


def test_detected_masks_are_paired_by_stem(tmp_path):
    root = istd(tmp_path / "set")
    for i in range(4):
        write_image(tmp_path / "detected" / f"{i}.png", np.full((48, 64), 10 * i, np.uint8))
    conf = settings(name="istd", root=str(root), detected=str(tmp_path / "detected"))
    triplet = data.load(conf)[1].triplet(2)
    assert (triplet.given == 20).all() and set(np.unique(triplet.mask)) == {0, 255}
    (tmp_path / "detected" / "3.png").unlink()
    with pytest.raises(InputError, match="3"):
        data.load(conf)


def test_srd_is_brought_to_its_frame(tmp_path):
    root = istd(tmp_path)
    (root / "test" / "test_C_fixed_official").rename(root / "test" / "test_C")
    train, test = data.load(settings(name="srd", root=str(root), donors="any"))
    rgb, mask = train.photographs.read(0)
    assert rgb.shape == (640, 840, 3) and rgb.dtype == np.float32 and mask.shape == (640, 840)
    triplet = test.triplet(0)
    assert triplet.shadow.shape == triplet.free.shape == (640, 840, 3) and triplet.shadow.dtype == np.uint8


@pytest.mark.parametrize("fault", ["missing", "lonely", "one", "sizes", "crop", "bounds"])
def test_bad_data_is_refused(tmp_path, fault):
    options = {"name": "istd", "root": str(tmp_path)}
    if fault == "lonely":
        (istd(tmp_path) / "train" / "train_B" / "2.png").unlink()
    elif fault == "one":
        istd(tmp_path, n=1)
    elif fault == "sizes":
        istd(tmp_path)
        for letter in "AB":
            write_image(tmp_path / "train" / f"train_{letter}" / "2.png", np.zeros((40, 40, 3), np.uint8))
    elif fault in ("crop", "bounds"):
        options = {"crop": 30} if fault == "crop" else {"ratio_min": 2.0}
    with pytest.raises(InputError):
        data.load(settings(**options))
