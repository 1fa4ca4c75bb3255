import copy
import re

from common import checkpoint, config
from common.errors import CheckpointError
from common.labelled import Labelled
from common.testing import hostile

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lts.config import Config, Model
from lts.method import Schedule, Scratcher, initialise, quantise, quantised_layers
from lts.models import build
from lts.tests.oracle_networks import fill
from lts.weights import BOUNDS, load_scratch, load_weights

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def ticket(bits: int = 2, seed: int = 1) -> tuple[nn.Module, Scratcher]:
    """A quantised network with some weights frozen, and its scratcher."""
    model = quantise(fill(build("digits", 10), seed), bits, bits)
    initialise(model, IMAGES)
    scratcher = Scratcher(model, Schedule("sine", 4, 0, 3), ema=0.5, record_steps=True)
    for _ in range(6):
        model.zero_grad()
        F.cross_entropy(model(IMAGES), torch.arange(4)).backward()
        scratcher.observe()
        with scratcher.held(), torch.no_grad():
            for p in model.parameters():
                p -= 0.02 * p.grad
    return model, scratcher


def official(model: nn.Module, scratcher: Scratcher | None, prefix: str = "") -> dict[str, torch.Tensor]:
    """The release's state dict (section 8); the parameters behind frozen weights have drifted."""
    given, found = {}, model.state_dict()
    for key, value in found.items():
        layer, _, kind = key.rpartition(".")
        if "_quantiser" not in key:
            given[prefix + key] = value.clone()
        if kind == ("bias" if f"{layer}.bias" in found else "weight") and layer in quantised_layers(model):
            given |= {f"{prefix}{layer}.{short}": found[f"{layer}.{own}"].clone() for short, own in BOUNDS.items()}
            given[f"{prefix}{layer}.init"] = torch.zeros(1, dtype=torch.int64)
            if scratcher is not None:
                own, weight = scratcher.layers[layer].ticket, found[f"{layer}.weight"]
                frozen = own.distance.signbit()
                given[f"{prefix}{layer}.prev_Qweight"] = own.level / scratcher.layers[layer].weight_quantiser.n
                given[f"{prefix}{layer}.distance"] = own.distance.abs()
                given[f"{prefix}{layer}.unchange_step"] = own.frozen_step.float()
                given[f"{prefix}{layer}.saved_weight"] = weight.clone()
                given[f"{prefix}{layer}.weight"] = torch.where(frozen, torch.randn_like(weight), weight)
    return given


def save(path, state: dict) -> str:
    torch.save({"epoch": 3, "arch": "digits", "state_dict": state, "acc1": torch.tensor(9.0)}, path)
    return path


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(IMAGES)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_release_s_checkpoint_takes_the_saved_value_of_frozen_weights(tmp_path, prefix):
    model, scratcher = ticket()
    assert 0 < scratcher.frozen_counts().sum() < sum(x.weight.numel() for x in scratcher.layers.values())
    state = official(model, scratcher, prefix)
    assert len(state) == len(build("digits", 10).state_dict()) + 9 * 5
    again = quantise(build("digits", 10))
    loaded = load_weights(again, save(tmp_path / "checkpoint.pth.tar", state))
    assert loaded.quantised and loaded.scratch.keys() == scratcher.layers.keys()
    assert torch.equal(logits(again), logits(model))
    drifted = copy.deepcopy(again)
    for name, layer in quantised_layers(drifted).items():
        layer.weight.data.copy_(state[f"{prefix}{name}.weight"])
    assert not torch.equal(logits(drifted), logits(model))


def test_a_baseline_s_checkpoint_lacks_the_scratcher(tmp_path):
    model, _ = ticket()
    again = quantise(build("digits", 10))
    loaded = load_weights(again, save(tmp_path / "model_best.pth.tar", official(model, None)))
    assert loaded.quantised and not loaded.scratch and torch.equal(logits(again), logits(model))


