import math
import os
import subprocess
import sys
from pathlib import Path

from common.errors import InputError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kcd.distillers import DISTILLERS, build, loss_weights, losses
from kcd.distillers.adaptors import Connector, ConvReg, Paraphraser, Translator
from kcd.distillers.crd import ContrastSampler, crd_loss, update_memory

ROOT = Path(__file__).parents[2]
SHAPES = [(8, 8, 8), (8, 8, 8), (8, 4, 4), (12, 4, 4), (12,)]  # the same for both networks, which every method accepts
WIDER = [(8, 8, 8), (16, 8, 8), (16, 4, 4), (24, 4, 4), (24,)]
N, CLASSES = 20, 4
ON_MAPS = ("attention", "nst", "abound", "fsp", "kdsvd")
ON_VECTORS = ("similarity", "correlation", "rkd", "pkt")


def random_features(shapes, batch=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator, dtype=dtype) for shape in shapes]


def make(name, student=SHAPES, teacher=SHAPES, **options):
    torch.manual_seed(0)
    defaults = {"n_data": N, "n_classes": CLASSES, "seed": 3, "labels": torch.arange(N) % CLASSES}
    return build(name, student, teacher, **(defaults | {"negatives": 6, "embed_dim": 8} | options))


def vectors(seed, batch=4, width=6):
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Closed forms.


def test_kd_of_two_classes():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0) * 2.5, 0.0]])
    expected = 2.5**2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))  # softened teacher 3/4, 1/4
    assert losses.kd(student, teacher, 2.5).item() == pytest.approx(expected, rel=1e-6)


def test_kd_is_finite_where_probabilities_underflow():
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    value = losses.kd(student, -student.detach(), 1.0)
    value.backward()
    assert value.item() == pytest.approx(2e4)
    assert student.grad.tolist() == [[1.0, -1.0]]


def test_attention_of_one_hot_maps():
    student, teacher = torch.zeros(1, 2, 1, 2), torch.zeros(1, 3, 1, 2)
    student[0, :, 0, 0], teacher[0, :, 0, 1] = 5.0, -2.0
    assert losses.attention([student], [teacher])[0].item() == pytest.approx(1.0)  # (1, 0) against (0, 1)


def test_similarity_of_orthogonal_and_parallel_pairs():
    assert losses.similarity(torch.eye(2), torch.ones(2, 2)).item() == pytest.approx(1 - math.sqrt(2) / 2)


def test_correlation_sums_over_neighbours():
    student = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 4.0]])
    assert losses.correlation(student, torch.zeros(3, 2)).item() == pytest.approx((5 + 4) / 2)


def test_vid_is_a_gaussian_likelihood():
    mean, teacher = random_features([(3, 2, 2), (3, 2, 2)])
    log_scale = torch.tensor([0.0, 1.0, -2.0])
    deviation = (torch.log1p(log_scale.exp()) + 1e-5).sqrt().view(1, 3, 1, 1)
    density = torch.distributions.Normal(mean, deviation).log_prob(teacher).mean() + 0.5 * math.log(2 * math.pi)
    assert losses.vid([mean], [teacher], [log_scale])[0].item() == pytest.approx(-density.item(), rel=1e-5)


def test_rkd_by_loops():
    student, teacher = vectors(0), vectors(1)

    def relations(x):
        n = len(x)
        distance = torch.stack([torch.stack([(x[a] - x[b]).norm() for b in range(n)]) for a in range(n)])
        cosine = torch.zeros(n, n, n, dtype=x.dtype)
        for a in range(n):
            for b in range(n):
                for c in range(n):
                    if a not in (b, c):
                        cosine[a, b, c] = nn.functional.cosine_similarity(x[b] - x[a], x[c] - x[a], dim=0)
        return distance / distance[distance > 0].mean(), cosine

    (d_s, a_s), (d_t, a_t) = relations(student), relations(teacher)
    expected = 25 * nn.functional.smooth_l1_loss(d_s, d_t) + 50 * nn.functional.smooth_l1_loss(a_s, a_t)
    assert losses.rkd(student, teacher).item() == pytest.approx(expected.item(), rel=1e-9)


