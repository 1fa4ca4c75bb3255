"""From run folders to results: metrics, curves, the data's name, and commands that hold no path of this machine."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common.config
from common.errors import InputError
from common.run import environment

from ci import entry_module, file_of
from ci.plan import Job, Plan
from ci.results import ArmResult, Curve, CurveResult, Hardware, Named, ProjectResult, SharedResult, compare

ABSOLUTE_PATH = re.compile(r"(?<![\w.:/$}])/[\w.@+~-]+(?:/[\w.@+~-]+)*/?")
DATA = "$DATA"
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "scikit-image", "scipy")


@dataclass(frozen=True)
class Outcome:
    """What came of a job: the seconds of its training and, unless it failed, its metrics."""

    seconds: float | None = None
    metrics: dict[str, float | None] | None = None
    error: str | None = None


def numbers(metrics: dict, wanted: Iterable[str]) -> dict[str, float | None]:
    """The flat numbers of metrics.json, None where one is not finite. Errors: InputError for a missing quantity."""
    found = {
        name: float(value) if math.isfinite(value) else None
        for name, value in metrics.items()
        if not name.startswith("_") and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for name in wanted:
        if name not in found:
            given = ", ".join(found) or "no number"
            raise InputError(f"the evaluation gave no {name}{common.config.nearest(name, found)} (it gave {given})")
    return found


def assemble(
    root: Path, project: str, plan: Plan, outcomes: dict[Job, Outcome], command: str, workers: int
) -> ProjectResult:
    """The project's part of report.json from what its jobs left. command: how the runner was called."""

    def run(name: str) -> dict[str, Any]:
        """What shared runs and arms record alike."""
        own = {job: outcome for job, outcome in outcomes.items() if job.name == name}
        return {
            "overrides": {key: portable(value, root) for key, value in plan.runs()[name].items()},
            "commands": commands(next(iter(own)), root),
            "seconds": [outcome.seconds for outcome in own.values()],
            "errors": [outcome.error for outcome in own.values()],
        }

    def arm(name: str) -> ArmResult:
        own = {job: outcome for job, outcome in outcomes.items() if job.name == name}
        ended = [job.run for job, outcome in own.items() if not outcome.error]
        curves = [read_curve(curve, ended) for curve in plan.curves]
        return ArmResult(**run(name), metrics=[outcome.metrics for outcome in own.values()], curves=curves)

    path = file_of(root, project, "train.py").parent / plan.config
    config = common.config.load(entry_module(root, project, "train").Config, path)
    machine = environment(config, {})
    arms = {name: arm(name) for name in plan.arms}
    return ProjectResult(
        paper=plan.paper,
        config=Named(path.relative_to(root).as_posix(), common.config.digest(config)),
        data=read_data(job for job, outcome in outcomes.items() if not outcome.error),
        commit=machine["commit"] or None,
        dirty=machine["dirty"],
        versions=versions(),
        hardware=Hardware(os.cpu_count() or 1, processor(), workers),
        command=command,
        seeds=sorted({job.seed for job in outcomes}),
        quantities=plan.quantities,
        cost=plan.cost,
        curves=plan.curves,
        shared={name: SharedResult(**run(name)) for name in plan.shared},
        arms=arms,
        comparisons=[compare(claim, plan.quantities, arms) for claim in plan.comparisons],
    )


def read_curve(curve: Curve, runs: list[Path]) -> CurveResult | None:
    """Mean, lowest and highest value over the runs, at the epochs that all of them logged."""
    series = []
    for run in runs:
        path = run / curve.stage / "log.jsonl"
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.is_file() else ())
        values = {line["epoch"]: line.get(curve.quantity) for line in lines if line.get("split") == curve.split}
        series.append({e: v for e, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)})
    epochs = sorted(set.intersection(*map(set, series))) if series else []
    if not epochs:
        return None
    rows = [[values[epoch] for values in series] for epoch in epochs]
    mean, low, high = zip(*((sum(row) / len(row), min(row), max(row)) for row in rows))
    short = lambda values: [float(f"{value:.6g}") for value in values]
    return CurveResult([float(epoch) for epoch in epochs], short(mean), short(low), short(high))


def read_data(jobs: Iterable[Job]) -> Named | None:
    """The data that the first run with a record of it was trained on, from the env.json of its stages."""
    for path in (path for job in jobs for path in sorted(job.run.glob("*/env.json"))):
        data = json.loads(path.read_text(encoding="utf-8")).get("data")
        if data:
            return Named(str(data["name"]), str(data["sha256"]))
    return None


def pictures(plan: Plan, jobs: Iterable[Job]) -> dict[str, list[Path]]:
    """Arm -> the pictures that its run with the first seed left."""
    runs = {job.name: job.run for job in jobs if job.checkpoint and job.seed == 0}
    return {name: sorted({p for glob in plan.pictures for p in run.glob(glob)}) for name, run in runs.items()}


def versions() -> dict[str, str]:
    """Python's version and those of the packages on which numbers depend."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def processor() -> str:
    """The processor's name, on Linux as the kernel tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commands(job: Job, root: Path) -> list[str]:
    """What a user types at the repository's root to get the same run."""
    script = lambda name: file_of(root, job.project, name).relative_to(root).as_posix()
    lines = [["python", script("train.py"), *job.train]]
    if job.checkpoint:
        lines.append(["python", script("eval.py"), "--checkpoint", str(job.checkpoint)])
    return [shell(words, root) for words in lines]


def shell(words: list[str], root: Path) -> str:
    """A command line that a shell splits into these words, with $DATA left for it to fill in."""

    def quoted(word: str) -> str:
        return f'"{DATA}"'.join(shlex.quote(part) if part else "" for part in word.split(DATA))

    return " ".join(quoted(portable(word, root)) for word in words)


def portable(value, root: Path):
    """The value without this machine's paths: inside the repository relative to it, elsewhere $DATA."""
    if isinstance(value, list):
        return [portable(part, root) for part in value]
    if not isinstance(value, str):
        return value
    shown = lambda path: str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else DATA
    return shown(value) if os.path.isabs(value) else ABSOLUTE_PATH.sub(lambda found: shown(found[0]), value)
