"""Runs the experiments of every reproduce.yaml and reports what they show.

`python -m ci.reproduce [PROJECT…] [--seeds N] [--out reproduction] [--jobs N] [--save-results]`

Arms call the same train.main and eval.main that a user's commands call, each with the same seeds, in worker processes
of one torch thread. A run that fails is reported and the others go on. The exit code says whether everything ran
(0 or 1) or could not start (2), never what the verdicts are: a null result is a result.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import common.config
from common.errors import InputError

import yaml

from ci import ROOT, checked, choose, is_there, project_module, report

SHARED = re.compile(r"\{shared\.([^}]*)\}")
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/$])/[\w.@+~-]+(?:/[\w.@+~-]+)*/?")


@dataclass(frozen=True)
class Plan:
    """A project's reproduce.yaml: the paper's claim as an experiment."""

    config: str
    """base config of every run, relative to the project"""
    checkpoint: str
    """what eval.main is given, relative to the run folder; an arm's own key `checkpoint` overrides it"""
    arms: dict[str, dict[str, Any]]
    """name -> dotted overrides of the config; `{shared.NAME}` in a value is the folder of that shared run"""
    quantities: dict[str, report.Quantity]
    comparisons: list[report.Claim]
    paper: dict[str, Any]
    """claim, source and numbers, shown as they stand"""
    shared: dict[str, dict[str, Any]] = field(default_factory=dict)
    """runs that are made once per seed and that arms build on, such as a teacher"""
    seeds: int = 3
    curves: list[report.Curve] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    """globs in the run folders of the first seed"""
    cost: list[str] = field(default_factory=list)
    """keys of metrics.json shown in the table of arms"""


@dataclass(frozen=True)
class Job:
    """One training run and, for an arm, its evaluation."""

    project: str
    name: str
    shared: bool
    seed: int
    train: list[str]
    run: Path
    log: Path
    checkpoint: str = ""
    needs: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, bool, str, int]:
        return self.project, self.shared, self.name, self.seed


@dataclass(frozen=True)
class Outcome:
    """What came of a job: the seconds of its training and, unless it failed, its metrics."""

    seconds: float | None = None
    metrics: dict[str, float | None] | None = None
    error: str | None = None


def load_plan(path: Path) -> Plan:
    """A checked reproduce.yaml. Errors: InputError naming file, line and key."""
    tree, lines = _read_yaml(path)
    plan = checked(Plan, tree, str(path), lines=lines)

    def fault(key: str, message: str) -> InputError:
        return InputError(f"{path}:{lines[key]}: {key}: {message}")

    def must_exist(name: str, among: dict, key: str) -> None:
        if name not in among:
            raise fault(key, f"{name} is not one of {', '.join(among)}{common.config.nearest(name, among)}")

    if plan.seeds < 1:
        raise fault("seeds", f"must be at least 1, found {plan.seeds}")
    for key in ("claim", "source"):
        if key not in plan.paper:
            raise fault("paper", f"the key {key} is missing")
    for index, claim in enumerate(plan.comparisons):
        key = f"comparisons.{index}"
        must_exist(claim.a, plan.arms, f"{key}.a")
        must_exist(claim.b, plan.arms, f"{key}.b")
        must_exist(claim.quantity, plan.quantities, f"{key}.quantity")
        if claim.kind == "equivalence" and (claim.margin is None or claim.margin < 0):
            raise fault(key, "an equivalence needs a margin of at least 0, fixed beforehand")
        if claim.kind != "equivalence" and claim.margin is not None:
            raise fault(f"{key}.margin", f"only an equivalence has a margin, this is kind {claim.kind}")
    for group, runs in (("shared", plan.shared), ("arms", plan.arms)):
        for name, overrides in runs.items():
            if re.fullmatch(r"[\w.+-]+", name) is None:
                raise fault(f"{group}.{name}", "use letters, digits, _ . + - only: the name becomes a folder")
            for option, value in overrides.items():
                key = f"{group}.{name}.{option}"
                if option in ("config", "out", "seed"):
                    raise fault(key, "is set by the runner")
                for reference in SHARED.findall(str(value)):
                    if group == "shared":
                        raise fault(key, "a shared run cannot build on another")
                    must_exist(reference, plan.shared, key)
    return plan