def test_pkt_by_loops():
    student, teacher = vectors(0), vectors(1)

    def probabilities(x):
        rows = [[(nn.functional.cosine_similarity(a, b, dim=0).item() + 1) / 2 for b in x] for a in x]
        return [[value / sum(row) for value in row] for row in rows]

    rows = zip(probabilities(teacher), probabilities(student))
    expected = sum(p * math.log((p + 1e-7) / (q + 1e-7)) for row in rows for p, q in zip(*row)) / 16
    assert losses.pkt(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_abound_counts_only_the_wrong_side_of_the_margin():
    student = torch.tensor([-2.0, 0.0, 0.5, 2.0]).view(1, 1, 2, 2)
    teacher = torch.tensor([-1.0, -1.0, 1.0, 1.0]).view(1, 1, 2, 2)
    first, last = losses.abound([student, student], [teacher, teacher])
    assert last.item() == pytest.approx((0 + 1 + 0.25 + 0) * 3 / 1000)
    assert first.item() == pytest.approx(last.item() / 2)


def test_fsp_pools_the_larger_map():
    large, small = torch.arange(4.0).view(1, 1, 2, 2), torch.full((1, 1, 1, 1), 2.0)
    (value,) = losses.fsp([large, small], [torch.zeros_like(large), small])
    assert value.item() == pytest.approx((1.5 * 2.0) ** 2)


def test_nst_by_loops():
    student, teacher = random_features([(2, 2, 2), (3, 2, 2)], batch=2)

    def kernel(a, b):
        unit = [nn.functional.normalize(x.flatten(2), dim=2) for x in (a, b)]
        return np.mean([(p @ q).item() ** 2 for x, y in zip(*unit) for p in x for q in y])

    expected = kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)
    assert losses.nst([student], [teacher])[0].item() == pytest.approx(expected, rel=1e-5)


def kdsvd_by_the_library(student, teacher):
    """KDSVD with the derivative of the library's SVD, for maps without equal singular values."""
    values, previous = [], None
    for s, t in zip(student, teacher):
        v_t = torch.linalg.svd(t.flatten(2).mT, full_matrices=False)[2][:, 0]
        v_t = v_t * v_t.gather(1, v_t.abs().argmax(1, keepdim=True)).sign()
        candidates = torch.linalg.svd(s.flatten(2).mT, full_matrices=False)[2][:, :4]
        cosine = (candidates * v_t[:, None]).sum(2).detach()
        chosen = cosine.abs().argmax(1)
        rows = torch.arange(len(s))
        v_s = candidates[rows, chosen] * cosine[rows, chosen].sign()[:, None]
        if previous:
            r_s, r_t = (torch.exp(-((a[:, :, None] - b[:, None]) ** 2) / 8) for a, b in zip((v_s, v_t), previous))
            values.append((r_s - r_t).square().sum() / len(s))
        previous = (v_s, v_t)
    return values


@pytest.mark.parametrize("shapes", [[(5, 3, 3), (6, 3, 2)], [(6, 2, 2), (4, 4, 4), (9, 2, 3)]])
def test_kdsvd_and_its_gradient_equal_the_differentiated_svd(shapes):
    student, teacher = (random_features(shapes, 3, seed, torch.float64) for seed in (0, 1))
    ours, theirs = ([s.clone().requires_grad_() for s in student] for _ in range(2))
    found, expected = losses.kdsvd(ours, teacher), kdsvd_by_the_library(theirs, teacher)
    assert len(found) == len(shapes) - 1
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(sum(found), ours), torch.autograd.grad(sum(expected), theirs), rtol=1e-7, atol=1e-9
    )


