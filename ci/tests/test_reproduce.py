"""The whole runner on a small project whose training is arithmetic."""

import json
import re
import sys

import pytest

from ci import report, reproduce, verdict

CONFIG = '''
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    seed: int = 0
    """where it starts"""
    gain: float = 0.0
    """what the arm adds"""
    teacher: str = ""
    """folder of the teacher's run"""
    fail: str = ""
    """how it ends"""
    steps: list[int] = ()
    """any list"""
'''
TRAIN = """
import base64, json, os
from pathlib import Path
from common.config import parse
from common.errors import InputError
from kcd.config import Config

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


def main(argv):
    config, command, _ = parse(Config, argv, "", ("teacher", "student"))
    print("training speaks")
    os.system("echo so does a child")
    if config.fail == "raise":
        raise InputError(f"{Path.cwd()}/data/digits: no such data")
    if config.fail == "die":
        os._exit(7)
    folder = Path(command.out) / command.stage
    folder.mkdir(parents=True)
    base = json.loads((Path(config.teacher) / "teacher/last.pt").read_text())["top1"] if config.teacher else 50.0
    value = base + config.seed * 10 + config.gain * (1 + 0.01 * config.seed)
    content = {"top1": value, "seed": config.seed, "threads": os.environ["OMP_NUM_THREADS"], "steps": config.steps}
    (folder / "last.pt").write_text(json.dumps(content))
    (folder / "samples").mkdir()
    (folder / "samples" / "one.png").write_bytes(PNG)
    (folder / "env.json").write_text(json.dumps({"data": {"name": "digits", "sha256": "ab" * 32}}))
    lines = [{"step": e, "epoch": e, "split": "test", "top1": value - 3 + e} for e in (1, 2, 3)]
    lines.insert(1, {"step": 1, "epoch": 1, "split": "train", "loss": 1.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    return Path(command.out)
"""
EVAL = """
import json
from pathlib import Path


def main(argv):
    content = json.loads(Path(argv[argv.index("--checkpoint") + 1]).read_text())
    assert content["threads"] == "1"
    return {"top1": content["top1"], "visits": 87.5, "lost": float("nan"), "_meta": {"seed": content["seed"]}}
"""
PLAN = """\
config: cfg.yaml
checkpoint: student/last.pt
seeds: 3
shared:
  teacher: {stage: teacher, gain: 20.0}
arms:
  kd: {stage: student, teacher: "{shared.teacher}"}
  kcd: {stage: student, teacher: "{shared.teacher}", gain: 1.5, steps: [1, 2]}
quantities:
  top1: {from: top1, higher_is_better: true, unit: "%", label: top-1}
  visits: {from: visits, higher_is_better: false}
comparisons:
  - {a: kcd, b: kd, quantity: top1, kind: direction, claim: Condensing helps.}
  - {a: kcd, b: kd, quantity: visits, kind: exact, claim: Visits agree.}
  - {a: kd, b: kcd, quantity: top1, kind: equivalence, margin: 1.0, claim: Nothing is lost.}
curves:
  - {quantity: top1, split: test, stage: student}
pictures: ["student/samples/*.png"]
cost: [visits, lost]
paper: {claim: Condensing helps., source: a paper, gain: 0.78}
"""
BROKEN_ARMS = """\
  raises: {stage: student, fail: raise}
  dies: {stage: student, fail: die}
"""


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch):
    """Each test's kcd is its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "kcd"]:
        del sys.modules[name]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "repository" / "kcd"
    folder.mkdir(parents=True)
    files = {"__init__": "", "config": CONFIG, "train": TRAIN, "eval": EVAL}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "cfg.yaml").write_text("gain: 0.0\n")
    (folder / "reproduce.yaml").write_text(PLAN)
    return folder.parent


def test_arms_run_paired_and_the_report_is_written(root, capsys):
    stale = root / "reproduction" / "runs" / "kcd" / "kd" / "seed0"
    stale.mkdir(parents=True)
    (stale / "old.txt").touch()
    out = root / "reproduction"
    assert reproduce.main(["--out", str(out), "--jobs", "2", "--save-results"], root) == 0
    printed = capsys.readouterr().out
    result = report.from_json((out / "report.json").read_text(), "report.json").projects["kcd"]
    # The teacher adds 20 and its own seed's 10 to 50; the student adds its seed's 10 and its gain once more.
    assert result.arms["kd"].metrics[0]["top1"] == 70.0
    assert report.values_of(result.arms["kd"], "top1") == pytest.approx([70.0, 90.2, 110.4])
    assert [c.verdict for c in result.comparisons] == [verdict.SHOWN, verdict.SHOWN, verdict.CONTRADICTED]
    assert result.comparisons[0].differences == pytest.approx([1.5, 1.515, 1.53])
    assert result.arms["kd"].metrics[0]["lost"] is None  # not a number
    assert result.data == report.Named("digits", "ab" * 32)
    curve = result.arms["kd"].curves[0]
    assert (curve.epochs, curve.mean[-1], curve.low[-1]) == ([1.0, 2.0, 3.0], 90.2, 70.0)
    assert not (stale / "old.txt").exists()
    assert json.loads((stale.parent.parent / "kcd" / "seed1" / "student" / "last.pt").read_text())["steps"] == [1, 2]
    assert report.read_saved(root, "kcd") == result

    assert "[9/9]" in printed
    assert "training speaks" not in printed
    assert "not there yet: dda, rebnn" in printed
    assert f"report: {out / 'report.html'}" in printed
    log = (out / "logs" / "kcd" / "kd-seed0.txt").read_text()
    assert "training speaks" in log
    assert "so does a child" in log
    text = (out / "report.html").read_text()
    assert text.count("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB") == 2
    for written in ((out / "report.json").read_text(), text):
        assert str(root) not in written
    commands = result.arms["kcd"].commands
    assert commands[0].startswith("python kcd/train.py --config kcd/cfg.yaml --out reproduction/runs/kcd/kcd/seed0")
    assert "--teacher=reproduction/runs/kcd/shared-teacher/seed0" in commands[0]
    assert commands[1].endswith("--checkpoint reproduction/runs/kcd/kcd/seed0/student/last.pt")


def test_a_failing_arm_is_reported_and_the_others_finish(root, capsys):
    path = root / "kcd" / "reproduce.yaml"
    path.write_text(PLAN.replace("arms:\n", f"arms:\n{BROKEN_ARMS}").replace("{a: kd, b: kcd", "{a: kd, b: dies"))
    (root / "kcd" / "results.json").unlink(missing_ok=True)
    out = root / "reproduction"
    assert reproduce.main(["kcd", "--seeds", "2", "--out", str(out), "--jobs", "1", "--save-results"], root) == 1
    result = report.from_json((out / "report.json").read_text(), "report.json").projects["kcd"]
    assert result.arms["raises"].errors == ["data/digits: no such data"] * 2
    assert result.arms["dies"].errors == ["its process ended with exit code 7"] * 2
    assert result.arms["kcd"].errors == [None, None]
    words = [c.verdict for c in result.comparisons]
    assert words == [verdict.SHOWN, verdict.SHOWN, verdict.NOT_RESOLVED]
    captured = capsys.readouterr()
    assert "kcd raises, seed 1: FAILED: data/digits: no such data" in captured.out
    assert "4 of 10 runs failed" in captured.err
    assert not (root / "kcd" / "results.json").exists()
    assert "Traceback" in (out / "logs" / "kcd" / "raises-seed0.txt").read_text()


def test_an_arm_fails_with_its_shared_run_and_with_a_missing_metric(root):
    path = root / "kcd" / "reproduce.yaml"
    path.write_text(
        PLAN.replace("gain: 20.0}", "fail: raise}")
        .replace("arms:\n", "arms:\n  alone: {stage: student}\n")
        .replace("from: visits", "from: visit")
    )
    assert reproduce.main(["--seeds", "1", "--out", str(root / "out"), "--jobs", "1"], root) == 1
    result = report.from_json((root / "out" / "report.json").read_text(), "report.json").projects["kcd"]
    assert result.arms["kd"].errors == ["its shared run teacher failed"]
    assert result.arms["alone"].errors == [
        "the evaluation gave no visit, did you mean visits? (it gave top1, visits, lost)"
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 3", "sedes: 3", r"reproduce\.yaml:3: sedes: unknown key, did you mean seeds\?"),
        ("seeds: 3", "seeds: 0", r":3: seeds: must be at least 1, found 0"),
        ("seeds: 3", "seeds: 3\nseeds: 4", r":4: seeds was already given in line 3"),
        ("seeds: 3", "seeds: [", "not valid YAML"),
        ("config: cfg.yaml\n", "", "the key config is missing"),
        (
            "a: kcd, b: kd, quantity: top1",
            "a: kdc, b: kd, quantity: top1",
            r"comparisons\.0\.a: kdc is not one of kd, kcd",
        ),
        ("b: kd, quantity: top1", "b: kd, quantity: top", r"comparisons\.0\.quantity: top is not .* mean top1"),
        ("kind: exact", "kind: equal", r"comparisons\.1\.kind: 'equal' is not one of"),
        ("margin: 1.0, ", "", "an equivalence needs a margin"),
        ("kind: exact", "kind: exact, margin: 1.0", "only an equivalence has a margin"),
        (
            'kd: {stage: student, teacher: "{shared.teacher}"}',
            'kd: {teacher: "{shared.teach}"}',
            r"arms\.kd\.teacher: teach is",
        ),
        ("{stage: teacher, gain: 20.0}", '{teacher: "{shared.teacher}"}', "cannot build on another"),
        ("kd: {stage: student", "kd: {seed: 1", r"arms\.kd\.seed: is set by the runner"),
        ("  teacher: {", "  tea/cher: {", "the name becomes a folder"),
        ("source: a paper, ", "", "paper: the key source is missing"),
        ("higher_is_better: false", "higher_is_better: 0", r"quantities\.visits\.higher_is_better: must be bool"),
        ("gain: 1.5", "gian: 1.5", r"arms\.kcd: --gian is not an option, did you mean gain\?"),
        ("gain: 1.5", "gain: much", r"arms\.kcd: --gain"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(root, capsys, old, new, message):
    path = root / "kcd" / "reproduce.yaml"
    assert old in PLAN
    path.write_text(PLAN.replace(old, new, 1))
    earlier = root / "out" / "runs" / "kcd" / "kd" / "seed0" / "kept.txt"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert reproduce.main(["--out", str(root / "out")], root) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "reproduce.yaml" in error
    assert earlier.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["kdc"], "kdc is not one of"),
        (["kdc"], "did you mean kcd?"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--out", __file__], "is a file; give a folder"),
    ],
)
def test_a_wrong_call_ends_with_2(root, capsys, argv, message):
    assert reproduce.main(argv, root) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_results_file_is_refused_before_anything_runs(root, capsys):
    (root / "kcd" / "results.json").write_text("{}")
    assert reproduce.main(["--out", str(root / "out")], root) == 2
    assert "results.json: schema: is None" in capsys.readouterr().err
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("{root}/kcd/cfg.yaml", "kcd/cfg.yaml"),
        ("{away}/cifar", "$DATA"),
        ("{away}/with space/cifar", "$DATA"),
        ("--data.root={away}/cifar --x 1", "--data.root=$DATA --x 1"),
        ("see https://example.org/a/b and 3/4 or/and", "see https://example.org/a/b and 3/4 or/and"),
        (["{root}/a", 1.5, None], ["a", 1.5, None]),
    ],
)
def test_machine_paths_leave_no_trace(tmp_path, value, shown):
    def fill(text):
        return text.format(root=tmp_path / "r", away=tmp_path / "away") if isinstance(text, str) else text

    value = [fill(part) for part in value] if isinstance(value, list) else fill(value)
    assert reproduce.portable(value, tmp_path / "r") == shown


def test_commands_leave_data_to_the_shell(tmp_path):
    words = ["python", "--data.root=" + str(tmp_path / "away"), str(tmp_path / "r" / "a b")]
    assert reproduce.shell(words, tmp_path / "r") == "python --data.root=\"$DATA\" 'a b'"