def check_overrides(root: Path, project: str, plan: Plan) -> None:
    """Every run's overrides against the project's Config. Errors: InputError naming run and key."""
    config_class = project_module(root, project, "config").Config
    base, path = root / project / plan.config, root / project / "reproduce.yaml"
    for group, runs in (("shared", plan.shared), ("arms", plan.arms)):
        for name, overrides in runs.items():
            config_keys = {k: v for k, v in overrides.items() if k not in ("checkpoint", "stage")}
            arguments = ["--config", str(base), "--seed=0", *_options(config_keys, {})]
            try:
                common.config.parse(config_class, arguments, "")
            except InputError as error:
                raise InputError(f"{path}: {group}.{name}: {error}") from error


def plan_jobs(root: Path, project: str, plan: Plan, seeds: list[int], out: Path) -> list[Job]:
    """The runs of a project, shared ones first; their folders are out/runs/PROJECT/NAME/seedN."""
    jobs = []
    for seed in seeds:
        folder = {name: out / "runs" / project / f"shared-{name}" / f"seed{seed}" for name in plan.shared}
        for name, overrides, shared in [
            *((name, overrides, True) for name, overrides in plan.shared.items()),
            *((name, overrides, False) for name, overrides in plan.arms.items()),
        ]:
            run = folder[name] if shared else out / "runs" / project / name / f"seed{seed}"
            options = {key: value for key, value in overrides.items() if key != "checkpoint"}
            config = str(root / project / plan.config)
            jobs.append(
                Job(
                    project=project,
                    name=name,
                    shared=shared,
                    seed=seed,
                    train=["--config", config, "--out", str(run), "--seed", str(seed), *_options(options, folder)],
                    run=run,
                    log=out / "logs" / project / f"{'shared-' if shared else ''}{name}-seed{seed}.txt",
                    checkpoint="" if shared else str(overrides.get("checkpoint", plan.checkpoint)),
                    needs=tuple(dict.fromkeys(SHARED.findall(" ".join(map(str, options.values()))))),
                    wanted=() if shared else tuple(q.source for q in plan.quantities.values()),
                )
            )
    return sorted(jobs, key=lambda job: not job.shared)


def run_jobs(jobs: list[Job], root: Path, workers: int, on_done=lambda job, outcome: None) -> dict[tuple, Outcome]:
    """Outcomes by job key. A job starts when the shared runs it needs have ended; a failure fails its job alone."""
    waiting, outcomes, running = list(jobs), {}, {}
    pool = [_Worker(root) for _ in range(min(workers, len(jobs)))]

    def finish(job: Job, outcome: Outcome) -> None:
        outcomes[job.key] = outcome
        on_done(job, outcome)

    try:
        while waiting or running:
            for job in [job for job in waiting if _needs(job, outcomes)[1]]:
                waiting.remove(job)
                finish(job, Outcome(error=f"its shared run {_needs(job, outcomes)[1][0]} failed"))
            ready = [job for job in waiting if not _needs(job, outcomes)[0]]
            for worker, job in zip([w for w in pool if w not in running], ready):
                waiting.remove(job)
                worker.connection.send(job)
                running[worker] = job
            for connection in wait([worker.connection for worker in running]) if running else []:
                worker = next(w for w in running if w.connection is connection)
                job = running.pop(worker)
                try:
                    finish(job, connection.recv())
                except (EOFError, ConnectionError):
                    worker.process.join()
                    finish(job, Outcome(error=f"its process ended with exit code {worker.process.exitcode}"))
                    pool[pool.index(worker)] = _Worker(root)
    finally:
        for worker in pool:
            worker.stop()
    return outcomes


def _needs(job: Job, outcomes: dict[tuple, Outcome]) -> tuple[list[str], list[str]]:
    """The shared runs that the job still waits for, and those that it waits for in vain."""
    keys = {name: (job.project, True, name, job.seed) for name in job.needs}
    missing = [name for name, key in keys.items() if key not in outcomes]
    return missing, [name for name, key in keys.items() if key in outcomes and outcomes[key].error]


