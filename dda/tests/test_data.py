"""Pairs: layouts and partners, sizes of the protocols, crops from memory and from files, faults, the photographs."""

import pickle
import shutil
from pathlib import Path

from common.errors import InputError
from common.images import write_image

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dda import data
from dda.classes import classed
from dda.config import Config, Tiles
from dda.data import Data, FilePairs, StoredPairs
from dda.synthesise import Moire

NAMES = {
    "aim": ("train/moire/{}.jpg", "train/clear/{}.jpg", "val/moire/{}.png", "val/clear/{}.png"),
    "fhdmi": ("train/source/src_{}.png", "train/target/tar_{}.png", "test/source/src_{}.png", "test/target/tar_{}.png"),
    "uhdm": ("train/p/{}_moire.jpg", "train/p/{}_gt.jpg", "test/q/{}_moire.jpg", "test/q/{}_gt.jpg"),
    "tip2018": (
        "trainData/source/{}_source.png",
        "trainData/target/{}_target.png",
        "testData/source/{}_source.png",
        "testData/target/{}_target.png",
    ),
    "pairs": ("train/moire/{}.png", "train/clear/{}.png", "test/moire/{}.png", "test/clear/{}.png"),
}
SMALL = {"height": 48, "width": 64, "variants": 2, "test_variants": 3}


def pixels(seed: int, height: int = 54, width: int = 60) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return noise.repeat(6, 0).repeat(6, 1)


def layout(root: Path, name: str, count: int = 3, size: tuple[int, int] = (54, 60)) -> Path:
    """A data set of `count` pairs a side; picture number i is pixels(i), its partner pixels(100 + i)."""
    for place, pattern in enumerate(NAMES[name]):
        for i in range(count):
            write_image(root / pattern.format(f"{i:04d}"), pixels(100 * (place % 2) + i, *size))
    return root


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_found_and_paired(name, tmp_path: Path):
    layout(tmp_path, name)
    train, test = data.load(Data(name=name, root=str(tmp_path)))
    assert isinstance(train, StoredPairs) and isinstance(test, FilePairs)
    assert [Path(n).name for n in train.names] == ["0000", "0001", "0002"] and len(test) == 3
    for pairs in (train, test):
        for i in range(3):
            moire, clean = pairs.read(i)
            assert moire.shape == clean.shape == (*pairs.size(i), 3) and moire.dtype == np.uint8
            assert not np.array_equal(moire, clean)
    if name == "pairs":
        moire, clean = test.read(2)
        assert np.array_equal(moire, pixels(2)) and np.array_equal(clean, pixels(102))


