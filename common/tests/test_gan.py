"""The shared substrate of the image-to-image GANs: data layouts, pool, evaluation, use."""

import dataclasses
import random
from pathlib import Path

from common import gan
from common.errors import InputError
from common.gan import data, evaluation, objectives, perceptual, schedule, teachers, translate
from common.gan.data import Domains
from common.gan.inception import FIDInception
from common.gan.judge import Judge, draw_samples, pairs, targets, turned
from common.gan.pool import ImagePool
from common.gan.settings import Judging, Networks, Optim, Teaching
from common.images import read_image, write_image
from common.labelled import Labelled, batches, epoch_order
from common.labelled import load as labelled_load
from common.testing import image_archive

import numpy as np
import pytest
import torch
from torch import nn


def picture(value: int, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    return np.random.default_rng(value).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def unaligned(tmp_path) -> Path:
    for domain, count in (("A", 3), ("B", 5)):
        for part in ("train", "val"):
            for i in range(count):
                write_image(tmp_path / f"{part}{domain}" / f"{i}.png", picture(i + 10 * (domain == "B")))
    return tmp_path


SMALL = {"load_size": 10, "crop_size": 8}


def test_unaligned_folders(unaligned):
    train, test = data.load(Domains(root=str(unaligned), **SMALL), 0)
    assert len(train) == 5 and len(test) == 3
    a, b = train.fetch(torch.arange(5), 1)
    assert a.shape == b.shape == (5, 3, 8, 8) and a.abs().max() <= 1
    again = train.fetch(torch.arange(5), 1)
    assert torch.equal(a, again[0]) and torch.equal(b, again[1])
    assert not torch.equal(b, train.fetch(torch.arange(5), 2)[1])
    # A is taken by number, whatever is drawn for B.
    plain = data.load(Domains(root=str(unaligned), load_size=8, crop_size=8, flip=False), 0)[0]
    a, _ = plain.fetch(torch.arange(5), 1)
    assert torch.equal(a[0], a[3]) and torch.equal(a[1], a[4]) and not torch.equal(a[0], a[1])
    partners = [set(plain.fetch(torch.arange(5), epoch)[1].sum((1, 2, 3)).tolist()) for epoch in range(20)]
    assert len(set.union(*partners)) == 5
    source, _ = data.load(Domains(root=str(unaligned), direction="BtoA", load_size=8, crop_size=8, flip=False), 0)[
        1
    ].fetch(torch.tensor([4]), 0)
    assert torch.equal(source[0], data.prepare(picture(14), "resize_and_crop", 8, 8))
    dropped = data.load(Domains(root=str(unaligned), legacy_drop_last_file=True, **SMALL), 0)
    assert [len(part) for part in dropped] == [4, 2]


def test_aligned_pairs_share_their_crop(tmp_path):
    both = picture(1, (20, 20))
    for part in ("train", "val"):
        write_image(tmp_path / part / "0.png", np.concatenate([both, both], 1))
    settings = Domains("aligned", str(tmp_path), load_size=20, crop_size=8)
    train, test = data.load(settings, 3)
    seen = set()
    for epoch in range(12):
        a, b = train.fetch(torch.tensor([0]), epoch)
        assert torch.equal(a, b)
        seen.add(float(a.sum()))
    assert len(seen) > 6
    a, b = test.fetch(torch.tensor([0]), 0)
    assert torch.equal(a, b) and a.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", ["photos_paired", "photos_unpaired"])
def test_embedded_photographs(name):
    settings = Domains(name, load_size=72, crop_size=64, batch_size=4)
    train, test = data.load(settings, 0)
    assert (len(train), len(test)) == (512, 128)
    ((a, b, index, weight),) = next(
        batches(train, epoch_order(0, 1, torch.arange(8)), 1, settings, torch.device("cpu"))
    )
    assert a.shape == b.shape == (4, 3, 64, 64) and weight == 1 and len(index) == 4
    assert train.fingerprint() != test.fingerprint()
    with pytest.raises(InputError, match="larger than a part"):
        data.load(Domains(name, load_size=400, crop_size=64), 0)


def test_a_folder_of_photographs(tmp_path):
    for i in range(5):
        write_image(tmp_path / f"{i}.png", np.full((40, 30 + i, 3), 50 * i, np.uint8))
    settings = Domains("folder_paired", str(tmp_path), load_size=10, crop_size=8, batch_size=4)
    train, test = data.load(settings, 0)
    assert (len(train), len(test)) == (256, 64) and train.paired
    shades = [{int(part.read(1, i)[0, 0, 0]) for i in range(len(part))} for part in (train, test)]
    assert shades == [{0, 50, 150, 200}, {100}], "the third photograph is kept for evaluation"
    assert int(train.read(0, 0).min()) == 255, "an even picture has no edges"
    assert [len(part) for part in data.load(dataclasses.replace(settings, limit=6), 0)] == [6, 6]
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        data.load(settings, 0)


def test_a_large_photograph_is_shrunk_to_a_few_crops_across(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", picture(i, (90, 200)))
    train, _ = data.load(Domains("folder_paired", str(tmp_path), load_size=10, crop_size=8, limit=1), 0)
    # A crop of 10 pixels shows 22 of the original's 90 rows, so that noise of one pixel is averaged away.
    assert train.read(1, 0).std() < 0.7 * picture(0).std()


@pytest.mark.parametrize(("count", "side", "words"), [(2, 20, "at least three are needed"), (3, 9, "give at most 9")])
def test_a_folder_that_does_not_suffice(tmp_path, count, side, words):
    for i in range(count):
        write_image(tmp_path / f"{i}.png", picture(i, (20, side)))
    with pytest.raises(InputError, match=words):
        data.load(Domains("folder_paired", str(tmp_path), load_size=10, crop_size=8), 0)


def test_two_classes_of_an_archive(tmp_path):
    root = str(image_archive(tmp_path, [2, 0, 2, 1, 2, 0]))
    settings = Domains("classes", root, class_a="2", class_b="0", load_size=36, crop_size=32, batch_size=2)
    train, test = data.load(settings, 0)
    assert train.counts == test.counts == (3, 2) and len(train) == 3 and not train.paired
    everything, _ = labelled_load(Labelled("cifar10", root, batch_size=1), 0)
    for side, numbers in enumerate(([0, 2, 4], [1, 5])):
        for i, number in enumerate(numbers):
            assert np.array_equal(train.read(side, i), everything.pixels[number].numpy())
    with pytest.raises(InputError, match="has no class 'horse'; choose from 0, 1"):
        data.load(dataclasses.replace(settings, class_a="horse"), 0)
    with pytest.raises(InputError, match="train holds no image of class 5"):
        data.load(dataclasses.replace(settings, class_b="5"), 0)
    with pytest.raises(InputError, match="there is no such file"):
        data.load(dataclasses.replace(settings, root="nowhere.npz"), 0)


def test_workers_change_nothing(unaligned):
    found = []
    for workers in (0, 2):
        settings = Domains(root=str(unaligned), workers=workers, batch_size=2, **SMALL)
        train, _ = data.load(settings, 0)
        steps = batches(train, torch.arange(5), 1, settings, torch.device("cpu"))
        found.append([torch.cat([batch[0], batch[1]]) for (batch,) in steps])
    assert all(torch.equal(x, y) for x, y in zip(*found))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": "nowhere"}, "does not exist"),
        ({"load_size": 8, "crop_size": 10}, "below data.crop_size"),
        ({"batch_size": 6}, "fewer than data.batch_size 6"),
    ],
)
def test_bad_data_is_refused(unaligned, options, words):
    with pytest.raises(InputError, match=words):
        data.load(Domains(**{"root": str(unaligned), **SMALL, **options}), 0)


