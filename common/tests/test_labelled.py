"""Every layout of labelled images gives the same sets, and every way of feeding them the same bits."""

import dataclasses
import io
import pickle

from common import distributed, labelled
from common.errors import InputError
from common.imagesets import ArraySet, FolderSet
from common.labelled import STATISTICS, Labelled, batches, epoch_order, load, test_batches

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import functional as F

CPU = torch.device("cpu")
SETTINGS = Labelled(name="cifar10", batch_size=8, test_batch_size=5, crop_padding=2)
feed_test = test_batches
del test_batches  # pytest would take it for a test


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def digits(**changes):
    return Labelled(**{"name": "digits", "batch_size": 16, "crop_padding": 1, "limit": 70, **changes})


def write_cifar(root, kind):
    """CIFAR as its authors pack it, with eight pictures a file; returns training and test pictures and labels."""
    fine = kind is datasets.CIFAR100
    base, key = root / kind.base_folder, "fine_labels" if fine else "labels"
    base.mkdir()
    made = {True: [], False: []}
    for train, files in ((True, kind.train_list), (False, kind.test_list)):
        for seed, (name, _) in enumerate(files):
            pixels = pictures(8, seed + (0 if train else 50))
            labels = [int(x) for x in np.random.default_rng(seed).integers(0, 100 if fine else 10, 8)]
            content = {"data": pixels.transpose(0, 3, 1, 2).reshape(8, -1), key: labels}
            (base / name).write_bytes(pickle.dumps(content))
            made[train].append((pixels, labels))
    names = [f"class {i:02d}" for i in range(100 if fine else 10)]
    (base / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    joined = []
    for train in (True, False):
        labels = [label for _, labels in made[train] for label in labels]
        joined.append((np.concatenate([pixels for pixels, _ in made[train]]), labels))
    return joined, names


@pytest.fixture
def unchecked(monkeypatch):
    """torchvision compares md5 sums with the real files'."""
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)


