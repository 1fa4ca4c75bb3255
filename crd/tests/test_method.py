"""Slices and relations: shapes, closed forms, gradients, degenerate sets, memory."""

from common.cost import saved_for_backward

import pytest
import torch
import torch.nn.functional as F

from crd import ContentRelationLoss, content_relation_loss, method, relation


def slices(batch: int = 2, n: int = 7, d: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator) * 2 - 1


def direct_relation(student: torch.Tensor, teacher: torch.Tensor, distance: float, angle: float) -> torch.Tensor:
    """R of one slice set [n, d], term by term."""
    n = len(student)
    psi, cosines = [], []
    for v in (student, teacher):
        d = torch.stack([torch.stack([(a - b).norm() for b in v]) for a in v])
        psi.append(d / (d.sum() / (n * (n - 1))))
        cosine = v.new_zeros(n, n, n)
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    if i not in (j, k):
                        cosine[i, j, k] = F.cosine_similarity(v[j] - v[i], v[k] - v[i], dim=0)
        cosines.append(cosine)
    return distance * F.smooth_l1_loss(*psi) + angle * F.smooth_l1_loss(*cosines)


def test_slices_of_an_image():
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float64).view(2, 3, 4, 6)
    assert method.rows(x).shape == (2, 4, 18) and torch.equal(method.rows(x)[1, 2], x[1, :, 2].flatten())
    assert method.columns(x).shape == (2, 6, 12)
    assert torch.equal(method.columns(x)[1, 5].sort().values, x[1, :, :, 5].flatten().sort().values)
    found = method.patches(x, 2)
    assert found.shape == (2, 6, 12)
    assert torch.equal(found[1, 4], x[1, :, 2:4, 2:4].flatten())
    assert method.patches(x, 4).shape == (2, 1, 48), "what does not fill a patch is dropped"
    assert method.patches(x, 5).shape == (2, 0, 75)


def test_patch_modes():
    x = images(3, 3, 8, 12)
    assert torch.equal(method.patch_slices(x, 4), method.patches(x, 4))
    assert method.patch_slices(x, 4, "joint").shape == (1, 18, 48)
    channels = method.patch_slices(x, 4, "reference")
    assert channels.shape == (3, 3, 16)
    assert torch.equal(channels[2, 1], x[0, 1, :4, 8:].flatten()), "the third group is the third patch of image 0"


def test_a_relation_is_its_definition():
    student, teacher = slices(), slices(seed=1) * 3
    for weights in ((1.0, 2.0), (1.0, 0.0), (0.0, 1.0)):
        found = relation(student, teacher, *weights)
        expected = torch.stack([direct_relation(s, t, *weights) for s, t in zip(student, teacher)])
        assert torch.allclose(found, expected, rtol=1e-10)


def test_relations_do_not_see_shift_rotation_scale_or_the_order_of_numbers():
    v = slices()
    turned = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    moved = 2.5 * v @ turned + 7
    assert relation(moved, v).abs().max() < 1e-12
    assert relation(v[..., torch.tensor([3, 1, 0, 4, 2])], v).abs().max() < 1e-12
    assert relation(v.flip(1), v).min() > 1e-3, "the order of the slices counts"