class _Worker:
    """A process that carries out one job after another; started afresh, it never inherits torch's threads."""

    def __init__(self, root: Path):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # Not a daemon: a data loader's workers are its children.
        self.process = context.Process(target=_work, args=(theirs, str(root)))
        with _one_thread():
            self.process.start()
        theirs.close()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.connection.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


@contextlib.contextmanager
def _one_thread():
    """OpenMP reads its thread count when torch is first imported, so children must find it in their environment."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _work(connection: Connection, root: str) -> None:
    os.chdir(root)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        for job in iter(connection.recv, None):
            connection.send(_perform(job, Path(root)))


def _perform(job: Job, root: Path) -> Outcome:
    """Train and evaluate with everything printed going to the job's log; an error becomes part of the outcome."""
    seconds = None
    with _printed_to(job.log):
        try:
            begin = time.perf_counter()
            project_module(root, job.project, "train").main(list(job.train))
            seconds = time.perf_counter() - begin
            if job.shared:
                return Outcome(seconds)
            path = job.run / job.checkpoint
            metrics = project_module(root, job.project, "eval").main(["--checkpoint", str(path)])
            return Outcome(seconds, _numbers(metrics, job.wanted))
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            text = str(error).strip() or "no message"
            message = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
            return Outcome(seconds, error=portable(message, root))


@contextlib.contextmanager
def _printed_to(path: Path):
    """Standard output and error to a file, at the level of descriptors so that native code is covered."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), kept):
            os.dup2(copy, descriptor)
            os.close(copy)


def _numbers(metrics: dict, wanted: tuple[str, ...]) -> dict[str, float | None]:
    """The flat numbers of metrics.json, None where one is not finite. Errors: InputError for a missing quantity."""
    numbers = {
        name: float(value) if math.isfinite(value) else None
        for name, value in metrics.items()
        if not name.startswith("_") and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for name in wanted:
        if name not in numbers:
            given = ", ".join(numbers) or "no number"
            raise InputError(f"the evaluation gave no {name}{common.config.nearest(name, numbers)} (it gave {given})")
    return numbers


def assemble(
    root: Path, project: str, plan: Plan, jobs: list[Job], outcomes: dict[tuple, Outcome], about: dict[str, Any]
) -> report.ProjectResult:
    """The project's part of report.json from what its jobs left; `about` holds what all projects have in common."""
    seeds = sorted({job.seed for job in jobs})
    of = {(job.shared, name): [] for job in jobs for name in [job.name]}
    for job in sorted((job for job in jobs if job.project == project), key=lambda job: job.seed):
        of[job.shared, job.name].append((job, outcomes[job.key]))

    def common_part(shared: bool, name: str, overrides: dict) -> dict:
        runs = of[shared, name]
        return {
            "overrides": {key: portable(value, root) for key, value in overrides.items()},
            "commands": _commands(root, runs[0][0]),
            "seconds": [None if o.seconds is None else round(o.seconds, 2) for _, o in runs],
            "errors": [outcome.error for _, outcome in runs],
        }

    arms = {
        name: report.ArmResult(
            **common_part(False, name, overrides),
            metrics=[outcome.metrics for _, outcome in of[False, name]],
            curves=[_curve(curve, [job.run for job, o in of[False, name] if not o.error]) for curve in plan.curves],
        )
        for name, overrides in plan.arms.items()
    }
    first = next((job.run for job in jobs if job.project == project and not outcomes[job.key].error), None)
    config_class = project_module(root, project, "config").Config
    base = common.config.load(config_class, root / project / plan.config)
    return report.ProjectResult(
        paper=plan.paper,
        config=report.Named(f"{project}/{plan.config}", common.config.digest(base)),
        data=_data(first),
        seeds=seeds,
        quantities=plan.quantities,
        cost=plan.cost,
        curves=plan.curves,
        shared={n: report.SharedResult(**common_part(True, n, overrides)) for n, overrides in plan.shared.items()},
        arms=arms,
        comparisons=[report.compare(claim, plan.quantities, arms) for claim in plan.comparisons],
        **about,
    )