def test_the_scratcher_goes_on_where_the_release_s_stopped(tmp_path):
    model, scratcher = ticket()
    again = quantise(build("digits", 10))
    loaded = load_weights(again, save(tmp_path / "checkpoint.pth.tar", official(model, scratcher)))
    resumed = Scratcher(again, scratcher.schedule, ema=0.5, record_steps=True)
    load_scratch(resumed, loaded, step=scratcher.step)
    assert resumed.step == scratcher.step
    for run in (scratcher, resumed):
        run.observe()
    for one, two in zip(scratcher.layers.values(), resumed.layers.values()):
        assert torch.equal(one.ticket.distance, two.ticket.distance) and torch.equal(one.ticket.level, two.ticket.level)
        assert torch.equal(one.ticket.frozen_step, two.ticket.frozen_step)


def test_the_counter_that_no_file_holds(tmp_path):
    model, scratcher = ticket()
    again = quantise(build("digits", 10))
    loaded = load_weights(again, save(tmp_path / "checkpoint.pth.tar", official(model, scratcher)))
    last = max(int(x.ticket.frozen_step.max()) for x in scratcher.layers.values())
    for legacy, expected in ((False, last), (True, -1)):
        resumed = Scratcher(again, scratcher.schedule)
        load_scratch(resumed, loaded, legacy_resume=legacy)
        assert resumed.step == expected
        assert torch.equal(resumed.frozen_counts(), scratcher.frozen_counts())


def test_a_scratcher_of_other_layers_is_refused(tmp_path):
    model, _ = ticket()
    loaded = load_weights(model, save(tmp_path / "baseline.pth.tar", official(model, None)))
    with pytest.raises(CheckpointError, match="layers conv1, conv2"):
        load_scratch(Scratcher(model, Schedule("linear", 4, 0, 3)), loaded)


@pytest.mark.parametrize("own, words", [(4, "at 2 bits, here it is at 4 bits"), (None, "here it is in full precision")])
def test_another_bit_width_is_refused(own, words, tmp_path):
    model, scratcher = ticket(bits=2)
    path = save(tmp_path / "checkpoint.pth.tar", official(model, scratcher))
    other = build("digits", 10) if own is None else quantise(build("digits", 10), own, own)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match=f"conv1 was trained .*{words}; choose 2 bits"):
        load_weights(other, path)
    assert all(torch.equal(v, before[k]) or v.isnan().all() for k, v in other.state_dict().items())


def test_levels_of_no_width_are_damage(tmp_path):
    model, scratcher = ticket()
    state = official(model, scratcher)
    state["conv2.prev_Qweight"][0] = 0.123
    with pytest.raises(CheckpointError, match="levels of conv2 fit no width"):
        load_weights(quantise(build("digits", 10)), save(tmp_path / "checkpoint.pth.tar", state))


@pytest.mark.parametrize("quantised", [False, True])
def test_full_precision_weights_go_into_plain_and_quantised_networks(quantised, tmp_path):
    plain = fill(build("digits", 10), 4)
    model = build("digits", 10)
    model = quantise(model) if quantised else model
    loaded = load_weights(model, save(tmp_path / "fp.pth.tar", plain.state_dict()))
    assert not loaded.quantised
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())
    assert all(v.isnan().all() for k, v in model.state_dict().items() if "_quantiser" in k)  # still to be initialised


def test_quantisers_that_full_precision_training_left_in_a_file_are_passed_over(tmp_path):
    plain = fill(build("digits", 10), 4)
    unused = quantise(copy.deepcopy(plain))
    state = official(unused, None)
    for key in state:
        if key.endswith(".init"):
            state[key][:] = 1
    for model in (build("digits", 10), quantise(build("digits", 10))):
        assert not load_weights(model, save(tmp_path / "fp.pth.tar", state)).quantised
        assert torch.equal(model.state_dict()["conv3.weight"], plain.conv3.weight)


