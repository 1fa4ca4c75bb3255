"""The commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import contextlib
import json
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, NonFiniteError
from common.finite import FiniteWatch
from common.labelled import Labelled, batches
from common.run import Run, entry
from common.testing import assert_same, image_archive, image_folders, log, state

import numpy as np
import pytest
import torch
from torch import nn

from rebnn import data, eval, families, models, pair, train
from rebnn.config import Binary, Config
from rebnn.method import Balance, BinaryConv2d, distribution_loss

PROJECT = Path(train.__file__).parent
# Four steps an epoch, augmentation on.
TINY = {
    "data.limit": 100,
    "data.batch_size": 25,
    "data.crop_padding": 1,
    "data.flip": "true",
    "teacher.epochs": 1,
    "step1.epochs": 2,
    "step2.epochs": 3,
    "run.log_every": 1,
}


arguments = partial(testing.arguments, PROJECT / "cfg.yaml", TINY)
command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> dict[str, Path]:
    """A teacher and a step 1, as options of what builds on them."""
    out = tmp_path_factory.mktemp("base")
    torch.set_num_threads(1)
    train.main(arguments(out, step2__epochs=0))
    assert sorted(path.name for path in out.iterdir()) == ["step1", "teacher"], "no step 2 was asked for"
    return {
        "teacher__checkpoint": out / "teacher" / "last.pt",
        "step2__start": out / "step1" / "last.pt",
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pictures, which take longer than these runs; test_smoke has them."""
    for name in ("draw_oscillation", "draw_latent"):
        monkeypatch.setattr(train.figures, name, lambda *_: False)


class Crash(Exception):
    """Stands for a process that dies."""


def crash_at(monkeypatch, step: int, words: list[str]) -> None:
    """Run until the losses of a step are there, then stop dead."""
    watch = Run.watch

    def watched(run, number, *rest):
        if number == step:
            raise Crash
        return watch(run, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "watch", watched)
        with pytest.raises(Crash):
            train.main(words)


@pytest.mark.smoke
def test_smoke(tmp_path):
    """Two steps of all stages and an evaluation, as typed."""
    short = ["--teacher.epochs=1", "--step1.epochs=1", "--step2.epochs=1", "--data.limit=100"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    for stage in train.STAGES:
        files = {path.name for path in (tmp_path / "run" / stage).iterdir()}
        assert {"config.yaml", "env.json", "log.jsonl", "last.pt"} <= files
        assert any(name.startswith("events.out.tfevents") for name in files)
        assert checkpoint.load(tmp_path / "run" / stage / "last.pt")["step"] == 2
    assert len(list((tmp_path / "run" / "step2" / "samples").glob("*.png"))) == 2
    done = command(["eval.py", "--checkpoint", str(tmp_path / "run" / "step2" / "last.pt")])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "step2" / "metrics.json").read_text())
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100 and metrics["flip_ratio"] > 0
    assert "flip_ratio" in done.stdout


WORKERS = {"data__resident": "false", "data__workers": 2}


@pytest.mark.parametrize(
    ("options", "step"),
    [({}, 2), ({}, 6), ({}, 8), (WORKERS, 6), ({"binary__gamma": "released_intended"}, 6)],
    ids=["before any checkpoint", "inside an epoch", "at its end", "two workers", "looking ahead"],
)
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, base, monkeypatch, options, step):
    """By SIGKILL where a process of its own has been started, otherwise by an exception in the midst of a step."""
    options = {**options, **base, "run__save_every": 3}
    train.main(arguments(tmp_path / "straight", **options))
    words = arguments(tmp_path / "killed", **options)
    if "data__workers" in options:
        assert interrupted(words, 9, step).returncode == -9
    else:
        crash_at(monkeypatch, step, words)
    train.main([*words, "--resume", "auto"])
    straight, killed = tmp_path / "straight" / "step2", tmp_path / "killed" / "step2"
    kept = state(straight)
    assert kept["state"]["balance"]["gamma"].any() and kept["state"]["balance"]["signs"]
    assert_same(kept, state(killed))
    assert log(straight) == log(killed)