def test_kdsvd_does_not_depend_on_the_sign_of_the_maps():
    student, teacher = (random_features([(5, 3, 3), (6, 3, 2)], 3, seed, torch.float64) for seed in (0, 1))
    flipped = losses.kdsvd([-student[0], student[1]], [teacher[0], -teacher[1]])
    torch.testing.assert_close(flipped, losses.kdsvd(student, teacher))


# Derivatives and safety.


@pytest.mark.parametrize("name", ON_MAPS + ON_VECTORS + ("hint", "factor", "kd", "vid"))
def test_gradients(name):
    if name in ON_MAPS:
        shapes = [(4, 3, 3), (4, 2, 2)]
    else:
        shapes = [(3, 2, 2)] if name in ("hint", "factor", "vid") else [(5,)]
    student, teacher = (random_features(shapes, 3, seed, torch.float64) for seed in (0, 1))
    loss = getattr(losses, name)
    if name == "kd":
        call = lambda s: loss(s, teacher[0], 2.5)
    elif name == "vid":
        call = lambda s: loss([s], teacher, [torch.zeros(3, dtype=torch.float64)])[0]
    elif name in ON_MAPS:
        call = lambda *maps: sum(loss(maps, teacher))
    else:
        call = lambda s: loss(s, teacher[0])
    assert torch.autograd.gradcheck(call, [s.requires_grad_() for s in student])


def test_gradients_of_crd():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    sample_idx = torch.randint(9, (3, 5), generator=generator)
    memories, z = (draw(9, 4), draw(9, 4)), torch.tensor([20.0, 30.0], dtype=torch.float64)
    call = lambda s, t: crd_loss(s, t, *memories, sample_idx, z, 0.5)[0]
    assert torch.autograd.gradcheck(call, [draw(3, 4).requires_grad_(), draw(3, 4).requires_grad_()])


DEGENERATE = {
    "zero": lambda x: torch.zeros_like(x),
    "equal samples": lambda x: x[:1].expand_as(x).clone(),
    "constant": lambda x: torch.ones_like(x),
    "dead channels": lambda x: torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1),
    "one sample": lambda x: x[:1].clone(),
    "half": lambda x: x.bfloat16(),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", DISTILLERS)
def test_losses_and_gradients_stay_finite(name, case):
    distiller = make(name).eval()
    student = [DEGENERATE[case](x).requires_grad_() for x in random_features(SHAPES)]
    teacher = [x[: len(s)] for x, s in zip(random_features(SHAPES, seed=1), student)]
    teachers = [teacher, [s.detach().clone() for s in student]]
    for target in teachers:
        # Adaptors are float32, as outside autocast; what needs none takes the halves themselves.
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "half"):
            value = distiller(student, target, torch.arange(len(student[0])))
            if distiller.init_stage:
                value = value + distiller.init_loss(student, target)
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
        if value.requires_grad:
            gradients = torch.autograd.grad(value, student, allow_unused=True)
            assert all(g is None or g.isfinite().all() for g in gradients)


def test_gradient_of_coinciding_samples_does_not_explode():
    student = vectors(0)
    student[1] = student[0]
    student.requires_grad_()
    losses.rkd(student, vectors(1)).backward()
    assert student.grad.abs().max() < 1e3


def test_losses_compute_in_float32():
    student, teacher = (x.bfloat16() for x in random_features([(6,), (6,)]))
    expected = losses.pkt(student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.pkt(student, teacher), expected)


# Invariances.


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.1, 10), seed=st.integers(0, 1000))
def test_relations_ignore_scale(scale, seed):
    student, teacher = vectors(seed), vectors(seed + 1)
    for loss in (losses.similarity, losses.rkd, losses.pkt):
        value = loss(student, teacher)
        torch.testing.assert_close(loss(scale * student, teacher), value, rtol=1e-4, atol=1e-8)
    student, teacher = (random_features([(3, 4, 4), (5, 2, 2)], 2, s, torch.float64) for s in (seed, seed + 1))
    for loss in (losses.attention, losses.nst):
        torch.testing.assert_close(loss([scale * x for x in student], teacher), loss(student, teacher))