def test_a_folder_without_images_is_refused(unaligned):
    for path in (unaligned / "valB").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="valB holds no image"):
        data.load(Domains(root=str(unaligned), **SMALL), 0)


def test_a_pool_continues_where_its_state_was_taken():
    offered = torch.rand(40, 1, 1, 2, 2)
    straight, stopped = ImagePool(4, random.Random(1)), ImagePool(4, random.Random(1))
    expected = [straight.query(image) for image in offered]
    for image in offered[:15]:
        stopped.query(image)
    resumed = ImagePool(4)
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(resumed.query(image), want) for image, want in zip(offered[15:], expected[15:]))
    assert not all(torch.equal(image, want) for image, want in zip(offered, expected))
    empty = ImagePool(3)
    empty.load_state_dict(ImagePool(3).state_dict())
    assert empty.images == []


def test_a_pool_keeps_its_own_copy_without_graph():
    pool, image = ImagePool(1), torch.zeros(1, 1, 2, 2, requires_grad=True)
    returned = pool.query(image * 1)
    assert not returned.requires_grad
    returned.add_(1)
    assert pool.images[0].sum() == 0


def test_frozen_networks_pass_gradients_but_take_none():
    network = gan.build_discriminator("n_layers", width=2, layers=1)
    network.model[0].bias.requires_grad_(False)
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    with gan.frozen(network):
        gan.generator_loss("lsgan", network(x)).backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in network.parameters())
    assert network.model[0].weight.requires_grad and not network.model[0].bias.requires_grad


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gan.build_generator("unet_128", 4), "unet_128: not one of"),
        (lambda: gan.build_generator("resnet_9blocks", 4, "layer"), "norm layer: not one of"),
        (lambda: gan.build_discriminator("patch"), "patch: not one of"),
        (lambda: gan.real_loss("least squares", torch.zeros(1)), "least squares: not one of"),
        (lambda: gan.statistics(torch.zeros(1, 4)), "at least two"),
        (lambda: evaluation.extractor("resnet"), "resnet: not one of"),
        (lambda: evaluation.features(evaluation.RandomFeatures(), []), "no images"),
        (lambda: evaluation.kernel_distance(torch.zeros(5, 3), torch.zeros(5, 4)), "same dimension"),
    ],
)
def test_unknown_names_and_empty_sets_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_frechet_distance_of_gaussians_is_the_closed_form():
    torch.manual_seed(0)
    x = torch.randn(4000, 3, dtype=torch.float64)
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T  # mean 0, covariance 1, exactly
    a = gan.statistics(white * torch.tensor([1.0, 2.0, 3.0]))
    b = gan.statistics(white * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([0.0, 5.0, 0.0]))
    assert gan.frechet_distance(a, b) == pytest.approx(25 + 1 + 0 + 4, rel=1e-9)
    with pytest.raises(InputError, match="different networks"):
        gan.frechet_distance(a, gan.statistics(torch.rand(5, 4)))
    with pytest.raises(InputError, match="not finite"):
        gan.frechet_distance(a, gan.statistics(white * torch.nan))