def test_killed_in_step1_and_resumed_through_step2(tmp_path, base, monkeypatch):
    options = {"teacher__checkpoint": base["teacher__checkpoint"], "step2__epochs": 1}
    train.main(arguments(tmp_path / "straight", **options))
    words = arguments(tmp_path / "killed", run__save_every=1, **options)
    crash_at(monkeypatch, 6, words)
    assert not (tmp_path / "killed" / "step2").exists()
    train.main([*words, "--resume", "auto"])
    for stage in ("step1", "step2"):
        assert_same(state(tmp_path / "straight" / stage), state(tmp_path / "killed" / stage))


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path, base):
    train.main(arguments(tmp_path / "straight", **base))
    words = arguments(tmp_path / "stopped", **base)
    done = interrupted(words, 15, 6)
    assert done.returncode == 143 and "--resume auto" in done.stderr
    assert state(tmp_path / "stopped" / "step2")["step"] == 6
    train.main([*words, "--resume", "auto"])
    assert_same(state(tmp_path / "straight" / "step2"), state(tmp_path / "stopped" / "step2"))
    assert log(tmp_path / "straight" / "step2") == log(tmp_path / "stopped" / "step2")


def test_workers_do_not_change_a_bit_and_seeds_do(tmp_path, base):
    runs = {"resident": {}, "workers": WORKERS, "seed": {"seed": 1}}
    for name, options in runs.items():
        train.main(arguments(tmp_path / name, step2__epochs=2, **base, **options))
    weights = {name: state(tmp_path / name / "step2")["state"]["model"] for name in runs}
    assert_same(weights["resident"], weights["workers"])
    assert not torch.equal(weights["resident"]["conv1.weight"], weights["seed"]["conv1.weight"])