@pytest.mark.parametrize("name", ("similarity", "rkd", "pkt", "hint"))
def test_relations_ignore_the_order_of_samples(name):
    student, teacher, order = vectors(0), vectors(1), torch.tensor([2, 0, 3, 1])
    loss = getattr(losses, name)
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


@pytest.mark.parametrize("name", ON_MAPS)
def test_teacher_as_student_costs_nothing(name):
    teacher = [x.abs() + 1 if name == "abound" else x for x in random_features([(4, 4, 4), (4, 2, 2)])]
    assert sum(getattr(losses, name)(teacher, teacher)).item() == pytest.approx(0, abs=1e-6)


def test_channels_of_a_map_may_be_permuted():
    student, teacher = random_features([(4, 3, 3), (4, 3, 3)])
    order = torch.tensor([2, 0, 3, 1])
    for loss in (losses.attention, losses.nst):
        torch.testing.assert_close(loss([student[:, order]], [teacher]), loss([student], [teacher]))


# Adaptors.


@pytest.mark.parametrize(
    "student, teacher",
    [((4, 8, 8), (6, 4, 4)), ((4, 4, 4), (6, 8, 8)), ((4, 8, 7), (6, 5, 7)), ((4, 5, 5), (6, 5, 5))],
)
def test_conv_reg_reaches_the_teachers_shape(student, teacher):
    assert ConvReg(student, teacher)(torch.zeros(2, *student)).shape == (2, *teacher)
    outputs = Connector([student, teacher], [teacher, teacher])([torch.zeros(2, *student), torch.ones(2, *teacher)])
    assert outputs[0].shape == (2, *teacher)
    assert torch.equal(outputs[1], torch.ones(2, *teacher))


def test_connector_keeps_negative_values():
    connector = Connector([(2, 4, 4)], [(3, 4, 4)])
    assert connector([torch.randn(4, 2, 4, 4)])[0].min() < 0
    assert ConvReg((2, 4, 4), (3, 4, 4))(torch.randn(4, 2, 4, 4)).min() == 0


def test_adaptors_that_cannot_be():
    with pytest.raises(InputError, match="4x4 map to 9x9"):
        ConvReg((4, 4, 4), (6, 9, 9))
    with pytest.raises(InputError, match=r"two .* maps"):
        ConvReg((4,), (6, 9, 9))
    with pytest.raises(InputError, match="wider teacher"):
        Translator(4, 1)
    with pytest.raises(InputError, match="wider teacher"):
        Paraphraser(1)


# Modules.


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def feature_modules(self):
        return [self.stem]


def test_every_distiller_has_weights():
    names = "kd hint attention similarity correlation vid rkd pkt abound factor fsp nst kdsvd crd"
    assert " ".join(DISTILLERS) == names
    assert loss_weights("kd") == (0.1, 0.9, 0.0)
    assert loss_weights("crd", alpha=1.0) == (1.0, 1.0, 0.8)
    assert loss_weights("kdsvd", beta=0.5) == (1.0, 0.0, 0.5)
    assert loss_weights("hint", beta=0.0) == (1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="give beta"):
        loss_weights("kdsvd")
    with pytest.raises(InputError, match="unknown"):
        loss_weights("dkd")


@pytest.mark.parametrize("name", DISTILLERS)
def test_which_parts_train(name):
    distiller = make(name)
    student = [x.requires_grad_() for x in random_features(SHAPES)]
    value = distiller(student, random_features(SHAPES, seed=1), torch.arange(4))
    trained = {id(p) for module in distiller.main_modules() for p in module.parameters()}
    assert trained == {id(p) for p in distiller.parameters() if p.requires_grad}
    assert (value.item() != 0) == distiller.main_loss
    if not distiller.main_loss:
        assert not value.requires_grad and not distiller.main_modules()
        return
    value.backward()
    assert any(x.grad is not None for x in student)
    assert all(p.grad is not None for module in distiller.main_modules() for p in module.parameters())


