"""The commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import contextlib
import json
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, NonFiniteError
from common.finite import FiniteWatch
from common.labelled import Labelled, batches
from common.testing import assert_same, image_archive, image_folders, log, state

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lts import data, eval, experiment, models, train
from lts.config import Config
from lts.method import Schedule, Scratcher, initialise, narrowest, quantise, quantised_layers

PROJECT = Path(train.__file__).parent
# Four steps an epoch, augmentation on, freezing from the second epoch on.
TINY = {
    "data.limit": 128,
    "data.batch_size": 32,
    "data.crop_padding": 1,
    "data.flip": "true",
    "model.width": 8,
    "float.epochs": 1,
    "float.milestones": "[]",
    "freeze.warmup": 1,
    "freeze.ema": 0.9,
    "optim.epochs": 3,
    "optim.milestones": "[2]",
    "run.log_every": 1,
}


arguments = partial(testing.arguments, PROJECT / "cfg.yaml", TINY)
command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """Full-precision weights."""
    out = tmp_path_factory.mktemp("start")
    torch.set_num_threads(1)
    train.main([*arguments(out), "--stage", "float"])
    return out / "float" / "best.pt"


@pytest.fixture(scope="session")
def counted(tmp_path_factory, start) -> Path:
    """A quantised run that has noted how many weights were frozen after every step."""
    out = tmp_path_factory.mktemp("counted")
    train.main(arguments(out, float__checkpoint=start, freeze__record_counts="true"))
    return out / "quantised" / "last.pt"


@pytest.mark.smoke
def test_smoke(tmp_path):
    """Two steps of both stages and an evaluation, as typed."""
    short = ["--float.epochs=1", "--optim.epochs=1", "--freeze.warmup=0", "--data.limit=128"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    for stage in ("float", "quantised"):
        files = {path.name for path in (tmp_path / "run" / stage).iterdir()}
        assert {"config.yaml", "env.json", "log.jsonl", "last.pt"} <= files
        assert any(name.startswith("events.out.tfevents") for name in files)
        assert checkpoint.load(tmp_path / "run" / stage / "last.pt")["step"] == 2
    assert (tmp_path / "run" / "quantised" / "samples" / "frozen.png").stat().st_size > 0
    done = command(["eval.py", "--checkpoint", str(tmp_path / "run" / "quantised" / "last.pt")])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "quantised" / "metrics.json").read_text())
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100 and 0 <= metrics["frozen_mean"] <= 1
    assert metrics["integer_bytes"] < metrics["float_bytes"] / 5
    assert "top1" in done.stdout


WORKERS = {"data__resident": "false", "data__workers": 2}
LEVEL = {
    "freeze__frozen": "level",
    "freeze__mode": "sine",
    "freeze__record_steps": "true",
    "freeze__record_counts": "true",
}


@pytest.mark.parametrize(
    ("options", "step"),
    [({}, 1), ({}, 6), ({}, 8), (WORKERS, 6), (LEVEL, 10), ({"freeze__mode": "none"}, 6)],
    ids=["before any checkpoint", "inside an epoch", "at its end", "two workers", "levels, skipped rows", "baseline"],
)
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, start, options, step):
    options = {**options, "float__checkpoint": start}
    train.main(arguments(tmp_path / "straight", **options))
    words = arguments(tmp_path / "killed", run__save_every=5, **options)
    assert interrupted(words, 9, step).returncode == -9
    done = command(["train.py", *words, "--resume", "auto"])
    assert done.returncode == 0, done.stderr
    straight, killed = tmp_path / "straight" / "quantised", tmp_path / "killed" / "quantised"
    assert_same(state(straight), state(killed))
    assert log(straight) == log(killed)
    if options.get("freeze__mode") != "none":
        assert sum(line.get("frozen", 0) for line in log(straight)) > 0


def test_killed_in_full_precision(tmp_path):
    train.main(arguments(tmp_path / "straight", float__epochs=2))
    words = arguments(tmp_path / "killed", float__epochs=2, run__save_every=1)
    assert interrupted(words, 9, 6).returncode == -9
    assert not (tmp_path / "killed" / "quantised").exists()
    assert command(["train.py", *words, "--resume", "auto"]).returncode == 0
    for stage in ("float", "quantised"):
        one, two = (state(tmp_path / name / stage) for name in ("straight", "killed"))
        assert_same(one, two)


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path, start):
    train.main(arguments(tmp_path / "straight", float__checkpoint=start))
    words = arguments(tmp_path / "stopped", float__checkpoint=start)
    done = interrupted(words, 15, 6)
    assert done.returncode == 143 and "--resume auto" in done.stderr
    assert state(tmp_path / "stopped" / "quantised")["step"] == 6
    assert command(["train.py", *words, "--resume", "auto"]).returncode == 0
    assert_same(state(tmp_path / "straight" / "quantised"), state(tmp_path / "stopped" / "quantised"))
    assert log(tmp_path / "straight" / "quantised") == log(tmp_path / "stopped" / "quantised")


def test_workers_do_not_change_a_bit_and_seeds_do(tmp_path, start):
    runs = {
        "resident": {},
        "loader": {"data__resident": "false"},
        "workers": {"data__resident": "false", "data__workers": 2},
        "seed": {"seed": 1},
    }
    for name, options in runs.items():
        train.main(arguments(tmp_path / name, float__checkpoint=start, optim__epochs=2, **options))
    weights = {name: state(tmp_path / name / "quantised")["state"]["model"] for name in runs}
    assert_same(weights["resident"], weights["loader"])
    assert_same(weights["resident"], weights["workers"])
    assert not torch.equal(weights["resident"]["conv1.weight"], weights["seed"]["conv1.weight"])


def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path, start):
    # 130 images leave a last batch of 2, one image a process.
    options = {"float__checkpoint": start, "data__limit": 130, "run__device": "cpu", "freeze__bounds_gradient": "false"}
    train.main(arguments(tmp_path / "one", run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", **options))
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "quantised")["state"] for name in ("one", "two"))
    for key, value in one["model"].items():
        if "running" not in key and "tracked" not in key:  # BatchNorm's running statistics are those of rank 0
            assert torch.allclose(value, two["model"][key], rtol=0, atol=1e-4), key
    assert one["scratcher"]["step"] == two["scratcher"]["step"] == 14
    ratio = [part["account"]["summary"]["frozen_mean"] for part in (one, two)]
    assert ratio[0] == pytest.approx(ratio[1], abs=0.005) and ratio[0] > 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"run__precision": "bf16"},
        {"quant__quantiser": "lsq"},
        {"quant__quantiser": "dorefa", "optim__lr": 0.01},
        {"quant__first_last": "8bit", "quant__overrides": "[conv2=4/3]"},
        {"quant__weight_bits": 32, "quant__activation_bits": 32, "freeze__mode": "none"},
        {"freeze__mode": "cosine", "freeze__clean_start": "true"},
        {"freeze__mode": "step", "freeze__bounds_gradient": "false"},
        {"freeze__mode": "constant", "freeze__warmup": 0, "optim__sync_batchnorm": "true"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_variants_run_and_are_evaluated(tmp_path, start, options):
    train.main(arguments(tmp_path, float__checkpoint=start, optim__epochs=2, **options))
    assert all(np.isfinite(line.get("ce", 0)) for line in log(tmp_path / "quantised"))
    metrics = eval.main(["--checkpoint", str(tmp_path / "quantised" / "last.pt")])
    assert metrics["top5"] > 0 and ("epochs" in metrics) == (options.get("quant__weight_bits") != 32)


def test_what_is_evaluated_is_what_was_trained(tmp_path, start):
    train.main(arguments(tmp_path, float__checkpoint=start))
    last = [line for line in log(tmp_path / "quantised") if line["split"] in ("test", "frozen")][-2:]
    metrics = eval.main(["--checkpoint", str(tmp_path / "quantised" / "last.pt")])
    assert metrics["top1"] == last[0]["top1"] and metrics["frozen_final"] == last[1]["frozen"]
    assert metrics["frozen_final_weights"] > 0.5 and metrics["level_stability_75"] > 0
    assert metrics["backward_saved"] == metrics["frozen_mean"] / 2
    with pytest.raises(InputError, match=r"quant\.weight_bits: 2 -> 3"):
        eval.main(["--checkpoint", str(tmp_path / "quantised" / "last.pt"), "--quant.weight_bits=3"])
    float_metrics = eval.main(["--checkpoint", str(start)])
    assert "frozen_mean" not in float_metrics and float_metrics["params"] < metrics["params"]


def test_the_random_control_follows_a_run(tmp_path, start, counted):
    words = {"float__checkpoint": start, "freeze__select": "random", "freeze__counts": counted}
    train.main(arguments(tmp_path, **words))
    followed, control = (checkpoint.load(p)["state"] for p in (counted, tmp_path / "quantised" / "last.pt"))
    assert control["account"]["summary"]["frozen_mean"] == followed["account"]["summary"]["frozen_mean"] > 0
    one, two = (part["scratcher"]["tickets"]["conv3"]["distance"].signbit() for part in (followed, control))
    assert one.sum() == two.sum() and not torch.equal(one, two)


def test_a_step_never_waits_for_the_device(monkeypatch):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown to that device
    meta = torch.device("meta")
    training, _ = data.load(config.load(Config, PROJECT / "cfg.yaml"))
    network = quantise(models.build("digits", 10, 8)).to(meta)
    training.to(meta)
    scratcher = Scratcher(network, Schedule("linear", 4, 0, 5), bounds_gradient=False, record_steps=True)
    trained = experiment.optimisers(network, 0.1, 1e-4, 0.9, 1e-4)
    account = experiment.Account(network, torch.zeros(1, 3, 8, 8, device=meta), record=True)
    initialise(network, torch.zeros(8, 3, 8, 8, device=meta))
    for layer in quantised_layers(network).values():
        layer.rows = torch.zeros(3, dtype=torch.int64, device=meta)
    finite, network = FiniteWatch(), network.train()
    for _ in range(3):
        for (batch,) in batches(training, torch.arange(8, device=meta), 1, Labelled("digits"), meta):
            for optimiser in trained:
                optimiser.zero_grad(set_to_none=True)
            loss = F.cross_entropy(network(batch.images).float(), batch.labels)
            loss.backward()
            narrow = torch.where(narrowest(network) > 0, 0.0, torch.nan)
            finite.note(1, {"ce": loss, "range": narrow})
            scratcher.observe()
            with scratcher.held():
                for optimiser in trained:
                    optimiser.step()
            account.note(scratcher)
    assert all(layer.ticket.live for layer in quantised_layers(network).values())
    with pytest.raises(NotImplementedError, match="meta"):
        finite.require("a read", "of the device")


def test_it_learns(tmp_path):
    words = ["--config", str(PROJECT / "cfg.yaml"), "--out", str(tmp_path), "--float.epochs=4", "--optim.epochs=4"]
    train.main([*words, "--freeze.warmup=1", "--float.milestones=[]", "--optim.milestones=[]"])
    assert eval.main(["--checkpoint", str(tmp_path / "float" / "last.pt")])["top1"] > 85
    metrics = eval.main(["--checkpoint", str(tmp_path / "quantised" / "last.pt")])
    assert metrics["top1"] > 70 and metrics["frozen_mean"] > 0.3 and metrics["frozen_final_weights"] > 0.9


def test_a_second_run_moves_the_first_aside(tmp_path, start):
    words = arguments(tmp_path, float__checkpoint=start, optim__epochs=2)
    train.main(words)
    first = (tmp_path / "quantised" / "last.pt").read_bytes()
    train.main(words)
    assert (tmp_path / "quantised-1" / "last.pt").read_bytes() == first
    assert_same(state(tmp_path / "quantised-1"), state(tmp_path / "quantised"))


def spoil(monkeypatch, step: int, damage) -> None:
    """Do damage to the network just before the loss of a step is looked at."""
    watch = train.watch
    monkeypatch.setattr(
        train, "watch", lambda run, now, loss, network, p: watch(run, now, damage(now, step, loss, network), network, p)
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, start, monkeypatch):
    spoil(monkeypatch, 6, lambda now, step, loss, network: loss * float("nan") if now == step else loss)
    with pytest.raises(NonFiniteError, match=r"step 6 of stage quantised: ce"):
        train.main(arguments(tmp_path, float__checkpoint=start))
    saved = checkpoint.load(tmp_path / "quantised" / "last.pt")
    assert saved["step"] == 4
    assert all(value.isfinite().all() for value in saved["state"]["model"].values())


def test_bounds_that_collapse_stop_the_run_by_name(tmp_path, start, monkeypatch):
    def collapse(now, step, loss, network):
        if now == step:
            network.conv2.weight_quantiser.upper.data.copy_(network.conv2.weight_quantiser.lower.data)
        return loss

    spoil(monkeypatch, 6, collapse)
    with pytest.raises(InputError, match=r"the bounds of conv2.weight have collapsed"):
        train.main(arguments(tmp_path, float__checkpoint=start))
    assert checkpoint.load(tmp_path / "quantised" / "last.pt")["step"] == 4


def bad_inputs(folder: Path, start: Path, counted: Path) -> dict[str, tuple[dict, str]]:
    """name -> (overrides, words of the message)."""
    truncated, malicious = folder / "truncated.pt", testing.hostile(folder / "malicious.pt", folder / "canary")
    truncated.write_bytes(start.read_bytes()[:2000])
    torch.save(models.build("digits", 100, 8).state_dict(), folder / "hundred.pth")
    constant = checkpoint.load(start)
    constant["state"]["model"]["conv3.weight"].zero_()
    checkpoint.save(folder / "constant.pt", constant)
    return {
        "bits 0": ({"quant__weight_bits": 0}, "quant.weight_bits"),
        "bits 9": ({"quant__weight_bits": 9}, "1 to 8, or 32 for none, not 9"),
        "activation bits 16": ({"quant__activation_bits": 16}, "1 to 8, or 32 for none, not 16"),
        "override of no layer": ({"quant__overrides": "[conv9=2/2]"}, "no convolution or linear layer conv9"),
        "override of no form": ({"quant__overrides": "[conv1=two]"}, "is not LAYER=W/A"),
        "warm-up of all epochs": ({"freeze__warmup": 3}, "a warm-up of 3 epochs leaves none of 3"),
        "bounds that start collapsed": (
            {"float__checkpoint": folder / "constant.pt"},
            r"the bounds of conv3\.weight.* have collapsed",
        ),
        "nothing to freeze": ({"quant__weight_bits": 32}, "no weight is quantised"),
        "random without counts": ({"freeze__select": "random"}, "needs freeze.counts"),
        "counts without random": ({"freeze__counts": counted}, "needs freeze.counts"),
        "counts of another length": (
            {"freeze__select": "random", "freeze__counts": counted, "optim__epochs": 4},
            r"counts of shape \[12, 5\] do not belong to \[steps, layers\] \[16, 5\]",
        ),
        "counts of a float run": ({"freeze__select": "random", "freeze__counts": start}, "is of stage float"),
        "missing data": ({"data__name": "cifar10", "data__root": folder / "nowhere"}, "cifar-10-batches-py"),
        "class count": ({"float__checkpoint": folder / "hundred.pth"}, r"fc.weight \[100, 16\] for \[10, 16\]"),
        "label out of range": (
            {"data__name": "cifar10", "data__root": image_archive(folder, [3] * 40 + [11])},
            "first is 11 of image 40",
        ),
        "truncated": ({"float__checkpoint": truncated}, "cannot be read as weights"),
        "malicious": ({"float__checkpoint": malicious}, "never executed"),
        "no weights": ({"float__checkpoint": folder / "none.pt"}, "there are no full-precision weights"),
        "smaller than a batch": ({"data__limit": 20}, "fewer than data.batch_size 32"),
        "unknown key": ({"optim__learing_rate": 1}, "not an option"),
        "unknown network": ({"model__name": "resnet2"}, "did you mean resnet20"),
    }


BAD = [
    *("bits 0", "bits 9", "activation bits 16", "override of no layer", "override of no form", "warm-up of all epochs"),
    *(
        "nothing to freeze",
        "bounds that start collapsed",
        "random without counts",
        "counts without random",
        "counts of another length",
    ),
    *("counts of a float run", "missing data", "class count", "label out of range", "truncated", "malicious"),
    *("no weights", "smaller than a batch", "unknown key", "unknown network"),
]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written_over(tmp_path, start, counted, name):
    known = bad_inputs(tmp_path, start, counted)
    assert set(known) == set(BAD)
    overrides, words = known[name]
    kept = tmp_path / "run" / "quantised" / "last.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"an earlier result")
    with pytest.raises(InputError, match=words):
        train.main(arguments(tmp_path / "run", **{"float__checkpoint": start, **overrides}))
    assert kept.read_bytes() == b"an earlier result" and list(kept.parent.iterdir()) == [kept]
    assert not (tmp_path / "canary").exists()


def test_bad_input_exits_with_2(tmp_path):
    done = command(["train.py", "--config", "cfg.yaml", "--freeze.warmup", "40"])
    assert done.returncode == 2 and done.stderr.startswith("error: freeze: a warm-up of 40 epochs leaves none of 40")
    done = command(["eval.py", "--checkpoint", str(tmp_path / "none.pt")])
    assert done.returncode == 2 and "there is no such checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_resume_refuses_another_experiment(tmp_path, start):
    copied = checkpoint.load(start)
    checkpoint.save(tmp_path / "start.pt", copied)
    words = arguments(tmp_path, float__checkpoint=tmp_path / "start.pt", optim__epochs=2)
    train.main(words)
    before = state(tmp_path / "quantised")
    with pytest.raises(InputError, match=r"freeze.mode: linear -> sine"):
        train.main([*words, "--freeze.mode=sine", "--resume=auto"])
    with pytest.raises(InputError, match=r"quant.weight_bits: 2 -> 3"):
        train.main([*words, "--quant.weight_bits=3", "--resume=auto"])
    # even by force, the scratcher does not continue what was decided by another schedule or other levels
    force = [*words, "--resume=auto", "--resume_force=true"]
    with pytest.raises(InputError, match=r"cannot be continued: the state's schedule differs: mode linear -> sine"):
        train.main([*force, "--freeze.mode=sine"])
    with pytest.raises(InputError, match=r"cannot be continued: the state's bits differs: conv1 2 -> 3"):
        train.main([*force, "--quant.weight_bits=3"])
    copied["state"]["model"]["conv1.weight"] += 1
    checkpoint.save(tmp_path / "start.pt", copied)
    with pytest.raises(InputError, match="the float checkpoint has changed"):
        train.main([*words, "--resume=auto"])
    assert_same(before, state(tmp_path / "quantised"))
    train.main(force)


def test_a_legacy_resume_counts_the_steps_anew(tmp_path, start):
    words = arguments(tmp_path, float__checkpoint=start)
    assert interrupted(words, 15, 10).returncode == 143
    train.main([*words, "--resume=auto", "--freeze.legacy_resume=true", "--resume_force=true"])
    assert state(tmp_path / "quantised")["state"]["scratcher"]["step"] == 1  # two of twelve steps were left


def test_eval_of_official_checkpoints(tmp_path, start):
    experiment_file = tmp_path / "pair.yaml"
    small = config.override(config.load(Config, PROJECT / "cfg.yaml"), ["--model.width=8"])
    experiment_file.write_text(config.dump(small))
    network = quantise(models.build("digits", 10, 8))
    initialise(network, torch.randn(16, 3, 8, 8))
    own = {"weight_quantiser.upper": "uW", "weight_quantiser.lower": "lW"}
    own |= {"activation_quantiser.upper": "uA", "activation_quantiser.lower": "lA"}
    names = {key: next((key.replace(a, b) for a, b in own.items() if a in key), key) for key in network.state_dict()}
    official = {f"module.{names[key]}": value for key, value in network.state_dict().items()}
    torch.save({"epoch": 400, "state_dict": official, "best_acc1": 1.0}, tmp_path / "model_best.pth.tar")
    words = ["--checkpoint", str(tmp_path / "model_best.pth.tar")]
    metrics = eval.main([*words, "--config", str(experiment_file)])
    expected = train.evaluate(network, data.load(small)[1], small, torch.device("cpu"))
    assert metrics["top1"] == expected["top1"] and metrics["params"] == sum(p.numel() for p in network.parameters())
    with pytest.raises(CheckpointError, match="needs --config"):
        eval.main(words)
    torch.save(models.build("digits", 10, 8).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="holds no trained quantisers"):
        eval.main(["--checkpoint", str(tmp_path / "plain.pth"), "--config", str(experiment_file)])


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_a_step(tmp_path, path):
    settings = config.load(Config, path)
    words = ["--config", str(path), "--out", str(tmp_path / "run"), "--optim.epochs=1", "--freeze.warmup=0"]
    if settings.data.name == "imagenet":
        image_folders(tmp_path, images=1)
        torch.save(models.build(settings.model.name, 2).state_dict(), tmp_path / "float.pth")
        words += [f"--data.root={tmp_path}", "--data.batch_size=2", "--data.workers=0"]
        words.append(f"--float.checkpoint={tmp_path / 'float.pth'}")
    else:
        classes = data.CLASSES[settings.data.name]
        words.append(f"--data.root={image_archive(tmp_path, list(range(classes)), classes)}")
        words += ["--data.batch_size=8", "--data.limit=8"]
    only_float = path.stem.endswith("_float")
    train.main([*words, *(["--stage=float"] if only_float else [])])
    stage = "float" if only_float else "quantised"
    assert checkpoint.load(tmp_path / "run" / stage / "last.pt")["step"] == 1