def _commands(root: Path, job: Job) -> list[str]:
    """What a user types at the repository's root to get the same run."""
    commands = [shell(["python", f"{job.project}/train.py", *job.train], root)]
    if not job.shared:
        evaluate = ["python", f"{job.project}/eval.py", "--checkpoint", str(job.run / job.checkpoint)]
        commands.append(shell(evaluate, root))
    return commands


def shell(words: list[str], root: Path) -> str:
    """A command line that a shell splits into these words, with $DATA left for it to fill in."""

    def quoted(word: str) -> str:
        return '"$DATA"'.join(shlex.quote(part) if part else "" for part in word.split("$DATA"))

    return " ".join(quoted(portable(word, root)) for word in words)


def _curve(curve: report.Curve, runs: list[Path]) -> report.CurveResult | None:
    """Mean, lowest and highest value over the runs, at the epochs that all of them logged."""
    series = []
    for run in runs:
        path, values = run / curve.stage / "log.jsonl", {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            entry = json.loads(line)
            if entry.get("split") == curve.split and isinstance(entry.get(curve.quantity), (int, float)):
                values[entry["epoch"]] = float(entry[curve.quantity])
        series.append({epoch: value for epoch, value in values.items() if math.isfinite(value)})
    epochs = sorted(set.intersection(*map(set, series))) if series else []
    if not epochs:
        return None
    table = [[values[epoch] for values in series] for epoch in epochs]
    return report.CurveResult(
        epochs=[float(epoch) for epoch in epochs],
        mean=[_short(sum(row) / len(row)) for row in table],
        low=[_short(min(row)) for row in table],
        high=[_short(max(row)) for row in table],
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _data(run: Path | None) -> report.Named | None:
    """Name and sha256 of the data as the run's first stage recorded them; None where none did."""
    for path in sorted(run.rglob("env.json")) if run else []:
        data = json.loads(path.read_text(encoding="utf-8")).get("data")
        if data:
            return report.Named(str(data["name"]), str(data["sha256"]))
    return None


def portable(value, root: Path):
    """The value without this machine's paths: inside the repository relative to it, elsewhere $DATA."""
    if isinstance(value, list):
        return [portable(part, root) for part in value]
    if not isinstance(value, str):
        return value

    def shown(path: str) -> str:
        inside = Path(path).is_relative_to(root)
        return str(Path(path).relative_to(root)) if inside else "$DATA"

    return shown(value) if os.path.isabs(value) else ABSOLUTE_PATH.sub(lambda found: shown(found[0]), value)


def surroundings(root: Path, jobs: int, argv: list[str]) -> dict[str, Any]:
    """Commit, versions, hardware and command: what every project's result records alike."""
    names = ("torch", "torchvision", "numpy", "opencv-python-headless", "scikit-image", "scipy")
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    commit = _git(root, "rev-parse", "HEAD")
    return {
        "commit": commit,
        "dirty": bool(_git(root, "status", "--porcelain")) if commit else True,
        "versions": versions,
        "hardware": report.Hardware(cores=os.cpu_count() or 1, cpu=_cpu_name(), jobs=jobs),
        "command": shell(["python", "-m", "ci.reproduce", *argv], root),
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _options(overrides: dict[str, Any], folders: dict[str, Path]) -> list[str]:
    """Overrides as `--key=value`, with the folders of shared runs filled in."""

    def text(value) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    return [
        f"--{key}={SHARED.sub(lambda found: str(folders.get(found[1], found[0])), text(value))}"
        for key, value in overrides.items()
    ]


def _read_yaml(path: Path) -> tuple[Any, dict[str, int]]:
    """Plain data of a YAML file and the line of every dotted key. Errors: InputError, also for a key given twice."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    lines: dict[str, int] = {}

    def walk(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.SequenceNode):
            pairs = [(str(index), item, item) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            pairs = [(str(key.value), key, item) for key, item in node.value]
        else:
            return
        for name, at, item in pairs:
            key, line = f"{prefix}{name}", at.start_mark.line + 1
            if key in lines:
                raise InputError(f"{path}:{line}: {key} was already given in line {lines[key]}")
            lines[key] = line
            walk(item, f"{key}.")

    walk(node, "")
    return data, lines


def _progress(total: int, plans: dict[str, Plan]):
    done = 0

    def line(job: Job, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        head = f"[{done:{len(str(total))}}/{total}] {job.project} {'shared ' if job.shared else ''}{job.name}"
        took = f"{outcome.seconds:.1f} s" if outcome.seconds is not None else "-"
        if outcome.error:
            print(f"{head}, seed {job.seed}: FAILED: {outcome.error} (see {job.log})", flush=True)
            return
        values = "".join(
            f"  {name} {report.number(outcome.metrics[quantity.source])}"
            for name, quantity in plans[job.project].quantities.items()
            if outcome.metrics
        )
        print(f"{head}, seed {job.seed}: {took}{values}", flush=True)

    return line


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ci.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("projects", nargs="*", metavar="PROJECT", help="by default all that are there")
    parser.add_argument("--seeds", type=int, help="seeds per arm, by default what reproduce.yaml says")
    parser.add_argument("--out", type=Path, default=Path("reproduction"), help="folder of report and runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--save-results", action="store_true", help="also write PROJECT/results.json")
    arguments = parser.parse_args(argv)
    for name in ("seeds", "jobs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    return arguments


def _prepare(arguments: argparse.Namespace, root: Path) -> tuple[dict[str, Plan], list[Job], Path]:
    """Everything that can be refused is refused here, before a run starts or an old one is removed."""
    there = [project for project in choose(arguments.projects) if is_there(root, project)]
    plans = {project: load_plan(root / project / "reproduce.yaml") for project in there}
    out = arguments.out.resolve()
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {arguments.out}: is a file; give a folder")
    jobs = []
    for project, plan in plans.items():
        check_overrides(root, project, plan)
        report.read_saved(root, project)
        jobs += plan_jobs(root, project, plan, list(range(arguments.seeds or plan.seeds)), out)
    for job in jobs:
        shutil.rmtree(job.run, ignore_errors=True)
    return plans, jobs, out


def reproduce(argv: list[str], root: Path = ROOT) -> int:
    """The whole command; returns its exit code."""
    root = root.resolve()
    arguments = _arguments(argv)
    plans, jobs, out = _prepare(arguments, root)
    about = surroundings(root, arguments.jobs, argv)
    outcomes = run_jobs(jobs, root, arguments.jobs, _progress(len(jobs), plans))
    projects = {}
    for project, plan in plans.items():
        own = [job for job in jobs if job.project == project]
        projects[project] = assemble(root, project, plan, own, outcomes, about)
    results = report.Results(report.SCHEMA, projects)
    pictures = {project: _pictures(plan, jobs, project) for project, plan in plans.items()}
    page = report.write(results, pictures, root, out)
    failed = {job.project for job in jobs if outcomes[job.key].error}
    if arguments.save_results:
        for project, result in projects.items():
            if project in failed:
                print(f"{project}/results.json is left as it was: a run failed", file=sys.stderr)
            else:
                report.save(report.Results(report.SCHEMA, {project: result}), root / project / "results.json")
    print(report.text_table(results))
    missing = [project for project in choose(arguments.projects) if project not in plans]
    if missing:
        print(f"not there yet: {', '.join(missing)}")
    count = sum(outcome.error is not None for outcome in outcomes.values())
    if count:
        print(f"{count} of {len(jobs)} runs failed", file=sys.stderr)
    print(f"report: {page}")
    return 1 if count else 0


def _pictures(plan: Plan, jobs: list[Job], project: str) -> dict[str, list[Path]]:
    """Arm -> the pictures that its run with the first seed left."""
    first = min((job.seed for job in jobs if job.project == project), default=0)
    runs = {job.name: job.run for job in jobs if job.project == project and not job.shared and job.seed == first}
    return {name: sorted({p for glob in plan.pictures for p in run.glob(glob)}) for name, run in runs.items()}


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """`reproduce` with a wrong call told in one line."""
    try:
        return reproduce(sys.argv[1:] if argv is None else argv, root)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
