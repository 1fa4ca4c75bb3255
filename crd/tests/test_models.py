"""Networks of the configs, their exact sizes, and the relations between them."""

from pathlib import Path

from common import config
from common.errors import InputError
from common.gan import build_generator, complexity
from common.gan.data import Domains
from common.gan.settings import Networks

import pytest
import torch

from crd import models, train
from crd.config import Config, Relations

PROJECT = Path(train.__file__).parent


def test_the_papers_compression_is_exact():
    with torch.device("meta"):
        original = complexity(build_generator("resnet_9blocks", 64))
        student = complexity(models.build_student(Config()))
    assert (original["params"], student["params"]) == (11_378_179, 137_347)
    assert (round(student["macs"] / 1e9, 5), round(student["papers_macs"] / 1e9, 4)) == (0.95473, 1.4077)
    assert round(original["papers_macs"] / student["papers_macs"], 2) == 40.35
    assert round(original["params"] / student["params"], 2) == 82.84


def test_widths_of_a_config():
    networks = models.build_teachers(Config(networks=Networks(teacher_width=3, discriminator_width=5)))
    assert networks.keys() == {"G_A", "G_B", "D_A", "D_B"}
    assert networks["G_B"].model[1].out_channels == 3 and networks["D_A"].model[0].in_channels == 3
    networks = models.build_teachers(Config("pix2pix", networks=Networks("unet_256", "batch", 2, 1)))
    assert networks.keys() == {"G", "D"} and networks["D"].model[0].in_channels == 6


def test_relations_follow_the_config():
    conf = Config(relations=Relations(1, 2, 3, 4, 5, patch_size=16, patch_mode="joint", duplicates="reference"))
    loss = models.build_relations(conf)
    assert loss.weights == {"row": 1, "column": 2, "patch": 3}
    assert loss.options == {"distance": 4, "angle": 5, "duplicates": "reference"}
    assert (loss.patch_size, loss.patch_mode) == (16, "joint")


def test_one_patch_has_no_relation():
    small, two = Domains(load_size=32, crop_size=32), Domains(load_size=32, crop_size=32, batch_size=2)
    refused = [(small, Relations()), (small, Relations(patch_mode="joint"))]
    refused += [(two, Relations(patch_size=33, patch_mode=mode)) for mode in ("per_image", "joint", "reference")]
    for data, relations in refused:
        with pytest.raises(InputError, match=r"holds [01] patches.*patches 0"):
            models.build_relations(Config(data=data, relations=relations))
    for relations in (Relations(patches=0), Relations(patch_size=16), Relations(patch_mode="reference")):
        models.build_relations(Config(data=small, relations=relations))
    models.build_relations(Config(data=two, relations=Relations(patch_mode="joint")))


def test_a_students_first_weights_do_not_depend_on_its_losses():
    found = []
    for relations in (Relations(), Relations(0, 0, 0)):
        torch.manual_seed(3)
        conf = Config(networks=Networks(teacher_width=2, student_width=2, discriminator_width=2), relations=relations)
        found.append(train.build(conf)["student"].state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


OWN = {"photos_unpaired", "photographs", "cifar10_horse2dog"}  # on data that the paper did not use
PUBLISHED = [path for path in sorted(PROJECT.glob("configs/*.yaml")) if path.stem not in OWN]


def test_the_embedded_config_needs_no_file():
    assert config.load(Config, PROJECT / "configs" / "photos_unpaired.yaml").perceptual.network == "random"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_runs_have_the_published_sizes(path):
    conf = config.load(Config, path)
    with torch.device("meta"):
        networks = train.build(conf)
    count = lambda name: sum(p.numel() for p in networks[name].parameters())
    wanted = {"cyclegan": 2_764_737, "pix2pix": 11_042_433 if conf.networks.norm == "batch" else 11_040_641}
    assert count("D_A" if conf.model == "cyclegan" else "D") == wanted[conf.model]
    assert count("student") == (3_404_451 if conf.networks.generator == "unet_256" else 137_347)
    # 25 on one image; 2.5 summed over four images is 10 on each.
    r = conf.relations
    assert (r.rows, r.batch, conf.student_gan_weight) == (
        (25, "mean", 1) if conf.model == "cyclegan" else (2.5, "sum", 0)
    )
    assert conf.teaching.gan == {"cyclegan": "lsgan", "pix2pix": "hinge"}[conf.model]
