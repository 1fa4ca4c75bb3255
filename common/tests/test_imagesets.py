"""Batched augmentation equals torchvision's, image by image, on the same draws; and depends on nothing else."""

from common.errors import InputError
from common.imagesets import CROP_COLUMN, CROP_ROW, FLIP, IMAGENET, RESIZE, ArraySet, FolderSet, normalise
from common.randomness import integers, uniform

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

STATISTICS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
SIZES = [(40, 30), (300, 20), (20, 300), (500, 375), (1, 1), (3, 7), (98, 49), (256, 256), (257, 310)]


def pictures(n=12, height=8, width=10, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def array_set(n=12, *, seed=3, padding=2, flip=True, height=8, width=10):
    return ArraySet(
        pictures(n, height, width),
        torch.arange(n) % 4,
        "abcd",
        STATISTICS,
        seed=seed,
        padding=padding,
        flip=flip,
    )


def one_by_one(data, pixels, index, epoch):
    """Pad, crop, mirror, ToTensor and Normalize of torchvision on each picture by itself."""
    images = []
    for i in index.tolist():
        top, left = (int(integers(data.seed, epoch, i, slot, 2 * data.padding + 1)) for slot in (CROP_ROW, CROP_COLUMN))
        image = F.pad(Image.fromarray(pixels[i]), data.padding, fill=0)
        image = F.crop(image, top, left, *pixels.shape[1:3])
        if data.flip and float(uniform(data.seed, epoch, i, FLIP)) < 0.5:
            image = F.hflip(image)
        images.append(F.normalize(F.to_tensor(image), *data.statistics))
    return torch.stack(images)


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("height", "width"), [(8, 10), (32, 32), (1, 5)])
def test_a_batch_equals_torchvision_bit_for_bit(padding, flip, height, width):
    data = array_set(40, padding=padding, flip=flip, height=height, width=width)
    index = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for epoch in (1, 2):
        images, labels = data.fetch(index, epoch)
        assert images.dtype == torch.float32
        assert torch.equal(images, one_by_one(data, pictures(40, height, width), index, epoch))
        assert torch.equal(labels, index % 4)


def test_every_value_is_normalised_as_torchvision_does():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    for statistics in (STATISTICS, IMAGENET, ((0.1, 0.2, 0.3), (1 / 3, 0.7, 1.1))):
        expected = F.normalize(F.to_tensor(values[0]), *statistics)
        assert torch.equal(normalise(torch.from_numpy(values), statistics)[0], expected)


def test_images_are_channels_last():
    images, _ = array_set().fetch(torch.arange(3), 1)
    assert images.shape == (3, 3, 8, 10)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    data = array_set(200)
    everything = torch.arange(200)
    images, _ = data.fetch(everything, 5)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(data.fetch(shuffled, 5)[0], images[shuffled])
    assert torch.equal(torch.cat([data.fetch(part, 5)[0] for part in everything.split(7)]), images)
    assert torch.equal(data.fetch(torch.tensor([9, 9, 9]), 5)[0], images[[9, 9, 9]])
    for other in (data.fetch(everything, 6)[0], array_set(200, seed=4).fetch(everything, 5)[0]):
        same = (other == images).flatten(1).all(1)
        assert same.sum() < 20  # one in 50 draws the same crop and flip


def test_crops_and_flips_are_evenly_spread():
    data = ArraySet(np.full((5000, 1, 2, 3), (1, 2, 3), np.uint8), [0] * 5000, "a", STATISTICS, padding=1, flip=True)
    data.pixels[:, :, 1] = 200
    images, _ = data.fetch(torch.arange(5000), 1)
    rows = (images * 0.2675 + 0.5071)[:, 0, 0].mul(255).round().int()  # the first channel of the two pixels
    shown, counts = rows.unique(dim=0, return_counts=True)
    counts = {tuple(pair): count for pair, count in zip(shown.tolist(), counts.tolist())}
    # A third of the crops lies in the row; there each of the three columns and both directions are equally likely.
    expected = {(0, 1): 1, (1, 200): 1, (200, 0): 1, (1, 0): 1, (200, 1): 1, (0, 200): 1}
    inside = {pair: counts.get(pair, 0) for pair in expected}
    assert counts.keys() == {*expected, (0, 0)}
    assert all(abs(count - 5000 / 18) < 5 * 16.2 for count in inside.values()), inside
    assert abs(counts[0, 0] - 5000 * 2 / 3) < 5 * 33.4


def test_pixels_may_be_written_to():
    data, untouched = array_set(), array_set()
    index = torch.arange(12)
    changed = pictures(seed=9)
    before = data.fingerprint()
    data.pixels[2:4] = torch.from_numpy(changed[2:4])
    expected = pictures()
    expected[2:4] = changed[2:4]
    images, _ = data.fetch(index, 1)
    assert torch.equal(images, one_by_one(data, expected, index, 1))
    same = (images == untouched.fetch(index, 1)[0]).flatten(1).all(1)
    assert same.tolist() == [i not in (2, 3) for i in range(12)]
    assert data.fingerprint() != before
    assert data.storage[:, :2].sum() == data.storage[:, -2:].sum() == data.storage[:, :, :2].sum() == 0


def test_the_fingerprint_is_of_content():
    base = array_set().fingerprint()
    assert array_set(seed=8).fingerprint() == base
    one_pixel = array_set()
    one_pixel.pixels[11, 7, 9, 2] ^= 1
    one_label = array_set()
    one_label.labels[0] = 3
    assert len({base, one_pixel.fingerprint(), one_label.fingerprint(), array_set(11).fingerprint()}) == 4


