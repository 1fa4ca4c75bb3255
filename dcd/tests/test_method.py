"""The distillation loss by itself: closed forms, gradients, what is trained and what is not."""

import pytest
import torch
from torch import nn

import dcd
from dcd.method import Connector, DiscriminatorDistillation, distance, enlarged, layers_of, student_loss, tapped


def maps(*channels: int, side: int = 8, grad: bool = False, batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(sum(channels))
    return [torch.randn(batch, c, side, side, dtype=torch.float64).requires_grad_(grad) for c in channels]


def test_a_connector_is_convolution_norm_relu():
    connector = Connector(5, 3).double().eval()
    (x,) = maps(5)
    weight, (scale, shift) = connector[0].weight, connector[1].parameters()
    plain = torch.einsum("oc,nchw->nohw", weight[:, :, 0, 0], x) / (1 + 1e-5) ** 0.5
    expected = (plain * scale[:, None, None] + shift[:, None, None]).relu()
    assert torch.allclose(connector(x), expected) and connector[0].bias is None
    many = Connector(300, 300).requires_grad_(False)
    assert many[0].weight.std() == pytest.approx(0.02, rel=0.05) and many[1].weight.mean() == pytest.approx(1, abs=0.01)


def test_parameters_of_the_published_run():
    assert sum(p.numel() for p in Connector(256, 3).parameters()) == 774
    assert sum(p.numel() for p in Connector(64, 3).parameters()) == 198
    assert sum(p.numel() for p in Connector(256, 6).parameters()) == 1548
    assert sum(p.numel() for p in Connector(64, 6).parameters()) == 396


def test_the_loss_is_the_mean_absolute_difference_behind_the_transform():
    torch.manual_seed(0)
    distiller = DiscriminatorDistillation([2, 3], [4, 5]).double()
    transform = nn.Conv2d(3, 7, 4, stride=2).double()
    student, teacher = maps(2, 3), maps(4, 5)
    found = distiller(student, teacher, transform)
    for i in range(2):
        own, target = distiller.netSs[i](student[i]), distiller.netTs[i](teacher[i])
        assert torch.allclose(found[i], (transform(own) - transform(target)).abs().mean())


@pytest.mark.parametrize("train_teacher", [False, True])
def test_one_batch_equals_one_map_at_a_time(train_teacher):
    torch.manual_seed(0)
    distiller = DiscriminatorDistillation([2, 2, 2], [4, 4, 4], train_teacher=train_teacher).double()
    transform = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)).double()
    student = [*maps(2, 2), *maps(2, side=12)]
    teacher = [*maps(4, 4), *maps(4, side=12)]
    together, apart = (distiller(student, teacher, transform, per_sample) for per_sample in (True, False))
    assert torch.allclose(together, apart, rtol=1e-12)


def test_gradients_reach_student_and_connectors_alone():
    distiller = DiscriminatorDistillation([2], [4]).double()
    before = {k: v.clone() for k, v in distiller.netTs.state_dict().items()}
    student, teacher, transform = maps(2, grad=True), maps(4, grad=True), nn.Conv2d(3, 4, 3).double()
    distiller(student, teacher, transform).sum().backward()
    assert student[0].grad.abs().sum() > 0 and teacher[0].grad is None
    assert all(p.grad.abs().sum() > 0 for p in distiller.netSs.parameters())
    assert all(p.grad is None for p in distiller.netTs.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.netTs.state_dict().items())
    assert not distiller.netTs.training and distiller.netSs.training and len(distiller.trained()) == 3
    learning = DiscriminatorDistillation([2], [4], train_teacher=True).double()
    learning(student, teacher, transform).sum().backward()
    assert all(p.grad is not None for p in learning.netTs.parameters()) and teacher[0].grad is None
    assert len(learning.trained()) == 6 and not learning.eval().netTs.training


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(1)
    distiller = DiscriminatorDistillation([2], [3], train_teacher=True).double()
    transform, teacher = nn.Conv2d(3, 2, 3).double(), maps(3, side=5)
    function = lambda x: distiller([x], teacher, transform)
    assert torch.autograd.gradcheck(function, maps(2, side=5, grad=True))


def test_small_maps_are_enlarged():
    x = torch.rand(1, 2, 4, 6)
    assert enlarged(x, 4) is x and enlarged(x, 8).shape == (1, 2, 8, 12)
    assert torch.allclose(enlarged(torch.ones(1, 1, 1, 1), 24), torch.ones(1, 1, 24, 24))
    distiller = DiscriminatorDistillation([2], [2], smallest=8)
    assert distiller([x], [x], lambda maps: maps.sum(1) if maps.shape[-2] == 8 else None).shape == (1,)


def test_distance_is_in_single_precision():
    big, small = torch.full((3,), 256.0), torch.full((3,), 255.0)
    assert distance(big.bfloat16(), small.bfloat16()).dtype == torch.float32
    assert distance(big.double(), small.double()).dtype == torch.float64


def test_layers():
    assert layers_of("mobile_resnet_9blocks") == ("model.9", "model.12", "model.15", "model.18")
    assert layers_of("resnet_9blocks", 3) == ("model.9", "model.10", "model.11", "model.12")
    with pytest.raises(ValueError, match="at least 3"):
        layers_of("resnet_9blocks", 2)


def test_tapped_reads_and_leaves_nothing_behind():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    x = torch.rand(4, 2)
    y, (second, first) = tapped(network, ["1", "0"], x)
    assert torch.equal(y, network(x)) and torch.equal(first, network[0](x)) and torch.equal(second, first.relu())
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(AttributeError):
        tapped(network, ["9"], x)


def test_terms_of_weight_zero_are_left_out():
    terms = {"style": torch.tensor(2.0), "dcd": torch.tensor(3.0)}
    assert student_loss(terms, {"style": 10.0, "dcd": 0.0}) == {"style": torch.tensor(20.0)}


def test_bad_layers_are_refused():
    for sides in (([], []), ([2], [2, 2])):
        with pytest.raises(ValueError, match="layers"):
            DiscriminatorDistillation(*sides)


def test_the_drop_in_works_with_other_networks():
    generator = lambda width: nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1))
    student, teacher = generator(4), generator(16)
    discriminator = nn.Sequential(nn.Conv2d(3, 8, 4, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4))
    distill, x = dcd.DiscriminatorDistillation([4], [16]), torch.rand(2, 3, 16, 16)
    _, own = dcd.tapped(student, ["1"], x)
    with torch.no_grad():
        _, target = dcd.tapped(teacher, ["1"], x)
    distill(own, target, discriminator[:2]).sum().backward()
    assert student[0].weight.grad.abs().sum() > 0 and teacher[0].weight.grad is None
