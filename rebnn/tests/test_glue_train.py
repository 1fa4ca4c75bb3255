"""Binary BERT's commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import contextlib
import json
import os
import signal
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, Interrupted
from common.finite import FiniteWatch
from common.run import Run, entry
from common.testing import assert_same, log, state

import numpy as np
import pytest
import torch

from rebnn import eval_glue, train, train_glue
from rebnn.glue import losses, pair
from rebnn.glue.bert import real_bert
from rebnn.glue.config import Config
from rebnn.glue.data import batches, load
from rebnn.glue.layers import Form
from rebnn.glue.optim import BertAdam, groups
from rebnn.glue.tasks import TASKS
from rebnn.method import Balance
from rebnn.tests.test_glue import write_task

PROJECT = Path(train_glue.__file__).parent
# Three steps an epoch.
TINY = {
    "data.limit": 60,
    "data.batch_size": 20,
    "data.max_length": 16,
    "data.vocab_size": 400,
    "network.hidden": 16,
    "network.heads": 2,
    "network.intermediate": 32,
    "teacher.epochs": 1,
    "optim.epochs": 2,
    "run.log_every": 1,
}
command = partial(testing.python, PROJECT)
arguments = partial(testing.arguments, PROJECT / "configs" / "embedded_glue.yaml", TINY)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A trained teacher's last.pt, which carries its vocabulary."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("glue")
    train_glue.main([*arguments(out), "--stage", "teacher"])
    return out / "teacher" / "last.pt"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One thread, and no pictures, which take longer than these runs; test_smoke has them."""
    torch.set_num_threads(1)
    for name in ("draw_oscillation", "draw_latent"):
        monkeypatch.setattr(train_glue.figures, name, lambda *_: False)


class Crash(Exception):
    """Stands for a process that dies."""


@contextlib.contextmanager
def at_step(monkeypatch, step: int, what):
    """Something happens where a run first watches the losses of a step."""
    watch, pending = Run.watch, [what]

    def watched(run, number, *rest):
        if number == step and pending:
            pending.pop()()
        return watch(run, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "watch", watched)
        yield


def crash() -> None:
    raise Crash


@pytest.mark.smoke
def test_smoke(tmp_path, capsys):
    """Two steps of teacher and student as typed, and an evaluation."""
    short = ["--data.limit=40", "--data.batch_size=20", "--teacher.epochs=1", "--optim.epochs=1"]
    words = ["train_glue.py", "--config", "configs/embedded_glue.yaml", "--out", str(tmp_path / "run"), *short]
    done = command(words)
    assert done.returncode == 0, done.stderr
    for stage in ("teacher", "student"):
        files = {path.name for path in (tmp_path / "run" / stage).iterdir()}
        assert {"config.yaml", "env.json", "log.jsonl", "last.pt"} <= files
        assert checkpoint.load(tmp_path / "run" / stage / "last.pt")["step"] == 2
    assert len(list((tmp_path / "run" / "student" / "samples").glob("*.png"))) == 2
    eval_glue.main(["--checkpoint", str(tmp_path / "run" / "student" / "last.pt")])
    metrics = json.loads((tmp_path / "run" / "student" / "metrics.json").read_text())
    assert 0 <= metrics["accuracy"] <= 100 and metrics["flip_ratio"] > 0 and "flip_ratio" in capsys.readouterr().out


def test_bad_input_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_glue.py", "--data.name", "sst-2"])
    with pytest.raises(SystemExit) as left:
        entry(train_glue.main)
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.startswith("error: --data.name") and "sst2" in told


@pytest.mark.parametrize(
    ("options", "step"),
    [({}, 2), ({}, 5), ({"student__recipe": "bit", "optim__evaluate_every": 2}, 5)],
    ids=["inside the first epoch", "in the second", "bit, evaluated inside epochs"],
)
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, teacher, monkeypatch, options, step):
    options = {**options, "run__save_every": 1, "teacher__checkpoint": teacher}
    train_glue.main(arguments(tmp_path / "straight", **options))
    words = arguments(tmp_path / "killed", **options)
    with at_step(monkeypatch, step, crash), pytest.raises(Crash):
        train_glue.main(words)
    assert state(tmp_path / "killed" / "student")["step"] == step - 1
    train_glue.main([*words, "--resume", "auto"])
    straight, killed = tmp_path / "straight" / "student", tmp_path / "killed" / "student"
    kept = state(straight)
    assert kept["step"] == 6 and kept["state"]["balance"]["gamma"].any() and kept["state"]["vocabulary"]
    assert_same(kept, state(killed))
    assert log(straight) == log(killed)