@pytest.mark.parametrize("name", ("abound", "factor", "fsp"))
def test_init_stage_trains_and_the_main_loop_freezes(name):
    student, distiller = Student(), make(name, teacher=SHAPES if name == "fsp" else WIDER)
    teacher_shapes = SHAPES if name == "fsp" else WIDER
    modules = distiller.init_modules(student)
    assert (student.stem in modules) == (name != "factor") and student.head not in modules
    own = [m for m in modules if m is not student.stem]
    assert own == distiller.frozen_modules()
    assert all(p.requires_grad for m in own for p in m.parameters()) and all(m.training for m in own)
    features = [x.requires_grad_() for x in random_features(SHAPES)]
    distiller.init_loss(features, random_features(teacher_shapes, seed=1)).backward()
    assert all(p.grad is not None for m in own for p in m.parameters())
    for mode in (True, False):
        distiller.train(mode)
        frozen = [sub for m in distiller.frozen_modules() for sub in m.modules()]
        assert not any(sub.training for sub in frozen)
        assert not any(p.requires_grad for sub in frozen for p in sub.parameters())
    nn.ModuleList([distiller]).train()  # through a parent as well
    assert not any(sub.training for m in distiller.frozen_modules() for sub in m.modules())


def test_frozen_statistics_do_not_move():
    distiller = make("factor", teacher=WIDER)
    before = {key: value.clone() for key, value in distiller.state_dict().items()}
    distiller(random_features(SHAPES), random_features(WIDER, seed=1), torch.arange(4))
    moved = {key for key, value in distiller.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("translator") for key in moved)


@pytest.mark.parametrize("name", [name for name in DISTILLERS if name not in ("fsp", "kdsvd")])
def test_networks_of_different_widths(name):
    distiller = make(name, teacher=WIDER)
    value = distiller(random_features(SHAPES), random_features(WIDER, seed=1), torch.arange(4))
    assert value.isfinite()


@pytest.mark.parametrize(
    "name, teacher, message",
    [
        ("fsp", WIDER, "fsp needs equal channels .* map 1 .* 8 .* 16"),
        ("kdsvd", WIDER, "kdsvd needs equal channels .* map 0"),
        ("attention", SHAPES[1:], "attention pairs .* 3 .* 2"),
        ("vid", SHAPES[1:], "vid pairs"),
        ("nst", SHAPES[1:], "nst pairs"),
        ("abound", SHAPES[1:], "abound pairs"),
        ("hint", [(8, 8, 8), (8,)], "hint_layer=2 does not exist"),
        ("factor", [(8,), (8,)], "compares .* maps"),
        ("pkt", SHAPES[:-1], "teacher's features"),
        ("dkd", SHAPES, "'dkd' is unknown"),
    ],
)
def test_impossible_pairs(name, teacher, message):
    student = SHAPES if name not in ("hint", "factor") else teacher
    with pytest.raises(InputError, match=message):
        make(name, student, teacher)


def test_kdsvd_needs_four_vectors():
    narrow = [(3, 8, 8), (3, 8, 8), (3, 4, 4), (3,)]
    with pytest.raises(InputError, match="at least 4 channels"):
        make("kdsvd", narrow, narrow)
    with pytest.raises(InputError, match="consecutive stages"):
        make("kdsvd", SHAPES[2:], SHAPES[2:])


def test_teacher_receives_no_gradient():
    for name in ("similarity", "factor", "correlation", "crd"):
        teacher = [x.requires_grad_() for x in random_features(SHAPES, seed=1)]
        student = [x.requires_grad_() for x in random_features(SHAPES)]
        make(name)(student, teacher, torch.arange(4)).backward()
        assert all(t.grad is None for t in teacher)


# CRD.