def test_fhdmi_is_resized_as_the_release_does(tmp_path: Path):
    train, test = data.load(Data(name="fhdmi", root=str(layout(tmp_path, "fhdmi", size=(108, 60)))))
    assert train.size(0) == test.size(0) == (102, 60)
    expected = cv2.resize(pixels(0, 108, 60), (60, 102), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(train.read(0)[0], expected)
    expected = np.asarray(Image.fromarray(pixels(0, 108, 60)).resize((60, 102), Image.BILINEAR))
    assert np.array_equal(test.read(0)[0], expected)


def test_tip2018_loses_its_frame(tmp_path: Path):
    _, test = data.load(Data(name="tip2018", root=str(layout(tmp_path, "tip2018"))))
    expected = np.asarray(Image.fromarray(pixels(0)[9:45, 10:50]).resize((256, 256), Image.BILINEAR))
    assert np.array_equal(test.read(0)[0], expected) and test.size(0) == (256, 256)


def test_crops_are_the_same_from_memory_and_from_files(tmp_path: Path):
    layout(tmp_path, "pairs")
    write_image(tmp_path / "train/moire/9.png", pixels(7, 42, 78))  # of another size than the others
    write_image(tmp_path / "train/clear/9.png", pixels(8, 42, 78))
    stored, _ = data.load(Data(name="pairs", root=str(tmp_path)))
    lazy, _ = data.load(Data(name="pairs", root=str(tmp_path), resident=False, workers=2))
    lazy = pickle.loads(pickle.dumps(lazy))
    image, top, left = torch.tensor([3, 0, 1, 3]), torch.tensor([26, 38, 0, 5]), torch.tensor([62, 44, 3, 0])
    for pairs in (stored, lazy):
        moire, clean = pairs.crops(image, top, left, 16)
        assert moire.shape == clean.shape == (4, 3, 16, 16) and moire.dtype == torch.uint8
        for k, (i, y, x) in enumerate(zip(image.tolist(), top.tolist(), left.tolist())):
            for found, whole in zip((moire, clean), pairs.read(i)):
                assert np.array_equal(found[k].permute(1, 2, 0).numpy(), whole[y : y + 16, x : x + 16])


def test_unusual_files_are_read_as_anyone_would_expect(tmp_path: Path):
    picture = pixels(1)
    places = {side: tmp_path / "train" / side for side in ("moire", "clear")}
    for side in places.values():
        side.mkdir(parents=True)
    rgba = Image.fromarray(np.dstack([picture, np.full(picture.shape[:2], 9, np.uint8)]))
    turned = Image.fromarray(picture)
    exif = Image.Exif()
    exif[data.EXIF_ORIENTATION] = 6
    grey = picture[..., 0]
    for side in places.values():
        rgba.save(side / "alpha.png")
        turned.save(side / "turned.png", exif=exif)
        Image.fromarray(grey).save(side / "grey.png")
        Image.fromarray(grey.astype(np.uint16) * 257).save(side / "deep.png")
    pairs = data.find("pairs", str(tmp_path), "train")
    found = {name: pairs.read(i)[0] for i, name in enumerate(pairs.names)}
    assert np.array_equal(found["alpha"], picture)
    assert np.array_equal(found["grey"], np.dstack([grey] * 3)) and np.array_equal(found["deep"], found["grey"])
    assert np.array_equal(found["turned"], np.rot90(picture, -1))
    assert all(pairs.size(i) == pairs.read(i)[0].shape[:2] for i in range(len(pairs)))


def test_a_picture_without_partner_is_named(tmp_path: Path):
    layout(tmp_path, "pairs")
    (tmp_path / "train/clear/0001.png").unlink()
    with pytest.raises(InputError, match=r"no partner.*0001\.png"):
        data.load(Data(name="pairs", root=str(tmp_path)))


def test_pictures_are_paired_by_stem_and_never_by_order(tmp_path: Path):
    layout(tmp_path, "pairs")
    (tmp_path / "test/clear/0001.png").rename(tmp_path / "test/clear/0009.png")
    with pytest.raises(InputError, match="2 pictures have no partner"):
        data.load(Data(name="pairs", root=str(tmp_path)))


def test_pairs_of_unequal_size_are_refused(tmp_path: Path):
    layout(tmp_path, "pairs")
    write_image(tmp_path / "train/clear/0001.png", pixels(1, 54, 66))
    with pytest.raises(InputError, match=r"60 x 54.*66 x 54"):
        data.load(Data(name="pairs", root=str(tmp_path)))
    with pytest.raises(InputError, match="same pixels"):
        data.main(["--root", str(tmp_path), "--name", "pairs"])


def test_a_damaged_file_is_named(tmp_path: Path):
    layout(tmp_path, "pairs")
    path = tmp_path / "train/moire/0002.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"0002\.png"):
        data.load(Data(name="pairs", root=str(tmp_path)))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_folder_is_an_input_error(name, tmp_path: Path):
    for root in ("", str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(InputError):
            data.load(Data(name=name, root=root))


def test_two_pictures_of_one_stem_are_refused(tmp_path: Path):
    layout(tmp_path, "pairs")
    write_image(tmp_path / "train/moire/0001.jpg", pixels(1))
    with pytest.raises(InputError, match="same stem"):
        data.load(Data(name="pairs", root=str(tmp_path)))


def test_limit_takes_the_first(tmp_path: Path):
    train, test = data.load(Data(name="pairs", root=str(layout(tmp_path, "pairs")), limit=2))
    assert train.names == test.names == ["0000", "0001"]


def test_the_fingerprint_follows_the_pixels(tmp_path: Path):
    settings = Data(name="pairs", root=str(layout(tmp_path, "pairs")))
    before = data.describe(settings, data.load(settings)[0])
    assert before == data.describe(settings, data.load(settings)[0]) and before["images"] == 3
    write_image(tmp_path / "train/clear/0001.png", 255 - pixels(1))
    assert data.describe(settings, data.load(settings)[0])["sha256"] != before["sha256"]


def test_photographs_give_synthetic_pairs_and_their_masks():
    settings = Data(**SMALL, train_photos=("astronaut", "rocket"), test_photos=("chelsea",), moire=Moire(ramp=True))
    train, test = data.load(settings)
    assert train.names == ["astronaut_00", "astronaut_01", "rocket_00", "rocket_01"]
    assert test.names == ["chelsea_00", "chelsea_01", "chelsea_02"]
    assert train.size(0) == (48, 64) and test.mask(1).shape == (48, 64) and test.mask(1).max() > test.mask(1).min()
    assert data.load(settings, seed=5)[0] is train, "runs of several seeds share their data"
    again = data.synthetic.__wrapped__(settings, "train")
    assert again.fingerprint() == train.fingerprint()


def test_whole_test_photographs(tmp_path: Path):
    write_image(tmp_path / "a.png", pixels(0, 120, 180))
    write_image(tmp_path / "b.png", pixels(1, 180, 120))
    settings = Data(root=str(tmp_path), **{**SMALL, "test_variants": 1}, test_photos=("b",), whole_test=64)
    train, test = data.load(settings)
    assert train.names == ["a_00", "a_01"] and test.names == ["b_00"] and test.size(0) == (96, 64)
    with pytest.raises(InputError, match="short side"):
        data.load(Data(root=str(tmp_path), **SMALL, test_photos=("b",), whole_test=500))


@pytest.mark.parametrize(
    "fields",
    [
        {"test_photos": ("nobody",)},
        {"test_photos": ()},
        {"train_photos": ("chelsea", "coffee"), "test_photos": ("chelsea",)},
        {"height": 5000},
        {"moire": Moire(off_min=0.5, off_max=0.1)},
    ],
)
def test_photographs_that_cannot_be_used_are_refused(fields):
    with pytest.raises(InputError):
        data.load(Data(**{**SMALL, **fields}))


def test_the_command_reports_and_checks(tmp_path: Path, capsys):
    layout(tmp_path / "fhdmi", "fhdmi")
    data.main(["--root", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fhdmi") and " present " in line for line in lines)
    assert any(line.startswith("uhdm") and " missing " in line for line in lines)
    data.main(["--root", str(tmp_path / "fhdmi"), "--name", "fhdmi", "--decode", "true"])
    assert "fhdmi test: 3 pairs" in capsys.readouterr().out


def classes_folder(root: Path, sizes: tuple[int, int, int] = (2, 3, 1)) -> Path:
    """The release's tiles: sizes of the three classes, tiles of 32 x 48 that are told apart by their pixels."""
    for folder, count in zip(("class1", "class2", "class3", "test"), (*sizes, 1)):
        for i in range(count):
            for side, offset in (("moire", 0), ("clear", 100)):
                write_image(root / folder / side / f"{i}_s001.png", pixels(offset + i, 36, 48)[:32])
    return root


def test_tiles_that_were_split_before_keep_their_classes(tmp_path: Path):
    train, test = data.load(Data(name="classes", root=str(classes_folder(tmp_path))))
    assert train.classes == [0, 0, 1, 1, 1, 2] and len(test) == 1 and train.to("cpu").classes == train.classes
    config = Config(tiles=Tiles(train=(32, 48)))
    classes = classed(train, config, torch.device("cpu"))
    assert [tiles[:, 0].tolist() for tiles in classes] == [[0, 1], [2, 3, 4], [5]]
    assert not any(tiles[:, 1:].any() for tiles in classes)
    assert len(classed(train, Config(widths=(1.0,), tiles=Tiles(train=(32, 48))), torch.device("cpu"))[0]) == 6
    with pytest.raises(InputError, match=r"tiles\.train"):
        classed(train, Config(), torch.device("cpu"))


def test_a_class_without_its_folder_is_named(tmp_path: Path):
    shutil.rmtree(classes_folder(tmp_path) / "class2" / "clear")
    with pytest.raises(InputError, match="class2"):
        data.load(Data(name="classes", root=str(tmp_path)))