def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path, base):
    options = {**base, "step2__epochs": 2, "data__batch_size": 20, "run__device": "cpu"}
    train.main(arguments(tmp_path / "one", run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", **options))
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "step2")["state"] for name in ("one", "two"))
    for key, value in one["model"].items():
        if "running" not in key and "tracked" not in key:  # BatchNorm's running statistics are those of rank 0
            assert torch.allclose(value, two["model"][key], rtol=0, atol=1e-5), key
    assert one["balance"]["gamma"].any()
    assert torch.allclose(one["balance"]["gamma"], two["balance"]["gamma"], rtol=1e-4)
    assert_same(one["balance"]["signs"], two["balance"]["signs"])
    flips = [[epoch["flip"] for epoch in part["progress"]["history"]] for part in (one, two)]
    assert flips[0] == flips[1]
    losses = [[epoch["loss"] for epoch in part["progress"]["history"]] for part in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_step_never_waits_for_the_device(monkeypatch):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown to that device
    meta = torch.device("meta")
    experiment = config.load(Config, PROJECT / "cfg.yaml")
    training, _ = data.load(experiment)
    _, network, teacher = (part.to(meta) for part in pair.build(experiment))
    balance, finite = Balance(network, "paper"), FiniteWatch()
    optimiser = train.adam(network.parameters(), 1e-3)
    everything = torch.arange(8, device=meta)
    for (batch,) in batches(training.to(meta), everything, 1, Labelled("digits"), meta):
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            target = teacher.eval()(batch.images)
        loss = distribution_loss(network(batch.images), target)
        loss.backward()
        gradient = torch.nn.utils.get_total_norm([p.grad for p in network.parameters()])
        finite.note(1, {"loss": loss, "gradient": gradient, **train.scales(balance)})
        optimiser.step()
        balance.step(train.mean_over_processes)
        balance.reconstruction()
    with pytest.raises(NotImplementedError, match="meta"):
        finite.require("a read", "of the device")


def test_both_steps_learn(tmp_path):
    """A fifth of the embedded default: far above chance after each step."""
    options = ["--teacher.epochs=4", "--step1.epochs=4", "--step2.epochs=2", "--seed=3"]
    train.main(["--config", str(PROJECT / "cfg.yaml"), "--out", str(tmp_path), *options])
    accuracy = {stage: eval.main(["--checkpoint", str(tmp_path / stage / "last.pt")]) for stage in train.STAGES}
    assert accuracy["teacher"]["top1"] > 80
    assert accuracy["step1"]["top1"] > 40 and accuracy["step2"]["top1"] > 40
    assert accuracy["step1"]["ops"] == accuracy["step2"]["ops"] and "flip_ratio" not in accuracy["step1"]
    scales = sum(m.out_channels for m in models.build("digits", 10).modules() if isinstance(m, BinaryConv2d))
    assert accuracy["step2"]["params"] - accuracy["step1"]["params"] == scales


RULES = ["released", "released_intended", "constant", "max", "none"]


@pytest.mark.parametrize(
    "options",
    [{"binary__gamma": rule} for rule in RULES]
    + [
        {"binary__gamma": "none", "binary__binarizer": "reactnet"},
        {"binary__gamma": "constant", "binary__binarizer": "released", "binary__alpha_init": "randn"},
        {"student__pad_value": -1},
        {"student__channels": "[7,9]"},
        {"run__precision": "bf16"},
        {"loss__label_weight": 0.5},
        {"decay_norm_bias": "false", "step2__weight_decay": 1e-5},
    ],
    ids=lambda options: ",".join(f"{k.partition('__')[2] or k}={v}" for k, v in options.items()),
)
def test_variants_run_and_are_evaluated(tmp_path, base, options):
    if "student__channels" in options or "student__pad_value" in options:  # another student needs its own step 1
        base = {"teacher__checkpoint": base["teacher__checkpoint"], "step1__epochs": 1}
    train.main(arguments(tmp_path, step2__epochs=1, **base, **options))
    lines = log(tmp_path / "step2")
    assert all(np.isfinite(line["distribution"]) for line in lines if line["split"] == "train")
    assert ("label" in lines[1]) == ("loss__label_weight" in options)
    metrics = eval.main(["--checkpoint", str(tmp_path / "step2" / "last.pt")])
    assert metrics["top1"] == [line["top1"] for line in lines if line["split"] == "test"][-1]


def test_the_log_tells_oscillation_and_gamma_by_layer(tmp_path, base):
    train.main(arguments(tmp_path, **base))
    lines = [line for line in log(tmp_path / "step2") if line["split"] == "oscillation"]
    assert len(lines) == 3
    for line in lines:
        layers = len(line["layers"])
        for name in ("flip_ratio", "sequential_ratio", "epoch_flip_ratio", "gamma_mean"):
            assert len(line[name]) == layers == 4
        assert [len(channels) for channels in line["flip_channels"]] == [8, 8, 16, 16]
        assert 0 < line["flip"] < 1 and line["gamma_p100"] >= line["gamma_p50"] >= 0
    latent = [line for line in log(tmp_path / "step2") if line["split"] == "latent"]
    assert [line["epoch"] for line in latent] == [0, 1, 2, 3]
    assert all(sum(line["layer_counts"]) == 8 * 8 * 9 and sum(line["counts"]) == 8 * 9 for line in latent)


def test_a_second_run_moves_the_first_aside(tmp_path, base):
    words = arguments(tmp_path, step2__epochs=1, **base)
    train.main(words)
    first = (tmp_path / "step2" / "last.pt").read_bytes()
    train.main(words)
    assert (tmp_path / "step2-1" / "last.pt").read_bytes() == first
    assert_same(state(tmp_path / "step2-1"), state(tmp_path / "step2"))


def spoil_weight(balance: Balance) -> None:
    layer = next(iter(balance.layers.values()))
    layer.weight.data[0, 0, 0, 0] = torch.nan


def spoil_gamma(balance: Balance) -> None:
    balance.gamma[3] = torch.inf


def kill_scale(balance: Balance) -> None:
    list(balance.layers.values())[2].scaling_factor.data[5] = 0


@pytest.mark.parametrize(
    ("spoil", "named"),
    [(spoil_weight, "gradient"), (spoil_gamma, "gamma"), (kill_scale, r"1/alpha \(a scale has reached 0\)")],
    ids=["weight", "gamma", "alpha"],
)
def test_what_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, base, monkeypatch, spoil, named):
    step, calls = Balance.step, []

    def spoiling(self, *words):
        step(self, *words)
        calls.append(1)
        if len(calls) == 5:
            spoil(self)

    monkeypatch.setattr(Balance, "step", spoiling)
    with pytest.raises(NonFiniteError, match=f"step 6 of stage step2: .*{named}"):
        train.main(arguments(tmp_path, **base))
    saved = checkpoint.load(tmp_path / "step2" / "last.pt")
    assert saved["step"] == 4
    assert all(value.isfinite().all() for value in saved["state"]["model"].values())