def sampler(labels, negatives, positives="exact", seed=0):
    return ContrastSampler(labels, int(labels.max()) + 1, negatives, positives, seed)


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=6, max_size=40).filter(lambda x: len(set(x)) > 1),
    negatives=st.integers(1, 45),
    seed=st.integers(0, 2**40),
)
def test_negatives_are_distinct_and_of_other_classes(labels, negatives, seed):
    labels = torch.tensor(labels)
    draw = sampler(labels, negatives, seed=seed)
    index = torch.arange(len(labels))
    drawn = draw(index)
    assert drawn.shape == (len(labels), 1 + negatives)
    assert torch.equal(drawn[:, 0], index)
    assert (labels[drawn[:, 1:]] != labels[:, None]).all()
    for i, row in enumerate(drawn[:, 1:]):
        if (labels != labels[i]).sum() >= negatives:
            assert len(row.unique()) == negatives


def test_samples_depend_on_seed_epoch_and_index_alone(monkeypatch):
    labels = torch.arange(50) % 5
    draw = sampler(labels, 10)
    index = torch.tensor([7, 3, 41, 12, 0])
    first = draw(index).sort(1).values
    assert torch.equal(draw(index[2:3]).sort(1).values, first[2:3])
    draw.epoch = 1
    assert not torch.equal(draw(index).sort(1).values, first)
    draw.epoch = 0
    monkeypatch.setattr("kcd.distillers.crd.CHUNK_KEYS", 100)  # two rows at a time
    assert torch.equal(draw(index).sort(1).values, first)
    assert not torch.equal(sampler(labels, 10, seed=1)(index).sort(1).values, first)


def test_negatives_are_uniform():
    labels = torch.arange(20) % 2
    draw = sampler(labels, 3)
    count = torch.zeros(20)
    for epoch in range(400):
        draw.epoch = epoch
        count += torch.bincount(draw(torch.tensor([0, 2]))[:, 1:].flatten(), minlength=20)
    expected = 400 * 2 * 3 / 10
    assert ((count[1::2] - expected).square() / expected).sum() < 27.9  # chi-square, 9 degrees of freedom, 0.1 %


def test_repeated_negatives_reach_every_other_sample():
    labels = torch.tensor([0, 1, 0, 2, 1])
    drawn = sampler(labels, 60)(torch.arange(5))[:, 1:]
    for i, row in enumerate(drawn):
        assert row.unique().tolist() == (labels != labels[i]).nonzero().flatten().tolist()


def test_relaxed_positives_are_of_the_same_class():
    labels = torch.arange(60) % 3
    drawn = sampler(labels, 4, "relax")(torch.arange(60))[:, 0]
    assert torch.equal(labels[drawn], labels)
    assert not torch.equal(drawn, torch.arange(60))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": None}, "was given none"),
        ({"labels": torch.zeros(3)}, "was given 3"),
        ({"labels": torch.zeros(N, dtype=torch.int64)}, "one class"),
        ({"labels": torch.arange(N)}, "from 0 to 19"),
        ({"positives": "any"}, "'any' is unknown"),
        ({"negatives": 0}, "at least one negative"),
    ],
)
def test_wrong_options_of_crd(options, message):
    with pytest.raises(InputError, match=message):
        make("crd", **options)


def test_crd_loss_of_two_samples():
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    memory_student, memory_teacher = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.eye(2)
    value, z = crd_loss(student, teacher, memory_student, memory_teacher, torch.tensor([[0, 1]]), torch.zeros(2), 1.0)
    assert z.tolist() == pytest.approx([math.e + 1, math.e + 1])  # N mean(exp) with N = 2
    positive, negative, noise = math.e / (math.e + 1), 1 / (math.e + 1), 0.5
    one = -math.log(positive / (positive + noise)) - math.log(noise / (negative + noise))
    assert value.item() == pytest.approx(2 * one, rel=1e-5)


