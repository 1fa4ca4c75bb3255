"""Networks: counts of the paper, keys of the release, any size, and files of weights."""

from common import cost, testing
from common.errors import CheckpointError, InputError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hqss import models, weights
from hqss.inference import restore

# Parameters, tensors, and multiply-adds a pixel (section 3).
COUNTS = {
    "Encoder": (11_648, 10, 11_568),
    "Generator": (2_416_259, 36, 312_896),
    "Remover": (11_378_179, 48, 756_096),
    "Refiner": (11_381_315, 48, 759_232),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_tensors_and_macs(name):
    network = getattr(models, name)()
    parameters, tensors, macs = COUNTS[name]
    assert cost.parameters(network).total == parameters and len(network.state_dict()) == tensors
    image = torch.zeros(1, 3, 64, 64)
    more = {"Generator": (torch.zeros(1, 16, 64, 64), image), "Refiner": (image, image[:, :1])}
    assert cost.macs(network, *more.get(name, (image,))) == macs * 64 * 64


def test_the_discriminators_count():
    assert cost.parameters(models.Discriminator()).total == 2_764_737
    assert models.Discriminator(2)(torch.zeros(5, 3, 24, 32)).shape == (5,)


def test_keys_are_the_releases():
    keys = models.Generator().state_dict().keys()
    assert {"conv1_b.1.weight", "downconv2_b.0.bias", "conv9_b.0.conv_block.5.weight", "upconv13_b.0.weight"} <= keys
    numbers = [key.split("_")[0][4:] for key in keys if key.endswith("conv_block.1.bias")]
    assert numbers == ["4", "5", "9", "10", "11", "12"]
    assert [k for k in models.Discriminator().state_dict() if k.endswith("bias")] == [
        f"model.{n}.bias" for n in (0, 2, 5, 8, 11)
    ]


def test_initial_weights_have_the_papers_spread():
    torch.manual_seed(0)
    network = models.initialise(models.Generator(16, 64))
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.1), name
    assert float(network.conv15_b[1].bias.detach().abs().max()) > 0


def test_training_and_evaluation_mode_are_one():
    torch.manual_seed(0)
    network, image = models.Remover(4), torch.rand(2, 3, 16, 16)
    assert torch.equal(network.train()(image), network.eval()(image))


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (30, 22), (33, 64)])
def test_any_size_keeps_what_is_outside_the_mask(size):
    torch.manual_seed(0)
    photograph = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[2:6, 3:7] = 255
    result = restore(models.Remover(4), models.Refiner(4), photograph, mask)
    assert result.shape == photograph.shape and np.array_equal(result[mask == 0], photograph[mask == 0])
    assert not np.array_equal(result, photograph)


def test_masks_without_shadow_all_shadow_and_grey():
    torch.manual_seed(0)
    networks = models.Remover(4), models.Refiner(4)
    photograph = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(restore(*networks, photograph, np.zeros((16, 16), np.uint8)), photograph)
    assert restore(*networks, photograph, np.full((16, 16), 255, np.uint8)).shape == photograph.shape
    grey = np.zeros((16, 16), np.uint8)
    grey[4:8], grey[8:12] = 255, 100
    result = restore(*networks, photograph, grey)
    assert (result[8:12] != photograph[8:12]).any(), "compositing takes every level above 0"
    binary = restore(*networks, photograph, (grey > 127).astype(np.uint8) * np.uint8(255))
    assert np.array_equal(result[4:8], binary[4:8]), "the networks see a threshold of one half"


@pytest.mark.parametrize(("photograph", "mask"), [((16, 16), (16, 12)), ((7, 16), (7, 16))], ids=["mask", "small"])
def test_what_the_networks_cannot_take_is_refused(photograph, mask):
    with pytest.raises(InputError):
        restore(models.Remover(4), models.Refiner(4), np.zeros((*photograph, 3), np.uint8), np.ones(mask, np.uint8))


def test_shipped_weights_carry_their_width(tmp_path):
    torch.manual_seed(0)
    networks = {"coarse": models.Remover(4), "refine": models.Refiner(4)}
    tensors = {f"{name}.{k}": v.half() for name, n in networks.items() for k, v in n.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    coarse, refine, _ = weights.removers([str(tmp_path / "w.safetensors")])
    for key, value in networks["coarse"].state_dict().items():
        assert torch.equal(coarse.state_dict()[key], value.half().float()), key
    assert refine.conv1_b[1].weight.shape[:2] == (4, 4)


def test_the_releases_files_and_hostile_ones(tmp_path):
    for name, network in (("1", models.Remover()), ("2", models.Refiner())):
        torch.save(network.state_dict(), tmp_path / f"seed628ep150_netG_{name}_150.pth")
    files = sorted(map(str, tmp_path.glob("*.pth")))
    assert weights.removers(files).refine.conv1_b[1].weight.shape == (64, 4, 7, 7)
    with pytest.raises(CheckpointError):
        weights.removers(files[::-1])
    canary = tmp_path / "canary"
    bad = testing.hostile(tmp_path / "bad.pth", canary)
    with pytest.raises(CheckpointError):
        models.load_weights(models.Encoder(), bad)
    with pytest.raises(CheckpointError):
        weights.removers([str(bad)])
    assert not canary.exists()
