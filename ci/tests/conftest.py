"""A small project whose training is arithmetic, and results built by hand."""

import sys

import pytest

from ci import results

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
import base64, json, os, sys
from pathlib import Path
from common.config import dump, parse
from common.errors import InputError
from kcd.config import Config

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


def main(argv):
    config, command, _ = parse(Config, argv, "", ("teacher", "student"))
    print("training speaks")
    print("epoch 1/3", file=sys.stderr)
    os.system("echo so does a child")
    if config.fail == "raise":
        raise InputError(f"{Path.cwd()}/data/digits: no such data")
    if config.fail == "die" and config.seed == 0:
        os._exit(7)
    folder = Path(command.out) / command.stage
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    base = json.loads((Path(config.teacher) / "teacher/last.pt").read_text())["top1"] if config.teacher else 50.0
    value = base + config.seed * 10 + config.gain * (1 + 0.01 * config.seed)
    content = {"top1": value, "threads": os.environ["OMP_NUM_THREADS"], "steps": config.steps, "fail": config.fail}
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
    path = Path(argv[argv.index("--checkpoint") + 1])
    content = json.loads(path.read_text())
    assert content["threads"] == "1"
    metrics = {"top1": content["top1"], "visits": 87.5, "lost": float("nan"), "_meta": {"seed": 0}}
    if content["fail"] == "silent":
        del metrics["visits"]
    path.with_name("metrics.json").write_text(json.dumps(metrics))
    return metrics
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


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch):
    """Each test's kcd is its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "kcd"]:
        del sys.modules[name]


@pytest.fixture
def repository(tmp_path):
    """A repository in which only kcd has been built."""
    folder = tmp_path / "repository" / "kcd"
    folder.mkdir(parents=True)
    for name, text in {"__init__": "", "config": CONFIG, "train": TRAIN, "eval": EVAL}.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "cfg.yaml").write_text("gain: 0.0\n")
    (folder / "reproduce.yaml").write_text(PLAN)
    return folder.parent


def build_arm(values):
    runs = range(len(values))
    line = results.CurveResult([1.0, 2.0], [0.5, 0.6], [0.5, 0.5], [0.5, 0.7])
    return results.ArmResult(
        overrides={"condense.threshold": 0.7},
        commands=["python kcd/train.py --seed 0", "python kcd/eval.py --checkpoint last.pt"],
        seconds=[1.5 + run for run in runs],
        errors=[None if value is not None else "InputError: <no> data" for value in values],
        metrics=[None if value is None else {"top1": value, "visits": 87.5} for value in values],
        curves=[line],
    )


def build(a=(71.1, 72.0, 73.0), b=(70.0, 71.0, 72.0)):
    quantities = {"top1": results.Quantity("top1", True, "%", "top-1")}
    arms = {"kcd": build_arm(list(a)), "kd": build_arm(list(b))}
    claims = [
        results.Claim("kcd", "kd", "top1", "direction", "Condensing beats <plain> distillation."),
        results.Claim("kcd", "kd", "top1", "equivalence", "Condensing costs nothing.", margin=0.5),
        results.Claim("kd", "kcd", "top1", "exact", "Nothing changes."),
    ]
    return results.ProjectResult(
        paper={"claim": "Value & knowledge", "source": "ECCV 2022", "top-1": {"KD": 74.92, "KC-KD": 75.7}},
        config=results.Named("kcd/cfg.yaml", "c" * 64),
        data=results.Named("digits", "d" * 64),
        commit="a" * 40,
        dirty=True,
        versions={"python": "3.11", "torch": "2.13.0"},
        hardware=results.Hardware(2, "a processor", 2),
        command="python -m ci.reproduce kcd",
        seeds=list(range(len(a))),
        quantities=quantities,
        cost=["visits"],
        curves=[results.Curve("top1", "test", "student")],
        shared={"teacher": results.SharedResult({}, ["python kcd/train.py"], [2.0] * len(a), [None] * len(a))},
        arms=arms,
        comparisons=[results.compare(claim, quantities, arms) for claim in claims],
    )


@pytest.fixture
def project():
    """Makes kcd's result from the top-1 of its two arms, one value a seed."""
    return build
