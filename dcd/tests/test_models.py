"""Networks of the configs, their exact sizes, and the compared layers."""

from pathlib import Path

from common import config
from common.errors import InputError
from common.gan import build_generator, complexity
from common.gan.settings import Networks

import pytest
import torch

from dcd import models, train
from dcd.config import Config, Distill
from dcd.method import tapped
from dcd.models import build_distiller, build_student, compared_layers, widths

PROJECT = Path(train.__file__).parent


def test_the_papers_compression_is_exact():
    with torch.device("meta"):
        original, student = (
            complexity(build_generator(name, width))
            for name, width in (("resnet_9blocks", 64), ("mobile_resnet_9blocks", 16))
        )
    assert (original["params"], student["params"]) == (11_378_179, 137_347)
    ratios = {name: original[name] / student[name] for name in original}
    assert ratios["papers_macs"] == pytest.approx(40.35, abs=0.005)
    assert ratios["params"] == pytest.approx(82.84, abs=0.005)
    assert ratios["macs"] == pytest.approx(51.9, abs=0.05)


@pytest.mark.parametrize(
    ("networks", "size"),
    [
        (Networks(student_width=2, teacher_width=3), 32),
        (Networks(student_width=2, teacher_width=3, blocks=4), 32),
        (Networks("resnet_9blocks", "batch", student_width=2, teacher_width=3), 32),
        (Networks("unet_256", "batch", student_width=1, teacher_width=2), 256),
    ],
)
@pytest.mark.parametrize("pairing", ["natural", "sorted"])
def test_compared_layers_have_the_widths_of_their_connectors(networks, size, pairing):
    conf = Config(networks=networks, distill=Distill(pairing=pairing))
    layers = compared_layers(conf)
    _, features = tapped(build_student(conf).eval(), layers, torch.zeros(1, 3, size, size))
    assert [f.shape[1] for f in features] == widths(conf, networks.student_width)
    connectors = build_distiller(conf)
    assert [c[0].in_channels for c in connectors.netSs] == widths(conf, networks.student_width)
    assert [c[0].in_channels for c in connectors.netTs] == widths(conf, networks.teacher_width)


def test_pairing():
    assert compared_layers(Config()) == ("model.9", "model.12", "model.15", "model.18")
    assert compared_layers(Config(distill=Distill(pairing="sorted"))) == ("model.12", "model.15", "model.18", "model.9")
    assert compared_layers(Config(distill=Distill(layers=("model.10",)))) == ("model.10",)


def test_connectors_follow_the_model():
    for model, channels, learns in (("cyclegan", 3, False), ("pix2pix", 6, True)):
        connectors = build_distiller(Config(model, networks=Networks(teacher_width=4, student_width=2)))
        assert connectors.netSs[0][0].out_channels == channels and connectors.train_teacher == learns
    other = Config("pix2pix", distill=Distill(train_teacher_connector=False))
    assert not build_distiller(other).train_teacher


def test_a_students_first_weights_do_not_depend_on_its_losses():
    found = []
    for distill in (Distill(), Distill(lambda_cd=0), Distill(pairing="sorted", layers=("model.9", "model.10"))):
        torch.manual_seed(3)
        conf = Config(networks=Networks(teacher_width=2, student_width=2, discriminator_width=2), distill=distill)
        found.append(train.build(conf)["student"].state_dict())
    assert all(torch.equal(found[0][k], other[k]) for other in found[1:] for k in other)


def test_unknown_layers_are_refused():
    with pytest.raises(InputError, match="no such module"):
        build_distiller(Config(distill=Distill(layers=("model.40",))))
    unet = Networks("unet_256", "batch", student_width=1, teacher_width=1)
    with pytest.raises(InputError, match="of a U-Net the layers are"):
        build_distiller(Config(networks=unet, distill=Distill(layers=("model.model.1",))))


OWN = {"photographs", "cifar10_horse2dog"}  # on data that the paper did not use, with a width of their own
PUBLISHED = [path for path in sorted(PROJECT.glob("configs/*.yaml")) if path.stem not in OWN]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_discriminators_of_the_published_runs(path):
    conf = config.load(Config, path)
    with torch.device("meta"):
        networks = models.build_teachers(conf)
    name = "D_A" if conf.model == "cyclegan" else "D"
    wanted = {"cyclegan": 2_764_737, "pix2pix": 11_042_433 if conf.networks.norm == "batch" else 11_040_641}
    assert sum(p.numel() for p in networks[name].parameters()) == wanted[conf.model]