def test_the_given_arrays_are_not_shared():
    pixels = pictures()
    data = ArraySet(pixels, [0] * 12, "a", STATISTICS)
    data.pixels.zero_()
    assert np.array_equal(pixels, pictures())
    assert data.to(torch.device("cpu")) is data
    assert len(data) == 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares the CPU with CUDA")
def test_cuda_gives_the_same_bits():
    index = torch.arange(12)
    here, _ = array_set().fetch(index, 3)
    there, labels = array_set().to(torch.device("cuda")).fetch(index.cuda(), 3)
    assert labels.is_cuda
    assert torch.equal(there.cpu(), here)


@pytest.fixture
def folder(tmp_path):
    """Class folders a, b and c with pictures of every size in SIZES, as PNG."""
    random = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        path = tmp_path / "abc"[i % 3] / f"{i:02d} ü.png"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (max(1, height // 4), max(1, width // 4), 3), dtype=np.uint8))
        small.resize((width, height), Image.BICUBIC).save(path)
    return tmp_path


def opened(data, i):
    return Image.open(data.paths[i]).convert("RGB")


def test_evaluation_equals_torchvisions_transforms(folder):
    data = FolderSet(folder)
    assert data.classes == ["a", "b", "c"]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sorted(opened(data, i).size for i in range(9)) == sorted(SIZES)
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET),
        ]
    )
    images, labels = data.fetch(torch.arange(9), 1)
    assert torch.equal(images, torch.stack([transform(opened(data, i)) for i in range(9)]))
    assert torch.equal(labels, data.labels)
    assert torch.equal(data.fetch(torch.arange(9), 2)[0], images)


def torchvision_crop(patch, image, draws):
    """torchvision's own RandomResizedCrop, with row k of draws [10, 4] in place of its generator's k-th attempt."""
    calls = {"uniform": 0, "randint": 0}

    def uniform_(_, low, high):
        attempt, which = divmod(calls["uniform"], 2)
        calls["uniform"] += 1
        return torch.tensor([low + (high - low) * float(draws[attempt, which])], dtype=torch.float64)

    def randint(low, high, size):
        attempt, which = (calls["uniform"] - 1) // 2, 2 + calls["randint"]
        calls["randint"] += 1
        return torch.full(size, low + int(float(draws[attempt, which]) * (high - low)))

    patch.setattr(torch.Tensor, "uniform_", uniform_)
    patch.setattr(torch, "randint", randint)
    return transforms.RandomResizedCrop(224)(image), calls["randint"] == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_training_equals_torchvision_on_the_same_draws(folder, monkeypatch, seed):
    data = FolderSet(folder, seed=seed, train=True)
    fitted = []
    for epoch in range(6):
        images, _ = data.fetch(torch.arange(9), epoch)
        for i in range(9):
            draws = uniform(seed, epoch, i, torch.arange(RESIZE, RESIZE + 40)).view(10, 4)
            with monkeypatch.context() as patch:
                expected, fits = torchvision_crop(patch, opened(data, i), draws)
            if float(uniform(seed, epoch, i, FLIP)) < 0.5:
                expected = F.hflip(expected)
            expected = F.normalize(F.to_tensor(expected), *IMAGENET)
            assert torch.equal(images[i], expected), (epoch, SIZES[i], fits)
            fitted.append(fits)
    assert 0.5 < sum(fitted) / len(fitted) < 1, "both the proposals and the fallback must have been compared"


def test_a_training_image_depends_on_seed_epoch_and_index_alone(folder):
    data = FolderSet(folder, seed=0, train=True)
    images, labels = data.fetch(torch.arange(9), 4)
    some = torch.tensor([7, 0, 3])
    assert torch.equal(data.fetch(some, 4)[0], images[some])
    assert torch.equal(data.fetch(some, 4)[1], labels[some])
    large = torch.tensor([3])
    assert not torch.equal(data.fetch(large, 5)[0], images[large])
    assert not torch.equal(FolderSet(folder, seed=1, train=True).fetch(large, 4)[0], images[large])


def test_limit_takes_the_first(folder):
    data = FolderSet(folder, limit=4)
    assert len(data) == 4
    assert data.paths == FolderSet(folder).paths[:4]
    assert data.classes == ["a", "b", "c"]


def test_the_fingerprint_of_a_folder_is_of_names_and_sizes(folder):
    base = FolderSet(folder).fingerprint()
    assert FolderSet(folder, seed=5, train=True).fingerprint() == base
    assert FolderSet(folder, limit=8).fingerprint() != base
    path = folder / "a" / "00 ü.png"
    path.write_bytes(path.read_bytes() + b"0")
    changed = FolderSet(folder).fingerprint()
    path.rename(path.with_name("01.png"))
    assert len({base, changed, FolderSet(folder).fingerprint()}) == 3


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("content", [b"", b"not a picture", None], ids=["empty", "text", "half"])
def test_a_damaged_picture_is_named_and_never_skipped(folder, train, content):
    path = folder / "a" / "03 ü.png"
    content = path.read_bytes()[: path.stat().st_size // 2] if content is None else content
    path.write_bytes(content)
    data = FolderSet(folder, train=train)
    with pytest.raises(InputError, match=r"a/03 ü\.png"):
        data.fetch(torch.tensor([0, 1]), 1)


def test_a_folder_without_classes_is_refused(tmp_path):
    for root in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="is not a folder of class folders"):
            FolderSet(root)
    (tmp_path / "empty class").mkdir()
    with pytest.raises(InputError, match="empty class"):
        FolderSet(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        FolderSet(tmp_path / "file")