def test_sigterm_in_the_teacher_saves_and_resumes_through_the_student(tmp_path, monkeypatch):
    train_glue.main(arguments(tmp_path / "straight", optim__epochs=1))
    words = arguments(tmp_path / "stopped", optim__epochs=1)
    with at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Interrupted) as stopped:
        train_glue.main(words)
    assert stopped.value.code == 143 and not (tmp_path / "stopped" / "student").exists()
    train_glue.main([*words, "--resume", "auto"])
    for stage in ("teacher", "student"):
        assert_same(state(tmp_path / "straight" / stage), state(tmp_path / "stopped" / stage))


def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path, teacher):
    options = {
        "teacher__checkpoint": teacher,
        "student__recipe": "bit",
        "network__dropout": 0.0,
        "network__attention_dropout": 0.0,
        "run__device": "cpu",
    }
    train_glue.main(arguments(tmp_path / "one", run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", **options), script="train_glue.py")
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "student")["state"] for name in ("one", "two"))
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], rtol=0, atol=1e-4), key
    assert one["balance"]["gamma"].any()
    assert one["progress"]["best"] == two["progress"]["best"]
    flips = [[epoch["flip"] for epoch in part["progress"]["history"]] for part in (one, two)]
    assert flips[0] == pytest.approx(flips[1], rel=0.01)


def test_a_step_never_waits_for_the_device(monkeypatch):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    meta = torch.device("meta")
    for recipe in ("bibert", "bit", "binarybert"):
        words = [f"--student.recipe={recipe}", "--data.limit=40", "--data.vocab_size=400", "--data.batch_size=8"]
        experiment = config.override(config.load(Config, PROJECT / "configs" / "embedded_glue.yaml"), words)
        data = load(experiment)
        sizes = pair.sizes_of(experiment, data)
        network, asked = (part.to(meta) for part in (pair.binary_bert(sizes, pair.form(experiment)), real_bert(sizes)))
        balance, finite = Balance(network, "paper"), FiniteWatch()
        optimiser = BertAdam(groups(network, 1e-3, 1e-3, 0.01), 1e-3)
        (batch,) = next(batches(data.train, torch.arange(8), experiment.data, meta))
        with torch.no_grad():
            wanted = asked(batch.ids, batch.segments, batch.mask)
        found = network(batch.ids, batch.segments, batch.mask)
        terms = {
            "soft": train_glue.on_teacher(found.logits, wanted.logits, batch.labels),
            "label": train_glue.on_labels(found.logits, batch.labels),
            "hidden": losses.hidden_direction(found.hidden, wanted.hidden),
            "mse": losses.hidden_mse(found.hidden, wanted.hidden),
        }
        if recipe != "binarybert":
            terms["relations"] = losses.relation_loss(found.relations, wanted.relations)
        sum(terms.values()).backward()
        finite.note(1, terms | train.scales(balance))
        optimiser.step()
        balance.step(train.mean_over_processes)
        balance.reconstruction()
        with pytest.raises(NotImplementedError, match="meta"):
            finite.require("a read", "of the device")


@pytest.fixture(scope="session")
def by_heart(tmp_path_factory) -> dict:
    """Sixteen sentences, twelve times in the training part and once in the other, and a teacher that knows them."""
    root = tmp_path_factory.mktemp("by_heart")
    words = ["good", "fine", "great", "warm", "bad", "dull", "poor", "film", "plot", "cast", "the", "of", "and", "it"]
    draw = np.random.default_rng(0)
    rows = [" ".join(draw.choice(words, 6)) + f"\t{draw.integers(2)}" for _ in range(16)]
    for part, times in (("train", 12), ("dev", 1)):
        (root / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *rows * times, ""]))
    options = {
        "data__name": "sst2",
        "data__root": root,
        "data__limit": 0,
        "data__batch_size": 16,
        "data__vocab_size": 80,
        "network__hidden": 32,
        "network__dropout": 0.0,
        "network__attention_dropout": 0.0,
    }
    train_glue.main([*arguments(root / "run", **options, teacher__epochs=6, teacher__lr=2e-3), "--stage", "teacher"])
    return options | {"teacher__checkpoint": root / "run" / "teacher" / "last.pt"}


@pytest.mark.parametrize("recipe", ["bibert", "bit", "binarybert"])
def test_a_batch_of_sentences_is_learnt_by_heart(tmp_path, by_heart, recipe):
    options = {"student__recipe": recipe, "optim__lr": 2e-3, "optim__epochs": 12, "optim__ternary_epochs": 4}
    train_glue.main(arguments(tmp_path, **by_heart, **options))
    assert eval_glue.main(["--checkpoint", str(tmp_path / "student" / "best.pt")])["accuracy"] == 100