def test_crd_loss_at_a_small_temperature():
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    memories = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    value, _ = crd_loss(student, teacher, memories, memories, torch.tensor([[0, 1]]), torch.ones(2), 0.002)
    # log P = -500 for the positive and 500 for the negative, far outside float32's exponential.
    assert value.item() == pytest.approx(2 * (500 + math.log(0.5) + 500 - math.log(0.5)), rel=1e-5)


def test_memories_move_after_the_loss_and_only_in_training():
    crd = make("crd")
    contrast = crd.contrast
    start = contrast.memory_student.clone(), contrast.memory_teacher.clone()
    assert start[0].abs().max() <= math.sqrt(3 / 8) and not torch.equal(*start)
    features = random_features(SHAPES), random_features(SHAPES, seed=1)
    index = torch.tensor([5, 2, 19, 8])
    quiet = crd.eval()(*features, index)
    assert torch.equal(contrast.memory_student, start[0]) and contrast.z.tolist() == [0, 0]
    loud = crd.train()(*features, index)
    assert torch.equal(loud, quiet)
    z = contrast.z.clone()
    expected = 0.5 * start[0][index] + 0.5 * crd.embed_s(features[0][-1])
    torch.testing.assert_close(contrast.memory_student[index], nn.functional.normalize(expected, dim=1))
    others = [i for i in range(N) if i not in index.tolist()]
    assert torch.equal(contrast.memory_teacher[others], start[1][others])
    crd(*features, index).backward()  # the update in place does not disturb the gradient
    assert torch.equal(contrast.z, z)


def test_an_index_given_twice_keeps_its_first_row():
    memory = torch.eye(3)
    update_memory(memory, torch.tensor([1, 1]), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), 0.5)
    torch.testing.assert_close(memory[1], torch.tensor([1.0, 1.0, 0.0]) / math.sqrt(2))


def test_crd_resumes_exactly():
    features = random_features(SHAPES), random_features(SHAPES, seed=1)
    first, second = make("crd"), make("crd")
    first(*features, torch.arange(4))
    for value in second.state_dict().values():
        value.fill_(9)
    second.load_state_dict(first.state_dict())
    for crd in (first, second):
        crd.set_epoch(2)
    index = torch.tensor([0, 9, 4, 17])
    assert torch.equal(first(*features, index), second(*features, index))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


RANK = """
import sys
import torch
import torch.distributed as dist
from kcd.tests.test_distillers import N, SHAPES, make, random_features

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
crd = make("crd")
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
rows = (slice(0, 3), slice(3, 5))[rank]
for step, index in enumerate(([5, 2, 19, 8, 11], [2, 3, 8, 0, 6])):
    student, teacher = (random_features(SHAPES, 5, seed + 2 * step) for seed in (0, 1))
    crd([x[rows] for x in student], [x[rows] for x in teacher], torch.tensor(index)[rows])
torch.save(crd.contrast.state_dict(), out)
dist.destroy_process_group()
"""


def test_two_processes_share_their_memories(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outs = [tmp_path / f"rank{rank}.pt" for rank in (0, 1)]
    commands = [
        [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store"), str(out)] for rank, out in enumerate(outs)
    ]
    ranks = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    first, second = (torch.load(out) for out in outs)
    assert all(torch.equal(first[key], second[key]) for key in first)

    single, z = make("crd"), []
    features = random_features(SHAPES, 5), random_features(SHAPES, 5, seed=1)
    index = torch.tensor([5, 2, 19, 8, 11])
    for rows in (slice(0, 3), slice(3, 5)):
        alone = make("crd")
        alone([x[rows] for x in features[0]], [x[rows] for x in features[1]], index[rows])
        z.append(alone.contrast.z)
    torch.testing.assert_close(first["z"], (z[0] + z[1]) / 2)
    single(*features, index)
    single(random_features(SHAPES, 5, 2), random_features(SHAPES, 5, 3), torch.tensor([2, 3, 8, 0, 6]))
    for key in ("memory_student", "memory_teacher"):
        torch.testing.assert_close(first[key], getattr(single.contrast, key))
