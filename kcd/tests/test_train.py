"""The commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import contextlib
import json
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, NonFiniteError
from common.finite import FiniteWatch
from common.labelled import Labelled, batches
from common.testing import image_archive, image_folders, log, state

import numpy as np
import pytest
import torch

from kcd import data, distillers, eval, models, pair, train
from kcd.config import Config, Distill
from kcd.method import Condenser

PROJECT = Path(train.__file__).parent
# Four steps an epoch, augmentation on, condensation with summary after every epoch.
TINY = {
    "data.limit": 128,
    "data.batch_size": 32,
    "data.crop_padding": 1,
    "data.flip": "true",
    "teacher.width": 4,
    "student.width": 2,
    "condense.interval": 1,
    "optim.epochs": 3,
    "optim.decay_epochs": "[2]",
    "distill.init_epochs": 1,
    "distill.crd_negatives": 16,
    "run.log_every": 1,
}


arguments = partial(testing.arguments, PROJECT / "cfg.yaml", TINY)
command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)
# The share of time that condensation takes is what a clock says.
assert_same = partial(testing.assert_same, ignore=("overhead",))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("teacher")
    torch.set_num_threads(1)
    train.main([*arguments(out), "--stage", "teacher"])
    return out / "teacher" / "last.pt"


@pytest.mark.smoke
def test_smoke(tmp_path):
    """Two steps of both stages and an evaluation, as typed."""
    short = ["--teacher.epochs=1", "--optim.epochs=1", "--data.limit=128"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    for stage in ("teacher", "student"):
        files = {path.name for path in (tmp_path / "run" / stage).iterdir()}
        assert {"config.yaml", "env.json", "log.jsonl", "last.pt"} <= files
        assert any(name.startswith("events.out.tfevents") for name in files)
        assert checkpoint.load(tmp_path / "run" / stage / "last.pt")["step"] == 2
    done = command(["eval.py", "--checkpoint", str(tmp_path / "run" / "student" / "last.pt")])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "student" / "metrics.json").read_text())
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100 and metrics["sample_visits"] == 1
    assert "top1" in done.stdout


WORKERS = {"data__resident": "false", "data__workers": 2}


@pytest.mark.parametrize(
    ("method", "options", "step"),
    [("kd", {}, 1), ("kd", {}, 6), ("kd", {}, 8), ("kd", WORKERS, 6), ("crd", {}, 6)],
    ids=["before any checkpoint", "inside an epoch", "at its end", "two workers", "crd memories"],
)
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, teacher, method, options, step):
    options = {**options, "teacher__checkpoint": teacher, "distill__method": method}
    train.main(arguments(tmp_path / "straight", **options))
    words = arguments(tmp_path / "killed", run__save_every=5, **options)
    assert interrupted(words, 9, step).returncode == -9
    done = command(["train.py", *words, "--resume", "auto"])
    assert done.returncode == 0, done.stderr
    straight, killed = tmp_path / "straight" / "student", tmp_path / "killed" / "student"
    assert_same(state(straight), state(killed))
    assert log(straight) == log(killed)


def test_killed_in_the_initialisation(tmp_path, teacher):
    options = {"teacher__checkpoint": teacher, "distill__method": "abound", "optim__epochs": 2}
    train.main(arguments(tmp_path / "straight", **options))
    words = arguments(tmp_path / "killed", run__save_every=1, **options)
    assert interrupted(words, 9, 3).returncode == -9
    assert not (tmp_path / "killed" / "student").exists()
    assert command(["train.py", *words, "--resume", "auto"]).returncode == 0
    for stage in ("init", "student"):
        assert_same(state(tmp_path / "straight" / stage), state(tmp_path / "killed" / stage))


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path, teacher):
    train.main(arguments(tmp_path / "straight", teacher__checkpoint=teacher))
    words = arguments(tmp_path / "stopped", teacher__checkpoint=teacher)
    done = interrupted(words, 15, 6)
    assert done.returncode == 143 and "--resume auto" in done.stderr
    assert state(tmp_path / "stopped" / "student")["step"] == 6
    assert command(["train.py", *words, "--resume", "auto"]).returncode == 0
    assert_same(state(tmp_path / "straight" / "student"), state(tmp_path / "stopped" / "student"))
    assert log(tmp_path / "straight" / "student") == log(tmp_path / "stopped" / "student")


def test_workers_do_not_change_a_bit_and_seeds_do(tmp_path, teacher):
    runs = {
        "resident": {},
        "loader": {"data__resident": "false"},
        "workers": {"data__resident": "false", "data__workers": 2},
        "seed": {"seed": 1},
    }
    for name, options in runs.items():
        train.main(arguments(tmp_path / name, teacher__checkpoint=teacher, optim__epochs=2, **options))
    weights = {name: state(tmp_path / name / "student")["state"]["model"] for name in runs}
    assert_same(weights["resident"], weights["loader"])
    assert_same(weights["resident"], weights["workers"])
    assert not torch.equal(weights["resident"]["conv1.weight"], weights["seed"]["conv1.weight"])


def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path, teacher):
    # 130 images leave a last batch of 2, one image a process.
    options = {"teacher__checkpoint": teacher, "data__limit": 130, "optim__epochs": 2, "run__device": "cpu"}
    train.main(arguments(tmp_path / "one", run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", **options))
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "student")["state"] for name in ("one", "two"))
    for key, value in one["model"].items():
        if "running" not in key and "tracked" not in key:  # BatchNorm's running statistics are those of rank 0
            assert torch.allclose(value, two["model"][key], rtol=0, atol=1e-5), key
    for key in ("kept", "visits"):
        assert torch.equal(one["condenser"][key], two["condenser"][key]), key
    assert torch.allclose(one["condenser"]["total"], two["condenser"]["total"], atol=1e-4)
    assert one["progress"]["visits"] == two["progress"]["visits"]


@pytest.mark.parametrize("method", sorted(distillers.DISTILLERS))
def test_every_distiller_trains_under_condensation(tmp_path, teacher, method):
    # fsp and kdsvd compare channels one by one, so the student is as wide as the teacher.
    options = {"teacher__checkpoint": teacher, "distill__method": method, "student__width": 4, "optim__epochs": 2}
    train.main(arguments(tmp_path, **options, **({"distill__beta": 1} if method == "kdsvd" else {})))
    lines = log(tmp_path / "student")
    terms = {key for line in lines if line["split"] == "train" for key in line}
    assert ("method" in terms) == distillers.DISTILLERS[method].main_loss
    assert any("kept_per_class" in line for line in lines)
    assert (tmp_path / "init").is_dir() == distillers.DISTILLERS[method].init_stage
    assert eval.main(["--checkpoint", str(tmp_path / "student" / "last.pt")])["sample_visits"] < 1


@pytest.mark.parametrize(
    "options", [{"run__precision": "bf16"}, {"condense__version": "none"}, {"condense__balance_classes": "true"}]
)
def test_variants_run(tmp_path, teacher, options):
    train.main(arguments(tmp_path, teacher__checkpoint=teacher, optim__epochs=2, **options))
    assert all(np.isfinite(line.get("ce", 0)) for line in log(tmp_path / "student"))


@pytest.mark.parametrize("method", ["kd", "attention", "pkt", "crd"])
def test_a_step_never_waits_for_the_device(method, monkeypatch):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown to that device
    meta = torch.device("meta")
    training, _ = data.load(config.load(Config, PROJECT / "cfg.yaml"))
    student, teacher = (models.build("resnet8", 10, 4) for _ in range(2))
    shapes = [pair.feature_shapes(network, torch.zeros(1, 3, 8, 8)) for network in (student, teacher)]
    options = {"n_data": 1000, "n_classes": 10, "seed": 0, "labels": training.labels, "negatives": 16}
    distiller = distillers.build(method, *shapes, **options).to(meta)
    experiment = Config(distill=Distill(method, beta=1))
    step = pair.StudentStep(student.to(meta), distiller, experiment).train()
    trained = [p for p in step.parameters() if p.requires_grad]
    optimiser = train.sgd(experiment, trained, 0.1)
    condenser, finite, teacher = Condenser(1000, device=meta), FiniteWatch(), teacher.to(meta).eval()
    for (batch,) in batches(training.to(meta), condenser.kept[:8], 1, Labelled("digits"), meta):
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            features, target = teacher(batch.images, is_feat=True)
        terms, logits = step(batch.images, batch.labels, batch.index, features, target)
        condenser.record(batch.index, logits, target, batch.labels)
        sum(terms.values()).backward()
        gradient = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        finite.note(1, {**terms, "gradient": gradient})
        optimiser.step()
    with pytest.raises(NotImplementedError, match="meta"):
        finite.require("a read", "of the device")


def test_it_learns(tmp_path):
    words = ["--config", str(PROJECT / "cfg.yaml"), "--out", str(tmp_path), "--stage", "teacher"]
    train.main([*words, "--teacher.width=8", "--teacher.epochs=3"])
    assert eval.main(["--checkpoint", str(tmp_path / "teacher" / "last.pt")])["top1"] > 80


def test_a_second_run_moves_the_first_aside(tmp_path, teacher):
    words = arguments(tmp_path, teacher__checkpoint=teacher, optim__epochs=1)
    train.main(words)
    first = (tmp_path / "student" / "last.pt").read_bytes()
    train.main(words)
    assert (tmp_path / "student-1" / "last.pt").read_bytes() == first
    assert_same(state(tmp_path / "student-1"), state(tmp_path / "student"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, teacher, monkeypatch):
    forward, calls = pair.StudentStep.forward, []

    def spoiled(self, *inputs):
        losses, logits = forward(self, *inputs)
        calls.append(1)
        return ({**losses, "kd": losses["kd"] * float("nan")} if len(calls) == 6 else losses), logits

    monkeypatch.setattr(pair.StudentStep, "forward", spoiled)
    with pytest.raises(NonFiniteError, match=r"step 6 of stage student: kd, gradient"):
        train.main(arguments(tmp_path, teacher__checkpoint=teacher))
    saved = checkpoint.load(tmp_path / "student" / "last.pt")
    assert saved["step"] == 4
    assert all(value.isfinite().all() for value in saved["state"]["model"].values())


def bad_inputs(folder: Path, teacher: Path) -> dict[str, tuple[dict, str]]:
    """name -> (overrides, words of the message)."""
    truncated, malicious = folder / "truncated.pt", testing.hostile(folder / "malicious.pt", folder / "canary")
    truncated.write_bytes(teacher.read_bytes()[:2000])
    torch.save({"model": models.build("resnet8", 100, 4).state_dict()}, folder / "hundred.pth")
    return {
        "missing data": ({"data__name": "cifar10", "data__root": folder / "nowhere"}, "cifar-10-batches-py"),
        "class count": ({"teacher__checkpoint": folder / "hundred.pth"}, r"fc.weight \[100, 16\] for \[10, 16\]"),
        "label out of range": (
            {"data__name": "cifar10", "data__root": image_archive(folder, [3] * 40 + [11])},
            "first is 11 of image 40",
        ),
        "architecture": ({"teacher__name": "resnet14"}, "does not fit resnet14"),
        "truncated": ({"teacher__checkpoint": truncated}, "cannot be read as weights"),
        "malicious": ({"teacher__checkpoint": malicious}, "never executed"),
        "no teacher": ({"teacher__checkpoint": folder / "none.pt"}, "there is no teacher"),
        "tau 0": ({"condense__tau": 0}, "condense.tau"),
        "tau above 1": ({"condense__tau": 1.01}, "condense.tau"),
        "smaller than a batch": ({"data__limit": 20}, "fewer than data.batch_size 32"),
        "unknown key": ({"optim__learing_rate": 1}, "not an option"),
        "unknown network": ({"student__name": "resnet9"}, "did you mean resnet8"),
        "width of a vgg": ({"student__name": "vgg8"}, "no free width"),
        "unknown method": ({"distill__method": "kb"}, "kb"),
        "kdsvd without weight": ({"distill__method": "kdsvd", "student__width": 4}, "give beta"),
        "unequal channels": ({"distill__method": "fsp"}, "equal channels"),
    }


BAD = [
    "missing data",
    "class count",
    "label out of range",
    "architecture",
    "truncated",
    "malicious",
    "no teacher",
    "tau 0",
    "tau above 1",
    "smaller than a batch",
    "unknown key",
    "unknown network",
    "width of a vgg",
    "unknown method",
    "kdsvd without weight",
    "unequal channels",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written_over(tmp_path, teacher, name):
    overrides, words = bad_inputs(tmp_path, teacher)[name]
    kept = tmp_path / "run" / "student" / "last.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"an earlier result")
    with pytest.raises(InputError, match=words):
        train.main(arguments(tmp_path / "run", **{"teacher__checkpoint": teacher, **overrides}))
    assert kept.read_bytes() == b"an earlier result" and list(kept.parent.iterdir()) == [kept]
    assert not (tmp_path / "canary").exists()


def test_bad_input_exits_with_2(tmp_path):
    done = command(["train.py", "--config", "cfg.yaml", "--condense.tau", "7"])
    assert done.returncode == 2 and done.stderr.startswith("error: --condense.tau") and "Traceback" not in done.stderr
    done = command(["eval.py", "--checkpoint", str(tmp_path / "none.pt")])
    assert done.returncode == 2 and "there is no such checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_resume_refuses_another_experiment(tmp_path, teacher):
    copied = checkpoint.load(teacher)
    checkpoint.save(tmp_path / "teacher.pt", copied)
    words = arguments(tmp_path, teacher__checkpoint=tmp_path / "teacher.pt", optim__epochs=1)
    train.main(words)
    before = state(tmp_path / "student")
    with pytest.raises(InputError, match=r"condense.tau: 0.7 -> 0.5"):
        train.main([*words, "--condense.tau=0.5", "--resume=auto"])
    copied["state"]["model"]["conv1.weight"] += 1
    checkpoint.save(tmp_path / "teacher.pt", copied)
    with pytest.raises(InputError, match="the teacher has changed"):
        train.main([*words, "--resume=auto"])
    assert_same(before, state(tmp_path / "student"))
    train.main([*words, "--resume=auto", "--resume_force=true"])


def test_eval_of_official_checkpoints(tmp_path, teacher):
    network = models.build("resnet8", 10, 4)
    folder = tmp_path / "save" / "models" / "resnet8_vanilla"
    folder.mkdir(parents=True)
    torch.save({"model": network.state_dict(), "accuracy": 1.0, "epoch": 240}, folder / "ckpt_epoch_240.pth")
    config_file = tmp_path / "pair.yaml"
    config_file.write_text(
        config.dump(config.override(config.load(Config, PROJECT / "cfg.yaml"), ["--teacher.width=4"]))
    )
    words = ["--checkpoint", str(folder / "ckpt_epoch_240.pth")]
    metrics = eval.main([*words, "--config", str(config_file), "--role", "teacher"])
    assert metrics["params"] == sum(p.numel() for p in network.parameters())
    with pytest.raises(CheckpointError, match="needs --config"):
        eval.main(words)


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_a_step(tmp_path, path):
    experiment = config.load(Config, path)
    words = ["--config", str(path), "--out", str(tmp_path / "run"), "--optim.epochs=1", "--teacher.epochs=1"]
    if experiment.data.name == "imagenet":
        image_folders(tmp_path, images=1)
        words += [f"--data.root={tmp_path}", "--data.batch_size=2", "--data.workers=0"]
        torch.save(models.build(experiment.teacher.name, 2).state_dict(), tmp_path / "teacher.pth")
        words.append(f"--teacher.checkpoint={tmp_path / 'teacher.pth'}")
    else:
        classes = {"cifar10": 10, "cifar100": 100}[experiment.data.name]
        words += [
            f"--data.root={image_archive(tmp_path, list(range(classes)), classes)}",
            "--data.batch_size=8",
            "--data.limit=8",
        ]
    train.main([*words, "--distill.crd_negatives=4"])
    assert checkpoint.load(tmp_path / "run" / "student" / "last.pt")["step"] == 1