@pytest.mark.parametrize(
    "options",
    [
        {"binary__gamma": "max"},
        {"binary__gamma": "constant", "binary__gamma_value": 1e-2},
        {"binary__gamma": "none"},
        {"binary__gamma": "released", "binary__alpha_init": "randn"},
        {"binary__gamma": "released_intended"},
        {"binary__gamma": "none", "binary__binarizer": "recipe"},
        {"student__recipe": "bit"},
        {"student__recipe": "bit", "binary__gamma": "none", "binary__binarizer": "recipe"},
        {"student__recipe": "bit", "student__qkv_bias": "true", "teacher__dropout": "true"},
        {"student__recipe": "binarybert", "student__bits": 4, "optim__ternary_epochs": 1},
        {"loss__form": "bit"},
        {"optim__clip": 0, "data__trim": "false", "run__precision": "bf16"},
    ],
    ids=lambda options: ",".join(f"{k.partition('__')[2]}={v}" for k, v in options.items()),
)
def test_variants_run_and_are_evaluated(tmp_path, teacher, options):
    train_glue.main(arguments(tmp_path, optim__epochs=1, teacher__checkpoint=teacher, **options))
    lines = log(tmp_path / "student")
    trained = [line for line in lines if line["split"] == "train"]
    assert trained and all(np.isfinite(line["soft"]) for line in trained)
    bibert = options.get("student__recipe", "bibert") == "bibert" and "loss__form" not in options
    assert ("relations" in trained[0]) == ("label" in trained[0]) == bibert
    metrics = eval_glue.main(["--checkpoint", str(tmp_path / "student" / "last.pt")])
    assert metrics["accuracy"] == [line["accuracy"] for line in lines if line["split"] == "test"][-1]
    assert (tmp_path / "ternary").exists() == (options.get("student__recipe") == "binarybert")


def test_a_constant_gamma_holds_signs_back(tmp_path, teacher):
    found = {}
    for value in (0.0, 0.1):
        options = {"binary__gamma": "constant", "binary__gamma_value": value, "optim__epochs": 4}
        out = tmp_path / str(value)
        train_glue.main(arguments(out, teacher__checkpoint=teacher, **options))
        found[value] = eval_glue.main(["--checkpoint", str(out / "student" / "last.pt")])
    assert found[0.1]["flip_ratio"] < 0.5 * found[0.0]["flip_ratio"]


def test_the_log_tells_what_was_cut_and_how_signs_move(tmp_path):
    train_glue.main(arguments(tmp_path, data__max_length=300, network__positions=12))
    lines = log(tmp_path / "student")
    assert lines[0]["split"] == "data" and lines[0]["longest"] == 12 and lines[0]["train_truncated"] == 60
    moved = [line for line in lines if line["split"] == "oscillation"]
    assert len(moved) == 2 and len(moved[0]["flip_ratio"]) == len(moved[0]["layers"]) == 1 + 6 * 2 + 1
    assert all(0 <= line["flip"] < 1 and line["gamma_p100"] >= line["gamma_p50"] >= 0 for line in moved)


def test_pairs_two_development_sets_and_numbers(tmp_path):
    for name in ("mnli", "stsb"):
        write_task(tmp_path, name, 20)
        out = tmp_path / name
        train_glue.main(arguments(out, data__name=name, data__root=tmp_path, data__vocab_size=100, optim__epochs=1))
        (tmp_path / name / "best").mkdir()
    paths = [str(tmp_path / name / "student" / "last.pt") for name in ("mnli", "stsb")]
    metrics = eval_glue.main(["--checkpoint", *paths])
    assert {"pearson", "spearman", "score"} <= metrics.keys()
    both = json.loads((tmp_path / "mnli" / "student" / "metrics.json").read_text())
    assert {"accuracy", "accuracy_mismatched"} <= both.keys()
    assert checkpoint.load(paths[1])["state"]["model"]["classifier.weight"].shape[0] == 1


def test_weights_of_transformers_teach(tmp_path, teacher):
    """A folder with weights and vocabulary, as transformers saves it."""
    own = checkpoint.load(teacher)
    folder = tmp_path / "given"
    folder.mkdir()
    torch.save(own["state"]["model"], folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join([*own["state"]["vocabulary"], ""]), encoding="utf-8")
    train_glue.main(arguments(tmp_path / "a", teacher__checkpoint=folder, optim__epochs=1))
    train_glue.main(arguments(tmp_path / "b", teacher__checkpoint=teacher, optim__epochs=1))
    found = [state(tmp_path / name / "student")["state"]["model"] for name in "ab"]
    assert not (tmp_path / "a" / "teacher").exists()
    assert_same(*found)
    start = {"teacher__start": folder, "teacher__lr": 1e-9, "stage": "teacher"}
    train_glue.main(arguments(tmp_path / "c", **start))
    tuned = state(tmp_path / "c" / "teacher")["state"]["model"]
    assert all(torch.allclose(tuned[name], value, atol=1e-6) for name, value in own["state"]["model"].items())