@pytest.mark.parametrize(("name", "kind"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar_as_its_authors_pack_it(tmp_path, unchecked, name, kind):
    ((pixels, labels), (test_pixels, test_labels)), classes = write_cifar(tmp_path, kind)
    train, test = load(dataclasses.replace(SETTINGS, name=name, root=str(tmp_path)), seed=3)
    assert torch.equal(train.pixels, torch.from_numpy(pixels))
    assert torch.equal(test.pixels, torch.from_numpy(test_pixels))
    assert (train.labels.tolist(), test.labels.tolist()) == (labels, test_labels)
    assert train.classes == test.classes == classes
    assert (train.seed, train.padding, train.flip) == (3, 2, True)
    assert (test.padding, test.flip) == (0, False)
    images, _ = test.fetch(torch.tensor([2]), 7)
    assert torch.equal(images[0], F.normalize(F.to_tensor(test_pixels[2]), *STATISTICS[name]))


def test_cifar_files_that_are_not_the_authors_are_refused(tmp_path):
    write_cifar(tmp_path, datasets.CIFAR10)
    with pytest.raises(InputError, match="cifar-10-batches-py"):
        load(dataclasses.replace(SETTINGS, root=str(tmp_path)), seed=0)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_is_named_with_the_remedy(tmp_path, name):
    with pytest.raises(InputError) as caught:
        load(dataclasses.replace(SETTINGS, name=name, root=str(tmp_path / "missing")), seed=0)
    for words in (str(tmp_path), "https://www.cs.toronto.edu/~kriz/cifar", "--data.download true"):
        assert words in str(caught.value)
    assert not (tmp_path / "missing").exists()


def encode(picture, form):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **({"quality": 90} if form == "JPEG" else {}))
    return buffer.getvalue()


def archive(path, form="PNG", **changes):
    """An .npz of encoded pictures: 20 for training, 12 for the test, 4 classes."""
    content = {"classes": np.array(["fox", "owl", "ray", "yak"])}
    for part, n, seed in (("train", 20, 1), ("test", 12, 2)):
        encoded = [encode(p, form) for p in pictures(n, seed)]
        content[f"{part}_jpeg"] = np.frombuffer(b"".join(encoded), np.uint8)
        content[f"{part}_offset"] = np.cumsum([0, *map(len, encoded)])
        content[f"{part}_label"] = np.arange(n) % 4
    content |= changes
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return dataclasses.replace(SETTINGS, root=str(path)), content


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_an_archive_of_encoded_images(tmp_path, form):
    settings, content = archive(tmp_path / "a.npz", form)
    train, test = load(settings, seed=0)
    for data, n, seed, part in ((train, 20, 1, "train"), (test, 12, 2, "test")):
        decoded = [np.asarray(Image.open(io.BytesIO(encode(p, form)))) for p in pictures(n, seed)]
        assert torch.equal(data.pixels, torch.from_numpy(np.stack(decoded)))
        assert data.labels.tolist() == content[f"{part}_label"].tolist()
        assert data.classes == ["fox", "owl", "ray", "yak"]
    if form == "PNG":
        assert np.array_equal(train.pixels, pictures(20, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_offset": None, "classes": None}, "lacks train_offset, classes"),
        ({"test_label": np.arange(11) % 4}, "test_offset has 13 entries for 11 labels"),
        ({"train_label": np.arange(20) % 5}, "4 training labels lie outside 0..3, the first is 4 of image 4"),
        ({"test_label": np.arange(12) % 4 - 1}, "3 test labels lie outside 0..3, the first is -1 of image 0"),
        ({"train_jpeg": np.zeros(100_000, np.uint8)}, r"a\.npz:train\[0\]"),
        ({"train_jpeg": np.zeros(0, np.uint8)}, r"a\.npz:train\[0\] is empty"),
        ({"classes": np.array([object()] * 4)}, "is not a readable .npz"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path, changes, words):
    settings, _ = archive(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError, match=words):
        load(settings, seed=0)


def test_a_damaged_image_in_an_archive_is_named(tmp_path):
    _, content = archive(tmp_path / "a.npz")
    data = content["test_jpeg"].copy()
    data[content["test_offset"][5] : content["test_offset"][6]] = 0
    settings, _ = archive(tmp_path / "a.npz", test_jpeg=data)
    with pytest.raises(InputError, match=r"a\.npz:test\[5\]"):
        load(settings, seed=0)


def test_images_of_different_sizes_in_an_archive_are_refused(tmp_path):
    encoded = [encode(np.zeros((8, 8 + i % 2, 3), np.uint8), "PNG") for i in range(20)]
    changes = {
        "train_jpeg": np.frombuffer(b"".join(encoded), np.uint8),
        "train_offset": np.cumsum([0, *map(len, encoded)]),
    }
    settings, _ = archive(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError, match="the train images differ in size"):
        load(settings, seed=0)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 nothing", b"text"])
def test_an_archive_that_is_none(tmp_path, content):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npz: (there is no such file|is not a readable)"):
        load(dataclasses.replace(SETTINGS, root=str(path)), seed=0)


def test_a_set_smaller_than_a_batch_is_refused(tmp_path):
    settings, _ = archive(tmp_path / "a.npz")
    assert len(load(dataclasses.replace(settings, batch_size=20), seed=0)[0]) == 20
    with pytest.raises(InputError, match=r"20 images, fewer than data\.batch_size 21"):
        load(dataclasses.replace(settings, batch_size=21), seed=0)


def write_folders(root, train=("cat", "dog"), val=("cat", "dog")):
    for part, names in (("train", train), ("val", val)):
        for c, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                size = (40 + 30 * i, 90 - 10 * c)
                Image.fromarray(pictures(1, i + 4 * c)[0]).resize(size).save(root / part / name / f"{i}.jpg")
    return Labelled(name="imagenet", root=str(root), batch_size=4, test_batch_size=3, resident=True)


def test_class_folders(tmp_path):
    settings = write_folders(tmp_path)
    train, test = load(settings, seed=9)
    assert (type(train), train.train, train.seed, test.train) == (FolderSet, True, 9, False)
    assert train.classes == ["cat", "dog"]
    assert train.labels.tolist() == test.labels.tolist() == [0] * 4 + [1] * 4

    class Own(FolderSet):
        pass

    train, test = load(settings, seed=9, folder=Own)
    assert (type(train), type(test)) == (Own, FolderSet)


def test_class_folders_that_do_not_match(tmp_path):
    with pytest.raises(InputError, match=r"cow.*dog.*one side only"):
        load(write_folders(tmp_path / "a", val=("cat", "cow")), seed=0)
    with pytest.raises(InputError, match="train"):
        load(Labelled(name="imagenet", root=str(tmp_path / "missing")), seed=0)


def test_a_damaged_image_in_a_folder_is_named(tmp_path):
    settings = write_folders(tmp_path)
    (tmp_path / "train" / "dog" / "2.jpg").write_bytes(b"no picture")
    train, _ = load(settings, seed=0)
    for workers in (0, 1):
        chosen = dataclasses.replace(settings, workers=workers)
        with pytest.raises(Exception, match=r"train/dog/2\.jpg") as caught:
            list(batches(train, torch.arange(8), 1, chosen, CPU))
        assert isinstance(caught.value, InputError)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    train, test = load(digits(limit=0), seed=0)
    raw = load_digits()
    assert (len(train), len(test)) == (1000, 797)
    stretched = torch.cat([train.pixels, test.pixels])
    assert stretched.shape == (1797, 8, 8, 3)
    assert torch.equal(stretched[..., 0], stretched[..., 2])
    back = stretched[..., 1].double() * 16 / 255
    assert np.array_equal(back.round().numpy(), raw.images)
    assert int(stretched.max()) == 255
    assert np.array_equal(torch.cat([train.labels, test.labels]), raw.target)
    assert train.classes == list("0123456789")
    images, _ = ArraySet(train.pixels.numpy(), train.labels, "", train.statistics).fetch(torch.arange(1000), 0)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_limit_takes_the_first_of_both():
    whole, whole_test = load(digits(limit=0), seed=0)
    train, test = load(digits(limit=70), seed=0)
    assert torch.equal(train.pixels, whole.pixels[:70])
    assert torch.equal(test.labels, whole_test.labels[:70])


def same(one, other):
    return len(one) == len(other) and all(
        len(a) == len(b)
        and all(
            torch.equal(x.images, y.images)
            and torch.equal(x.labels, y.labels)
            and torch.equal(x.index, y.index)
            and x.weight == y.weight
            for x, y in zip(a, b)
        )
        for a, b in zip(one, other)
    )


@pytest.mark.parametrize("changes", [{"resident": False}, {"resident": False, "workers": 2}, {"workers": 2}])
def test_every_way_of_feeding_gives_the_same_bits(changes):
    train, _ = load(digits(), seed=5)
    order = epoch_order(5, 2, torch.arange(70))
    resident = list(batches(train, order, 2, digits(), CPU, micro_batches=2))
    assert same(list(batches(train, order, 2, digits(**changes), CPU, micro_batches=2)), resident)
    assert torch.equal(resident[1][1].images, train.fetch(order[24:32], 2)[0])
    assert not same(list(batches(train, order, 3, digits(**changes), CPU, micro_batches=2)), resident)


def test_folders_are_fed_the_same_by_any_number_of_workers(tmp_path):
    settings = write_folders(tmp_path)
    train, test = load(settings, seed=1)
    order = epoch_order(1, 3, torch.arange(8))
    alone = list(batches(train, order, 3, settings, CPU))
    with_workers = dataclasses.replace(settings, workers=2)
    assert same(list(batches(train, order, 3, with_workers, CPU)), alone)
    shown = [torch.cat(part) for part in zip(*feed_test(test, settings, CPU))]
    again = [torch.cat(part) for part in zip(*feed_test(test, with_workers, CPU))]
    assert all(map(torch.equal, shown, again))
    assert torch.equal(shown[0], test.fetch(torch.arange(8), 0)[0])


def test_an_epoch_shows_every_sample_once():
    train, _ = load(digits(), seed=0)
    kept = torch.arange(0, 70, 2)
    order = epoch_order(0, 1, kept)
    assert torch.equal(order.sort().values, kept)
    assert not torch.equal(order, epoch_order(0, 2, kept))
    assert not torch.equal(order, epoch_order(1, 1, kept))
    steps = list(batches(train, order, 1, digits(), CPU))
    assert [len(batch.index) for (batch,) in steps] == [16, 16, 3]
    assert torch.equal(torch.cat([batch.index for (batch,) in steps]), order)
    assert all(torch.equal(batch.labels, train.labels[batch.index]) for (batch,) in steps)
    assert [batch.weight for (batch,) in steps] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("changes", [{}, {"resident": False, "workers": 1}])
def test_a_later_start_is_the_rest_of_the_same_epoch(changes):
    train, _ = load(digits(), seed=0)
    order = epoch_order(0, 1, torch.arange(70))
    whole = list(batches(train, order, 1, digits(**changes), CPU, micro_batches=2))
    assert len(whole) == 5
    for start in (0, 1, 4, 5):
        rest = list(batches(train, order, 1, digits(**changes), CPU, start=start, micro_batches=2))
        assert same(rest, whole[start:])


def test_micro_batches_are_the_batch_in_parts():
    train, _ = load(digits(), seed=0)
    order = epoch_order(0, 1, torch.arange(70))
    for (whole,), parts in zip(
        batches(train, order, 1, digits(), CPU), batches(train, order, 1, digits(), CPU, micro_batches=3)
    ):
        assert len(parts) == 3
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert [part.weight for part in parts] == [len(part.index) / len(whole.index) for part in parts]


def test_ranks_share_a_batch_and_the_test_set(monkeypatch):
    train, test = load(digits(), seed=0)
    order = epoch_order(0, 1, torch.arange(70))
    whole = [batch.index for (batch,) in batches(train, order, 1, digits(), CPU)]
    monkeypatch.setattr(distributed, "world", lambda: 3)
    trained, tested = [], []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
        trained.append([batch.index for (batch,) in batches(train, order, 1, digits(), CPU)])
        tested.append(list(feed_test(test, digits(test_batch_size=12), CPU)))
        assert {len(labels) for _, labels in tested[-1][:-1]} == {4}
    for step, index in enumerate(whole):
        assert torch.equal(torch.cat([mine[step] for mine in trained]), index)
    assert torch.equal(torch.cat([labels for mine in tested for _, labels in mine]), test.labels)


@pytest.mark.parametrize("size", [1, 7, 70, 500])
def test_the_test_set_is_shown_once_in_order_and_unaugmented(size):
    _, test = load(digits(), seed=0)
    shown = list(feed_test(test, digits(test_batch_size=size), CPU))
    assert all(len(images) == len(labels) <= size for images, labels in shown)
    assert torch.equal(torch.cat([labels for _, labels in shown]), test.labels)
    plain = torch.stack([F.normalize(F.to_tensor(p), *test.statistics) for p in test.pixels.numpy()])
    assert torch.equal(torch.cat([images for images, _ in shown]), plain)


@pytest.mark.parametrize("changes", [{}, {"resident": False}])
def test_what_is_written_to_the_pixels_is_fed(changes):
    train, _ = load(digits(crop_padding=0, flip=False), seed=0)
    order = torch.arange(70)
    train.pixels[3] = 255
    ((first,), *_) = batches(train, order, 1, digits(**changes), CPU)
    assert torch.equal(first.images[3], F.normalize(torch.ones(3, 8, 8), *train.statistics))


def test_a_description_identifies_the_content():
    train, _ = load(digits(), seed=0)
    about = labelled.describe(digits(), train)
    assert about == {"name": "digits", "images": 70, "sha256": train.fingerprint()}
    assert labelled.describe(digits(), load(digits(), seed=4)[0]) == about
    assert labelled.describe(digits(), load(digits(limit=71), seed=0)[0])["sha256"] != about["sha256"]


def test_data_py_says_what_is_there(tmp_path, capsys):
    (tmp_path / "cifar-100-python").mkdir()
    labelled.report_sources(["--root", str(tmp_path)], "about")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert [lines[name].split()[1] for name in labelled.SOURCES] == [
        "present",
        "missing",
        "present",
        "missing",
    ]
    assert all(f"{name} " in lines[name] for name in labelled.SOURCES)
    assert str(tmp_path / "cifar-10-batches-py") in lines["cifar10"]


@pytest.mark.parametrize(("resident", "expected"), [(True, "meta"), (False, "cpu")])
def test_a_resident_set_lives_on_the_device(resident, expected):
    settings = Labelled("digits", crop_padding=1, resident=resident)
    train, _ = load(settings, seed=0)
    labelled.place(train, settings, torch.device("meta"))
    assert train.pixels.device.type == train.labels.device.type == expected
    index = torch.arange(4, device=expected)
    images, labels = train.fetch(index, 1)
    assert images.device.type == labels.device.type == expected


def test_padding_is_no_part_of_a_sets_identity():
    padded, bare = (load(Labelled("digits", crop_padding=p), seed=0)[0].fingerprint() for p in (3, 0))
    assert padded == bare == "649c2c7970e80af5b77e2b76abea2d940f4d8f174006abb61c48eb600a867707"