def test_cosines():
    square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    cosines = method.angles(method.squared_distances(square))[0]
    assert torch.allclose(cosines[0, 1, 2], torch.zeros((), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(cosines[1, 0, 2], torch.tensor(0.5, dtype=torch.float64).sqrt())
    assert torch.allclose(cosines[0, 1, 1], torch.ones((), dtype=torch.float64))
    assert cosines[0, 0].abs().max() == 0
    v = slices(n=9)
    assert torch.allclose(method.angles(method.squared_distances(v)), method.direct_angles(v), atol=1e-10)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_gradients(step, monkeypatch):
    """Against finite differences, whatever number of vertices is visited at a time; slopes beyond 1 included."""
    monkeypatch.setitem(method.CHUNK, "cpu", step * 2 * 36)
    student, teacher = slices(n=6).requires_grad_(), slices(n=6, seed=1)
    target = method.squared_distances(teacher)
    assert (method.angles(method.squared_distances(student)) - method.angles(target)).abs().max() > 1
    assert torch.autograd.gradcheck(lambda v: method.angle_loss(method.squared_distances(v), target), student)
    assert torch.autograd.gradcheck(lambda v: method.distance_loss(method.squared_distances(v), target), student)
    assert torch.autograd.gradcheck(lambda v: relation(v, teacher), student)


def test_single_precision_equals_the_direct_form():
    student, teacher = (images(1, 48, 96, seed=s).float() for s in (0, 1))
    student.requires_grad_()
    own, target = method.squared_distances(student), method.squared_distances(teacher)
    found = method.angle_loss(own, target)[0]
    expected = F.smooth_l1_loss(method.direct_angles(student), method.direct_angles(teacher))
    assert abs(found - expected) <= 1e-6 * expected
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[1].abs().max()


def test_nearly_equal_slices_keep_their_distances():
    """A flat background: the squares are a million times the differences, which single precision could not hold."""
    base = torch.ones(1, 6, 300)
    noise = images(1, 6, 300).float() * 1e-4
    found = method.distances(method.squared_distances(base + noise))
    exact = torch.cdist((base + noise).double(), (base + noise).double())
    assert torch.allclose(found.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", ["mask", "reference"])
def test_identical_slices(mode):
    """Their angle is 0 and their distance 1e-6; masked, their gradient is finite and the others' does not change."""
    student, teacher = slices(1, 6), slices(1, 6, seed=1)
    student[0, 3] = student[0, 1]
    student.requires_grad_()
    assert torch.allclose(
        method.distances(method.squared_distances(student))[0, 1, 3], torch.tensor(1e-6, dtype=torch.float64)
    )
    assert method.angles(method.squared_distances(student))[0, 1, 3].abs().max() == 0
    loss = relation(student, teacher, duplicates=mode)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.allclose(loss, relation(student, teacher, duplicates="reference"))
    pair = [1, 3]
    if mode == "mask":
        assert gradient.isfinite().all() and gradient.abs().max() < 1
        (other,) = torch.autograd.grad(relation(student, teacher, duplicates="reference").sum(), student)
        usual = [0, 2, 4, 5]
        assert torch.allclose(gradient[0, usual], other[0, usual], rtol=1e-6, atol=1e-10)
    else:
        assert gradient[0, pair].abs().max() > 1e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_image_has_a_finite_loss_and_gradient(dtype):
    flat, teacher = torch.full((1, 3, 32, 32), 0.3, dtype=dtype, requires_grad=True), images(1, 3, 32, 32).to(dtype)
    loss = content_relation_loss(flat, teacher, patch_size=8)
    loss.backward()
    assert loss.isfinite() and flat.grad.isfinite().all()
    assert content_relation_loss(flat.detach(), flat.detach(), patch_size=8) == 0


def test_fewer_than_two_slices():
    with pytest.raises(ValueError, match="1 slices have no relations"):
        relation(slices(n=1), slices(n=1))
    loss = ContentRelationLoss()
    found = loss.relations(images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1))
    assert found.keys() == {"row", "column"}, "one patch of 32 is skipped"
    with pytest.raises(ValueError, match="no slice set"):
        ContentRelationLoss(0, 0, 1)(images(1, 3, 32, 32), images(1, 3, 32, 32))
    with pytest.raises(ValueError, match="no relation"):
        loss(images(1, 3, 32, 32), images(1, 3, 32, 64))


def test_sets_weights_and_batches():
    student, teacher = images(3, 3, 32, 48), images(3, 3, 32, 48, seed=1)
    parts = ContentRelationLoss(patch_size=16).relations(student, teacher)
    assert [len(values) for values in parts.values()] == [3, 3, 3]
    for i in range(3):
        alone = ContentRelationLoss(patch_size=16).relations(student[i : i + 1], teacher[i : i + 1])
        assert all(torch.allclose(alone[name][0], parts[name][i]) for name in parts)
    means = {name: values.mean() for name, values in parts.items()}
    whole = content_relation_loss(student, teacher, patch_size=16)
    assert torch.allclose(whole, 25 * sum(means.values()))
    summed = content_relation_loss(student, teacher, "sum", rows=2.0, columns=0.0, patches=0.0)
    assert torch.allclose(summed, 6 * means["row"])
    assert content_relation_loss(student, teacher, rows=0, columns=0, patches=0) == 0


def test_the_teacher_gets_no_gradient():
    student, teacher = images(1, 3, 32, 32).requires_grad_(), images(1, 3, 32, 32, seed=1).requires_grad_()
    for duplicates in ("mask", "reference"):
        content_relation_loss(student, teacher, patch_size=16, duplicates=duplicates).backward()
        assert student.grad is not None and teacher.grad is None


def test_losses_are_in_single_precision_under_autocast():
    student, teacher = images(1, 3, 32, 32).float(), images(1, 3, 32, 32, seed=1).float()
    expected = content_relation_loss(student, teacher, patch_size=16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(content_relation_loss(student, teacher, patch_size=16), expected)
    half = content_relation_loss(student.bfloat16(), teacher.bfloat16(), patch_size=16)
    assert half.dtype == torch.float32


def test_memory_is_of_order_n_squared():
    n, d = 96, 96
    student, teacher = (images(1, n, d, seed=s).float() for s in (0, 1))
    student.requires_grad_()
    kept = saved_for_backward(lambda: relation(student, teacher), [student])
    assert kept < n**3, "a quarter of what one tensor of all triplets would take"
    direct = saved_for_backward(lambda: relation(student, teacher, duplicates="reference"), [student])
    assert direct > 4 * n * n * d