BAD = {
    "unknown task": ({"data__name": "sst3"}, "data.name"),
    "missing data": ({"data__name": "rte", "data__root": "{tmp}/none"}, "RTE/train.tsv: there is no such file"),
    "missing vocabulary": ({"data__vocab": "{tmp}/vocab.txt"}, "vocab.txt: no readable vocabulary"),
    "missing teacher": ({"teacher__checkpoint": "{tmp}/none"}, "there are no weights; give --teacher.checkpoint"),
    "teacher of other sizes": ({"network__hidden": 32}, "of another shape"),
    "heads": ({"network__heads": 3}, "no multiple of network.heads"),
    "gamma of the recipe's scale": ({"binary__binarizer": "recipe"}, "give --binary.gamma none"),
    "looking ahead in parts": (
        {"binary__gamma": "released_intended", "run__micro_batches": 2},
        "largest gradient of a whole step",
    ),
    "unequal heads": ({"student__recipe": "binarybert", "loss__form": "bibert"}, "Q, K and V cannot be compared"),
    "half a head": ({"student__recipe": "binarybert", "network__heads": 1}, "give even numbers"),
    "no room for words": ({"data__max_length": 3}, "holds no words"),
    "smaller than a batch": ({"data__limit": 10}, "fewer than data.batch_size 20"),
    "negative gamma": ({"binary__gamma_value": -1}, "binary.gamma_value"),
    "unknown key": ({"student__recipes": "bit"}, "not an option, did you mean student.recipe"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written_over(tmp_path, teacher, name):
    overrides, words = BAD[name]
    kept = tmp_path / "run" / "student" / "last.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"an earlier result")
    filled = {key: str(value).replace("{tmp}", str(tmp_path)) for key, value in overrides.items()}
    with pytest.raises(InputError, match=words):
        train_glue.main(arguments(tmp_path / "run", **{"teacher__checkpoint": teacher, **filled}))
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [kept]
    assert kept.read_bytes() == b"an earlier result"


def test_eval_refuses_what_is_not_a_bert(tmp_path, teacher):
    with pytest.raises(CheckpointError, match="no such checkpoint file; an official checkpoint needs --config"):
        eval_glue.main(["--checkpoint", str(tmp_path / "none.pt")])
    with pytest.raises(InputError, match="--out names one file"):
        eval_glue.main(["--checkpoint", str(teacher), str(teacher), "--out", str(tmp_path / "m.json")])


def test_a_released_folder_is_evaluated(tmp_path, teacher):
    own = checkpoint.load(teacher)
    experiment = config.from_dict(Config, own["config"])
    data = load(experiment, own["state"]["vocabulary"])
    network = pair.binary_bert(pair.sizes_of(experiment, data), Form("bibert", "recipe"))
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "vocab.txt").write_text("\n".join([*own["state"]["vocabulary"], ""]), encoding="utf-8")
    file = tmp_path / "released.yaml"
    given = config.override(experiment, ["--binary.binarizer=recipe", "--binary.gamma=none"])
    file.write_text(config.dump(given), encoding="utf-8")
    words = ["--checkpoint", str(tmp_path), "--config", str(file), f"--data.vocab={tmp_path}"]
    metrics = eval_glue.main(words)
    assert metrics["params"] == sum(p.numel() for p in network.parameters()) and "flip_ratio" not in metrics
    assert (tmp_path / "metrics.json").is_file()


def glue_configs() -> list[Path]:
    """The configs of this family, by the command in their first lines."""
    return sorted(p for p in (PROJECT / "configs").glob("*.yaml") if "train_glue.py" in p.read_text(encoding="utf-8"))


def test_every_task_has_its_config():
    tasks = {config.load(Config, path).data.name for path in glue_configs()}
    assert tasks == {"topics", *TASKS}


@pytest.mark.long
@pytest.mark.parametrize("path", glue_configs(), ids=lambda path: path.stem)
def test_every_config_takes_a_step(tmp_path, path):
    experiment = config.load(Config, path)
    words = ["--config", str(path), "--out", str(tmp_path / "run"), "--data.batch_size=2", "--data.limit=2"]
    words += ["--teacher.epochs=1", "--optim.epochs=1", "--optim.ternary_epochs=1", "--network.layers=2"]
    if experiment.data.name != "topics":
        write_task(tmp_path, experiment.data.name, 2)
        words.append(f"--data.root={tmp_path}")
    train_glue.main(words)
    saved = checkpoint.load(tmp_path / "run" / "student" / "last.pt")
    assert saved["step"] == 1 and isinstance(saved["state"]["balance"]["gamma"], torch.Tensor)