@pytest.mark.parametrize(("n", "m", "dimensions"), [(60, 80, 12), (9, 11, 24)])  # the second: singular covariances
def test_distances_are_those_of_torch_fidelity(n, m, dimensions):
    """Imported after common, which lets torchvision be imported."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    torch.manual_seed(n)
    a = torch.randn(n, dimensions, dtype=torch.float64)
    b = torch.randn(m, dimensions, dtype=torch.float64) @ torch.randn(dimensions, dimensions).double() + 1
    theirs = [fid_features_to_statistics(features) for features in (a, b)]
    expected = fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"]
    ours = [gan.statistics(features) for features in (a, b)]
    assert np.allclose(ours[1].covariance, theirs[1]["sigma"], rtol=1e-12, atol=1e-12)
    assert gan.frechet_distance(*ours) == pytest.approx(expected, rel=1e-6)
    # With subsets of the whole of two equally large sets, KID has no randomness but the order.
    b = b[: len(a)]
    options = {"kid_subsets": 1, "kid_subset_size": n, "verbose": False}
    expected = kid_features_to_metric(a, b, **options)["kernel_inception_distance_mean"]
    assert evaluation.kernel_distance(a, b, subsets=1, size=n) == pytest.approx(expected, rel=1e-9)


def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """Its extractor takes our weights as they are, and then sees the same in a picture of 299 x 299 as ours does."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    ours = FIDInception()
    for name, value in ours.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    kept = {name: value for name, value in ours.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "inception.pth")
    theirs = FeatureExtractorInceptionV3("inception", ["64", "192", "768", "2048"], str(tmp_path / "inception.pth"))
    pixels = torch.from_numpy(np.stack([picture(1, (299, 299))])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(pixels)
        # It brings pixels to [-1, 1) by (x - 128) / 128, the released code of the field by 2 x / 255 - 1.
        found = ours.stages(((pixels - 128.0) / 128 + 1) / 2)
    for ours_at, theirs_at in zip(found, expected):
        seen = ours_at if ours_at.ndim == 2 else ours_at.mean((2, 3))
        assert torch.allclose(seen, theirs_at, rtol=1e-3, atol=1e-4 * float(theirs_at.abs().max()))
    count = lambda network: sum(p.numel() for p in network.parameters())
    assert count(ours) == count(theirs) == 23_850_960


def test_kernel_distance_is_unbiased_around_zero_and_sees_a_shift():
    torch.manual_seed(0)
    a, b = torch.randn(300, 8), torch.randn(300, 8)
    same = [evaluation.kernel_distance(a[i : i + 50], b[i : i + 50], subsets=1) for i in range(0, 300, 50)]
    assert min(same) < 0 < max(same)
    assert evaluation.kernel_distance(a, b + 1, subsets=5, size=100) > 1
    # Without subsets it is the plain formula.
    kernel = lambda x, y: (x @ y.T / 8 + 1) ** 3
    kx, ky, kxy = kernel(a.double(), a.double()), kernel(b.double(), b.double()), kernel(a.double(), b.double())
    n = len(a)
    plain = sum((k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (kx, ky)) - 2 * kxy.mean()
    assert evaluation.kernel_distance(a, b, subsets=1, size=n) == pytest.approx(float(plain), abs=1e-12)


def test_statistics_are_cached_and_read_back(tmp_path):
    extract, images = evaluation.RandomFeatures(), [torch.rand(4, 3, 16, 16) * 2 - 1 for _ in range(3)]
    cache = tmp_path / "deep" / "real.npz"
    first = evaluation.real_statistics(extract, images, cache)
    again = evaluation.real_statistics(extract, [], cache)
    assert all(torch.equal(x, y) for x, y in zip(first[:2], again[:2])) and again.samples == 12
    np.savez(tmp_path / "released.npz", mu=first.mean, sigma=first.covariance)
    assert evaluation.load_statistics(tmp_path / "released.npz").samples == 0
    np.savez(tmp_path / "odd.npz", mu=first.mean, sigma=first.covariance[:2])
    (tmp_path / "text.npz").write_text("404")
    for name in ("odd.npz", "text.npz", "missing.npz"):
        with pytest.raises(InputError, match=name):
            evaluation.load_statistics(tmp_path / name)


class Double(nn.Module):
    """Negates images, and insists on sides that are multiples of 8."""

    multiple = 8

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0 and not self.training
        return x * self.scale


@pytest.mark.parametrize("size", [(8, 8), (21, 13), (3, 2), (1, 40)])
def test_an_image_of_any_size_is_translated(size):
    image, network = picture(3, size), Double()
    found = translate.translate(network, image)
    assert found.shape == image.shape and found.dtype == np.uint8 and network.training
    assert np.abs(found.astype(int) - (255 - image.astype(int))).max() <= 1


def test_generated_images_leave_the_mode(tmp_path):
    network = Double().train()
    (out,) = evaluation.generated(network, [torch.ones(1, 3, 8, 8)], torch.device("cpu"))
    assert float(out.mean()) == -1 and network.training


def test_a_gallery_escapes_its_names(tmp_path):
    translate.write_gallery(tmp_path / "index.html", "a < b", [{"source": "a.png"}, {"student": 'b".png'}])
    page = (tmp_path / "index.html").read_text()
    assert "a &lt; b" in page and "b&quot;.png" in page and page.count("<tr>") == 3


def test_latency_has_a_row_for_each_variant():
    before = torch.get_num_threads()
    rows = translate.latency(Double(), 8, threads=(1, 2), warmup=1, rounds=4)
    assert [(row["variant"], row["threads"]) for row in rows] == [
        ("contiguous", 1), ("channels_last", 1), ("contiguous", 2), ("channels_last", 2)
    ]  # fmt: skip
    assert all(row["median"] > 0 and row["iqr"] >= 0 for row in rows) and torch.get_num_threads() == before


def test_a_plan_is_the_blocks_one_after_another():
    optim = Optim(epochs=3, decay_epochs=1, student_share=2)
    found = schedule.plan("cyclegan", optim, 3)
    assert [epoch.kind for epoch in found] == ["teacher"] * 3 + ["student"] * 6 + ["teacher"] + ["student"] * 6
    students = [epoch for epoch in found if epoch.kind == "student"]
    assert [epoch.number for epoch in students] == list(range(1, 13))
    assert [epoch.factor for epoch in students] == [1.0] * 6 + [0.5] * 6
    assert [epoch.number for epoch in students if epoch.judged] == [3, 6, 9, 12]
    assert [epoch.number for epoch in found if epoch.kind == "teacher" and epoch.judged] == [3, 4]
    assert schedule.plan("cyclegan", optim, 3, "student") == students
    pairs_plan = schedule.plan("pix2pix", optim, 3)
    assert [(e.kind, e.factor, e.judged) for e in pairs_plan] == [
        ("both", 1.0, False), ("both", 1.0, False), ("both", 1.0, True), ("both", 0.5, True)
    ]  # fmt: skip
    assert {epoch.kind for epoch in schedule.plan("pix2pix", optim, 3, "teacher")} == {"teacher"}
    stepped = Optim(epochs=4, decay_epochs=0, policy="step", step_epochs=2, student_share=1)
    assert [epoch.factor for epoch in schedule.plan("pix2pix", stepped, 4)] == pytest.approx([1, 1, 0.1, 0.1])
    assert schedule.plan("cyclegan", stepped, 4)[-1].factor == pytest.approx(0.1)


TINY = Networks(teacher_width=2, student_width=1, blocks=1, discriminator_width=2, discriminator_layers=1)


@pytest.mark.parametrize("model", ["cyclegan", "pix2pix"])
def test_micro_batches_add_up_to_the_batch(model):
    """The same images in one part or two: the same terms, and weights that agree but for rounding."""
    torch.manual_seed(0)
    kind, (a, b) = teachers.TEACHERS[model], torch.rand(2, 4, 3, 16, 16, dtype=torch.float64) * 2 - 1
    first, found = kind.build(TINY), []
    for sizes in ([4], [3, 1]):
        networks = {name: type(n)(*arguments(name)).double() for name, n in first.items()}
        for name, network in networks.items():
            network.load_state_dict(first[name].state_dict())
        teacher = kind(networks, Teaching("lsgan"), Optim())
        batch = [(x, y, None, len(x) / 4) for x, y in zip(a.split(sizes), b.split(sizes))]
        images = [[networks["G"](part[0]) for part in batch]] if model == "pix2pix" else []
        terms = teacher.step(batch, *images, lambda *_: None)
        found.append((terms, networks))
    assert found[0][0].keys() == found[1][0].keys()
    for name, term in found[0][0].items():
        assert torch.allclose(term, found[1][0][name], rtol=1e-10), name
    moved = 0
    for name, network in found[0][1].items():
        for key, value in network.state_dict().items():
            if key.endswith("weight"):  # biases before a normalisation have gradients of rounding alone
                assert torch.allclose(value, found[1][1][name].state_dict()[key], atol=1e-9), (name, key)
                moved += not torch.equal(value, first[name].state_dict()[key].double())
    assert moved > 10


def arguments(name: str) -> tuple:
    """Of a network of TINY, by its name."""
    return (2, "instance", True, 1) if name.startswith("G") else (6 if name == "D" else 3, 2, "instance", 1)


def test_a_check_sees_gradients_before_any_weight_moves():
    torch.manual_seed(0)
    networks, seen = teachers.CycleTeacher.build(TINY), []
    teacher = teachers.CycleTeacher(networks, Teaching(), Optim())
    before = {name: n.state_dict()[next(iter(n.state_dict()))].clone() for name, n in networks.items()}

    def check(terms, parameters):
        assert all(p.grad is not None for p in parameters)
        seen.append({name for name, n in networks.items() if not torch.equal(next(n.parameters()), before[name])})

    teacher.step([(*torch.rand(2, 1, 3, 16, 16), None, 1.0)], check)
    assert seen == [set(), {"G_A", "G_B"}] and [len(pool.images) for pool in teacher.pools.values()] == [1, 1]
    assert all(p.grad is None for n in networks.values() for p in n.parameters())


def test_an_empty_share_is_not_remembered():
    teacher = teachers.CycleTeacher(teachers.CycleTeacher.build(TINY), Teaching(), Optim())
    teacher.step([(*torch.rand(2, 1, 3, 16, 16), None, 0.0)], lambda *_: None)
    assert all(not pool.images for pool in teacher.pools.values())


def test_full_precision():
    assert objectives.full(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert objectives.full(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_random_features_are_fixed():
    torch.manual_seed(1)
    one = perceptual.random_vgg().state_dict()
    torch.manual_seed(2)
    two = perceptual.random_vgg().state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert all(value.abs().sum() > 0 for key, value in one.items() if key.endswith("weight"))


def test_the_gram_matrix_and_its_gradient():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(perceptual.gram(x), torch.einsum("bchw,bdhw->bcd", x, x) / 60)
    assert torch.autograd.gradcheck(perceptual.gram, x)


def test_judging(unaligned, tmp_path):
    settings = Domains(root=str(unaligned), test_batch_size=2, **SMALL)
    _, test = data.load(settings, 0)
    judge = Judge(Judging(network="random"), test, torch.device("cpu"))
    assert judge.name == "fd_random" and [len(source) for source, _ in pairs(test)] == [2, 1]
    assert [image.shape for image in targets(test)] == [(1, 3, 12, 8)] * 5  # 12 x 10 in fours, half to even
    assert len(list(targets(turned(test)))) == 3 and test.settings.direction == "AtoB"
    found = judge(Double())
    images = torch.cat([source for source, _ in pairs(test)])
    negatives = evaluation.features(judge.extract, [-images])
    assert found["fd_random"] == pytest.approx(gan.frechet_distance(gan.statistics(negatives), judge.statistics()))
    assert found["images"] == 3 and judge(nn.Identity())["fd_random"] != found["fd_random"]
    evaluation.save_statistics(tmp_path / "given.npz", gan.statistics(negatives))
    given = Judge(Judging(network="random", statistics=str(tmp_path / "given.npz")), test, torch.device("cpu"))
    assert abs(given(Double())["fd_random"]) <= 1e-6 * float(judge.statistics().covariance.trace())
    draw_samples(tmp_path / "samples.png", test, [Double()], torch.device("cpu"), count=2)
    assert read_image(tmp_path / "samples.png").shape == (3 * 8, 2 * 8, 3)
