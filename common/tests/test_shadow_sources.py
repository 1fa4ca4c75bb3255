"""Where triplets come from, how they become batches, and the classical relight."""

from common.errors import InputError
from common.images import read_image, write_image
from common.shadow import relight, sources, synthesis, triplets
from common.shadow.loader import batches
from common.testing import python

import numpy as np
import pytest
import torch


@pytest.fixture
def photographs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (90, 120, 3), dtype=np.uint8) for name in ("one", "two", "three")}


def folders(root, names=("a", "b"), size=(40, 50)):
    for name in names:
        for letter in "ABC":
            shape = size if letter == "B" else (*size, 3)
            write_image(root / f"train_{letter}" / f"{name}.png", np.full(shape, 90, np.uint8))
    return root


def test_a_synthetic_triplet_depends_on_seed_epoch_and_index_alone(photographs):
    fresh = sources.SyntheticTriplets(photographs, 64, 10, seed=3, fresh=True)
    again = sources.SyntheticTriplets(photographs, 64, 99, seed=3, fresh=True)
    for index, epoch in ((4, 1), (0, 2)):
        for one, two in zip(fresh.read(index, epoch), again.read(index, epoch)):
            assert np.array_equal(one, two)
    assert not np.array_equal(fresh.read(4, 1).free, fresh.read(4, 2).free)
    fixed = sources.SyntheticTriplets(photographs, 64, 10, seed=3)
    assert np.array_equal(fixed.read(4, 1).shadow, fixed.read(4, 2).shadow)


def test_a_shadow_darkens_inside_the_mask_only(photographs):
    sample = sources.SyntheticTriplets(photographs, 64, 1).read(0)
    assert set(np.unique(sample.mask)) == {0, 255} and sample.shadow.shape == (64, 64, 3)
    inside = sample.mask > 0
    assert sample.shadow[inside].mean() < 0.8 * sample.free[inside].mean()
    far = triplets.dilate((inside).astype(np.uint8), 21) == 0
    assert np.array_equal(sample.shadow[far], sample.free[far])


def test_whole_photographs_take_turns(photographs):
    whole = sources.SyntheticTriplets(photographs, None, 4)
    assert [whole.name(i) for i in range(4)] == ["one_00", "two_00", "three_00", "one_01"]
    assert np.array_equal(whole.read(3).free, photographs["one"])
    assert not np.array_equal(whole.read(0).mask, whole.read(3).mask)
    with pytest.raises(InputError, match="crops of 100 pixels from one"):
        sources.SyntheticTriplets(photographs, 100, 4)


def test_a_folder_is_split_by_names_and_shrunk(tmp_path):
    for number in range(8):
        write_image(tmp_path / f"p{number}.png", np.full((40, 80, 3), number, np.uint8))
    train, test = (sources.folder(tmp_path, part, 40) for part in ("train", "test"))
    assert [*test] == ["p2", "p7"] and not set(train) & set(test) and len(train) == 6
    assert test["p2"].shape == (20, 40, 3)
    with pytest.raises(InputError, match="does not exist"):
        sources.folder(tmp_path / "none", "train", 40)
    (tmp_path / "few").mkdir()
    write_image(tmp_path / "few" / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="at least three"):
        sources.folder(tmp_path / "few", "train", 40)


def test_the_embedded_photographs_keep_their_split():
    assert not set(sources.embedded("train")) & set(sources.embedded("test"))


def test_files_are_checked_before_anything_is_read(tmp_path):
    root = folders(tmp_path)
    found = triplets.find(root, "train")
    source = sources.FileTriplets(found, resident=True)
    assert source.name(1) == "b" and source.read(1, 5).mask.shape == (40, 50)
    assert source.read(0).mask.max() == 90  # levels as stored
    before = source.fingerprint()
    write_image(root / "train_B" / "b.png", np.zeros((41, 50), np.uint8))
    with pytest.raises(InputError, match=r"b\.png.*sizes differ"):
        sources.FileTriplets(found)
    (root / "train_B" / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b\.png cannot be read"):
        sources.FileTriplets(found)
    assert source.fingerprint() != before


class Squares:
    """A data set of numbers."""

    def fetch(self, index: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        return {"square": index * index, "epoch": torch.full_like(index, epoch)}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_and_go_on_where_asked(workers):
    order, cpu = torch.tensor([3, 1, 4, 0, 2]), torch.device("cpu")
    steps = [*batches(Squares(), order, 7, 2, cpu, workers=workers)]
    assert [[part.index.tolist() for part in step] for step in steps] == [[[3, 1]], [[4, 0]], [[2]]]
    assert steps[0][0].values["square"].tolist() == [9, 1] and steps[0][0].values["epoch"].tolist() == [7, 7]
    late = [*batches(Squares(), order, 7, 2, cpu, workers=workers, start=2, micro_batches=2)]
    assert [part.index.tolist() for part in late[0]] == [[2], [2]] and [p.weight for p in late[0]] == [1.0, 0.0]


def test_the_classical_relight_recovers_an_affine_shadow():
    rng = np.random.default_rng(1)
    free = rng.integers(60, 200, (120, 160, 3), dtype=np.uint8)
    mask = np.zeros((120, 160), np.uint8)
    mask[30:90, 40:120] = 255
    dark = synthesis.darken(
        torch.from_numpy(free).permute(2, 0, 1) / 255, torch.tensor([2.4, 2.2, 2.0]), torch.zeros(3)
    )
    shadow = np.where(mask[..., None] > 0, (dark * 255).round().byte().permute(1, 2, 0).numpy(), free)
    found = relight.relit(shadow, mask)
    before, after = (np.abs(x.astype(int) - free)[mask > 0].mean() for x in (shadow, found))
    assert after < 0.1 * before and np.array_equal(found[mask == 0], free[mask == 0])
    for empty in (np.zeros_like(mask), np.full_like(mask, 255)):
        assert np.array_equal(relight.relit(shadow, empty), shadow)


def test_the_synthesis_command_writes_a_set(tmp_path):
    for name in ("x", "y"):
        write_image(tmp_path / "photos" / f"{name}.png", np.full((40, 60, 3), 120, np.uint8))
    synthesis.main([str(tmp_path / "photos"), str(tmp_path / "out"), "--per_photo", "2"])
    found = triplets.find(tmp_path / "out", "train")
    assert [triplet.name for triplet in found] == ["x_00", "x_01", "y_00", "y_01"]
    shadow, mask, free = triplets.read(found[0])
    assert shadow[mask > 0].mean() < free[mask > 0].mean() and free.min() == free.max() == 120
    assert read_image(found[0].mask).max() == 255
    done = python(tmp_path, ["-m", "common.shadow.synthesis", str(tmp_path / "none"), str(tmp_path / "out")])
    assert done.returncode == 2 and done.stderr.startswith("error:")