def bad_inputs(folder: Path, base: dict[str, Path]) -> dict[str, tuple[dict, str]]:
    """name -> (overrides, words of the message)."""
    start = base["step2__start"]
    truncated, malicious = folder / "truncated.pt", testing.hostile(folder / "malicious.pt", folder / "canary")
    truncated.write_bytes(start.read_bytes()[:2000])
    torch.save({"model": models.teacher("digits_teacher", 100).state_dict()}, folder / "hundred.pth")
    torch.save(models.build("digits", 7, "real").state_dict(), folder / "seven.pth")
    dead = models.build("digits", 10, "real")
    dead.layer2[0].binary_conv.weight.data[3] = 0
    torch.save(dead.state_dict(), folder / "dead.pth")
    return {
        "no step 1": ({"step2__start": folder / "none.pt", "stage": "step2"}, "step 2 starts from step 1's weights"),
        "no teacher": ({"teacher__checkpoint": folder / "none.pt"}, "there is no teacher"),
        "teacher of other classes": ({"teacher__checkpoint": folder / "hundred.pth"}, "100 classes.* 10"),
        "step 1 of other classes": ({"step2__start": folder / "seven.pth"}, "7 classes.* 10"),
        "step 1 of other channels": ({"student__channels": "[4,8]"}, "does not fit digits"),
        "a teacher as step 1": ({"step2__start": base["teacher__checkpoint"]}, "does not fit digits|classes"),
        "dead channel": ({"step2__start": folder / "dead.pth"}, r"channels \[3\] of layer2.0.binary_conv hold zeros"),
        "truncated": ({"step2__start": truncated}, "cannot be read as weights"),
        "malicious": ({"step2__start": malicious}, "never executed"),
        "channels of another number": ({"student__channels": "[8,16,32]"}, "give 2 numbers"),
        "channels where there is no choice": ({"student__name": "resnet18", "student__channels": "[8]"}, "fixed"),
        "no channels": ({"student__channels": "[8,0]"}, "student.channels"),
        "unknown student": ({"student__name": "digit"}, "did you mean digits"),
        "unknown teacher": ({"teacher__name": "digit_teacher"}, "did you mean digits_teacher"),
        "unknown rule": ({"binary__gamma": "papr"}, "binary.gamma"),
        "negative gamma": ({"binary__gamma_value": -1}, "binary.gamma_value"),
        "gamma not a number": ({"binary__gamma_value": "nan"}, "binary.gamma_value"),
        "gamma of ReActNet's scale": ({"binary__binarizer": "reactnet"}, "give --binary.gamma none"),
        "looking ahead in parts": (
            {"binary__gamma": "released_intended", "run__micro_batches": 2},
            "largest gradient of a whole step",
        ),
        "nothing to start from": ({"step1__epochs": 0, "step2__start": None}, "step1.epochs 0"),
        "pad value": ({"student__pad_value": 2}, "student.pad_value"),
        "smaller than a batch": ({"data__limit": 20}, "fewer than data.batch_size 25"),
        "unknown key": ({"binary__gama": "paper"}, "not an option, did you mean binary.gamma"),
        "missing data": ({"data__name": "cifar10", "data__root": folder / "nowhere"}, "cifar-10-batches-py"),
        "label out of range": (
            {"data__name": "cifar10", "data__root": image_archive(folder, [3] * 40 + [11])},
            "first is 11 of image 40",
        ),
    }


BAD = """no step 1|no teacher|teacher of other classes|step 1 of other classes|step 1 of other channels
a teacher as step 1|dead channel|truncated|malicious|channels of another number|channels where there is no choice
no channels|unknown student|unknown teacher|unknown rule|negative gamma|gamma not a number|gamma of ReActNet's scale
looking ahead in parts|nothing to start from|pad value|smaller than a batch|unknown key|missing data
label out of range"""
BAD = BAD.replace("\n", "|").split("|")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written_over(tmp_path, base, name):
    cases = bad_inputs(tmp_path, base)
    assert list(cases) == BAD
    overrides, words = cases[name]
    kept = tmp_path / "run" / "step2" / "last.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"an earlier result")
    given = {key: value for key, value in {**base, **overrides}.items() if value is not None}
    with pytest.raises(InputError, match=words):
        train.main(arguments(tmp_path / "run", **given))
    assert kept.read_bytes() == b"an earlier result" and list(kept.parent.iterdir()) == [kept]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step2"]
    assert not (tmp_path / "canary").exists()