@torch.no_grad()
@pytest.mark.parametrize("ours, theirs", [("resnet18", "resnet18"), ("mobilenetv2", "mobilenet_v2")])
def test_torchvision_s_weights_fit_by_name_or_order(ours, theirs, tmp_path):
    reference = fill(getattr(torchvision.models, theirs)(num_classes=7), 3).eval()
    for module in reference.modules():  # the release and ours use ReLU throughout
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    model, images = build(ours, 7), torch.randn(1, 3, 32, 32)
    load_weights(model, tmp_path / "weights.pth")
    expected = reference(images)
    assert (model.eval()(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_file_whose_entries_are_sorted_is_not_mistaken(tmp_path):
    state = {key.replace("conv", "layer_"): value for key, value in fill(build("digits", 10), 5).state_dict().items()}
    safetensors.torch.save_file(dict(sorted(state.items())), tmp_path / "weights.safetensors")
    model = build("digits", 10)
    load_weights(model, tmp_path / "weights.safetensors")  # what has a namesake goes by name, in any order
    assert torch.equal(model.bn2.bias, state["bn2.bias"]) and torch.equal(model.conv3.weight, state["layer_3.weight"])
    renamed = {f"net.{key}": value for key, value in state.items()}
    safetensors.torch.save_file(dict(sorted(renamed.items())), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"matched by order, and net\.bn1\.bias .* met conv1\.weight"):
        load_weights(model, tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("conv2.weight"), r"missing \(1\): conv2\.weight"),
        (lambda s: s.update({"conv9.weight": torch.zeros(1)}), r"unexpected \(1\): conv9"),
        (lambda s: s.update({"conv2.weight": torch.zeros(1, 1, 1, 1)}), "of another shape"),
        (lambda s: s.update({"odd.weight": s.pop("conv2.weight")[:1]}), "matched by order, and odd.weight"),
    ],
)
def test_weights_of_another_network_change_nothing(change, message, tmp_path):
    state = fill(build("digits", 10), 6).state_dict()
    change(state)
    model = build("digits", 10)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, save(tmp_path / "weights.pth", state))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_saved_weight_of_another_shape_is_refused(tmp_path):
    model, scratcher = ticket()
    state = official(model, scratcher)
    state["conv1.saved_weight"] = state["conv1.saved_weight"][:1]
    with pytest.raises(CheckpointError, match=r"conv1\.saved_weight does not belong"):
        load_weights(quantise(build("digits", 10)), save(tmp_path / "checkpoint.pth.tar", state))


def test_bounds_that_a_file_lacks_are_named(tmp_path):
    model, _ = ticket()
    state = {key: value for key, value in official(model, None).items() if not re.match(r"conv2\.[ul][WA]", key)}
    with pytest.raises(CheckpointError, match=r"missing \(4\): conv2\.activation_quantiser"):
        load_weights(quantise(build("digits", 10)), save(tmp_path / "checkpoint.pth.tar", state))


def test_a_run_of_ours_loads_whole_but_not_as_a_start_in_full_precision(tmp_path):
    model, _ = ticket()
    conf = config.to_dict(Config(data=Labelled(name="digits"), model=Model(name="digits")))
    checkpoint.save(tmp_path / "last.pt", {"format": 1, "config": conf, "state": {"model": model.state_dict()}})
    again = quantise(build("digits", 10))
    assert load_weights(again, tmp_path / "last.pt").quantised and torch.equal(logits(again), logits(model))
    with pytest.raises(CheckpointError, match="conv1 was trained as W2A2, here it is W2A3; choose W2A2"):
        load_weights(quantise(build("digits", 10), 2, 3), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="unexpected"):
        load_weights(build("digits", 10), tmp_path / "last.pt")


def test_no_code_in_a_file_is_executed(tmp_path):
    with pytest.raises(CheckpointError):
        load_weights(build("digits", 10), hostile(tmp_path / "bad.pth", tmp_path / "canary"))
    assert not (tmp_path / "canary").exists()
