"""Condensable data: blends in memory and at decoding agree, official states load, bad input is refused."""

import subprocess
import sys
from pathlib import Path

from common.errors import InputError
from common.images import read_image, write_image
from common.imagesets import ArraySet
from common.labelled import Labelled

import numpy as np
import pytest
import torch

from kcd import data
from kcd.config import Condense, Config
from kcd.method import Condenser
from kcd.train import build_condenser


def digits(**condense) -> Config:
    return Config(data=Labelled("digits", crop_padding=0, flip=False), condense=Condense(**condense))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images of one size in two classes, as train and val."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for i in range(20):
            place = tmp_path / part / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            write_image(place / f"{i:02d}.png", rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return tmp_path


def test_digits_load_and_are_condensed_in_place(tmp_path):
    train, test = data.load(digits())
    assert len(train) == 1000 and len(test) == 797 and train.pixels.shape == (1000, 8, 8, 3)
    condenser = Condenser(1000)
    condenser.note(torch.arange(1000), torch.rand(1000))
    condenser.merge()
    before = train.pixels.clone()
    change = data.condense(train, condenser)
    data.draw_blends(change["blends"], tmp_path / "blends.png")
    shown = read_image(tmp_path / "blends.png")
    assert shown.shape == (3 * 64, 16 * 64, 3)
    partner, gone = (int(part[-1]) for part in condenser.history[-1])
    last = shown[::8, -64::8]  # the strongest blend, column by column: kept, lost, blend
    for tile, image in zip((last[:8], last[8:16], last[16:]), (before[partner], before[gone], train.pixels[partner])):
        assert np.array_equal(tile, image.numpy())
    touched = (train.pixels != before).flatten(1).any(1).nonzero()[:, 0]
    assert set(touched.tolist()) <= set(condenser.history[0][0].tolist()) and len(change["lost"]) == 50
    fresh, _ = data.load(digits())
    data.replay(fresh, condenser)
    assert torch.equal(fresh.pixels, train.pixels)


def test_decoded_images_are_blended_as_those_in_memory(folder):
    config = Config(data=Labelled("imagenet", root=str(folder), batch_size=4))
    decoded, _ = data.load(config)
    memory = ArraySet(
        torch.stack([torch.from_numpy(decoded.read(i)) for i in range(20)]),
        decoded.labels,
        decoded.classes,
        ((0.0,) * 3, (1.0,) * 3),
    )
    condensers = [Condenser(20, tau=0.4, stages=4) for _ in range(2)]
    torch.manual_seed(0)
    for _ in range(4):  # several stages, so that blended images are blended again
        value = torch.rand(20)
        for train, condenser in zip((decoded, memory), condensers):
            condenser.note(torch.arange(20), value)
            condenser.merge()
            data.condense(train, condenser)
    assert len(condensers[0].history) == 4
    for i in range(20):
        assert np.array_equal(decoded.read(i), memory.pixels[i].numpy()), i


def test_a_partner_of_another_size_is_resized(folder):
    odd = next((folder / "train" / "class0").glob("*.png"))
    write_image(odd, np.full((30, 9, 3), 90, np.uint8))
    train, _ = data.load(Config(data=Labelled("imagenet", root=str(folder), batch_size=4)))
    index = train.paths.index(str(odd))
    other = (index + 1) % 20
    for partner, lost in ((index, other), (other, index)):
        condenser = Condenser(20)
        condenser.history.append((torch.tensor([partner]), torch.tensor([lost])))
        train.blends.clear()
        before = data.FolderSet.read(train, partner)
        train.follow(condenser)
        assert train.read(partner).shape == before.shape
        images, labels = train.fetch(torch.tensor([partner, lost]), 1)
        assert images.shape == (2, 3, 224, 224) and len(labels) == 2


def test_official_state(tmp_path):
    train, _ = data.load(digits())
    kept = torch.randperm(1000)[:700]
    (tmp_path / "kept.txt").write_text("\n".join(f"{k:.1f}" for k in kept.tolist()))
    mixed = 255 - train.pixels.clone()
    torch.save(mixed, tmp_path / "mixed.pt")
    config = digits(start_kept=str(tmp_path / "kept.txt"), start_images=str(tmp_path / "mixed.pt"))
    condenser = build_condenser(config, train, torch.device("cpu"))
    assert torch.equal(condenser.kept, kept) and torch.equal(train.pixels, mixed)
    assert int(condenser.removed.sum()) == 300


@pytest.mark.parametrize(
    ("text", "images", "words"),
    [
        ("1\n2\n2", None, "different positions"),
        ("1\n1000", None, "between 0 and 999"),
        ("one", None, "text file of positions"),
        (None, torch.zeros(3, 8, 8, 3, dtype=torch.uint8), "the data set is"),
        (None, {"a": 1}, "tensor of images"),
    ],
)
def test_an_official_state_that_does_not_fit(tmp_path, text, images, words):
    options = {}
    if text is not None:
        (tmp_path / "kept.txt").write_text(text)
        options["start_kept"] = str(tmp_path / "kept.txt")
    if images is not None:
        torch.save(images, tmp_path / "mixed.pt")
        options["start_images"] = str(tmp_path / "mixed.pt")
    train, _ = data.load(digits())
    with pytest.raises(InputError, match=words):
        data.load_official_state(digits(**options), train, Condenser(1000))


def test_missing_folder_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match="cifar-100-python"):
        data.load(Config(data=Labelled("cifar100", root=str(tmp_path))))
    with pytest.raises(InputError, match="train"):
        data.load(Config(data=Labelled("imagenet", root=str(tmp_path / "nowhere"))))


def test_set_smaller_than_a_batch(folder):
    with pytest.raises(InputError, match="20 images"):
        data.load(Config(data=Labelled("imagenet", root=str(folder), batch_size=64)))


def test_the_command_says_what_is_there(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    script = Path(data.__file__)
    done = subprocess.run([sys.executable, script, "--root", tmp_path], capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "present" in lines["cifar100"] and "missing" in lines["cifar10"] and "https://" in lines["cifar10"]