def test_step2_alone_without_step1_is_refused(tmp_path, base):
    words = arguments(tmp_path / "run", teacher__checkpoint=base["teacher__checkpoint"])
    with pytest.raises(InputError, match=r"step1/last.pt: step 2 starts from step 1's weights; run stage step1 first"):
        train.main([*words, "--stage", "step2"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (train, ["--config", str(PROJECT / "cfg.yaml"), "--binary.gamma", "sign"], "error: --binary.gamma"),
        (eval, ["--checkpoint", "none.pt"], "error: none.pt: there is no such checkpoint"),
    ],
)
def test_bad_input_exits_with_2(monkeypatch, capsys, script, words, message):
    monkeypatch.setattr("sys.argv", ["script.py", *words])
    with pytest.raises(SystemExit) as left:
        entry(script.main)
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.startswith(message) and "Traceback" not in told


@pytest.mark.parametrize(("name", "option"), [("teacher", "teacher__checkpoint"), ("start", "step2__start")])
def test_resume_refuses_another_experiment(tmp_path, base, name, option):
    copied = checkpoint.load(base[option])
    checkpoint.save(tmp_path / "copied.pt", copied)
    words = arguments(tmp_path, **{**base, option: tmp_path / "copied.pt"}, step2__epochs=1)
    train.main(words)
    before = state(tmp_path / "step2")
    with pytest.raises(InputError, match=r"binary.gamma: paper -> max"):
        train.main([*words, "--binary.gamma=max", "--resume=auto"])
    next(value for key, value in copied["state"]["model"].items() if key.endswith("weight")).add_(1)
    checkpoint.save(tmp_path / "copied.pt", copied)
    with pytest.raises(InputError, match=f"the {name} has changed"):
        train.main([*words, "--resume=auto"])
    assert_same(before, state(tmp_path / "step2"))
    train.main([*words, "--resume=auto", "--resume_force=true"])


def test_step1_may_start_from_given_weights(tmp_path, base):
    given = checkpoint.load(base["step2__start"])["state"]["model"]
    options = {"step1__start": base["step2__start"], "step1__lr": 1e-9, "step1__epochs": 1, "step2__epochs": 0}
    train.main(arguments(tmp_path, teacher__checkpoint=base["teacher__checkpoint"], **options))
    found = state(tmp_path / "step1")["state"]["model"]
    assert all(torch.allclose(found[key], given[key], atol=1e-6) for key in given if "weight" in key)


def test_auto_follows_the_rule():
    rules = {"paper": "paper", "max": "paper", "none": "paper", "released": "released", "released_intended": "released"}
    assert {rule: pair.binarizer(Binary(gamma=rule)) for rule in rules} == rules
    assert pair.binarizer(Binary(gamma="released", binarizer="paper")) == "paper"


def test_eval_of_official_checkpoints(tmp_path, base):
    network = models.build("digits", 10, "released")
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "m")
    words = ["--checkpoint", str(tmp_path / "m"), "--data.limit=50", "--data.batch_size=10"]
    metrics = eval.main([*words, "--config", str(PROJECT / "cfg.yaml")])
    assert metrics["params"] == sum(p.numel() for p in network.parameters()) and "flip_ratio" not in metrics
    with pytest.raises(CheckpointError, match="needs --config"):
        eval.main(words)


OWN = [path for path in sorted((PROJECT / "configs").glob("*.yaml")) if families.family_of_file(str(path)) == ""]


@pytest.mark.long
@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_every_config_takes_a_step(tmp_path, path):
    experiment = config.load(Config, path)
    short = ["--teacher.epochs=1", "--step1.epochs=1", "--step2.epochs=1"]
    words = ["--config", str(path), "--out", str(tmp_path / "run"), *short]
    if experiment.data.name == "imagenet":
        image_folders(tmp_path, images=1)
        words += [f"--data.root={tmp_path}", "--data.batch_size=2", "--data.workers=0"]
        torch.save(models.teacher(experiment.teacher.name, 2).state_dict(), tmp_path / "teacher.pth")
        words.append(f"--teacher.checkpoint={tmp_path / 'teacher.pth'}")
    else:
        archive = image_archive(tmp_path, list(range(10)), 10)
        words += [f"--data.root={archive}", "--data.batch_size=8", "--data.limit=8"]
    train.main(words)
    saved = checkpoint.load(tmp_path / "run" / "step2" / "last.pt")
    assert saved["step"] == 1 and isinstance(saved["state"]["balance"]["gamma"], torch.Tensor)
    kinds = {type(module) for module in pair.build(experiment, 2)[1].modules()}
    assert BinaryConv2d in kinds and nn.Linear in kinds
