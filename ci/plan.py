"""A project's reproduce.yaml: the paper's claim as an experiment, checked, and the runs that it asks for."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common.config
from common.errors import InputError

import yaml

from ci import entry_module, file_of
from ci.results import Claim, Curve, Quantity
from ci.schema import Place, checked

FILE = "reproduce.yaml"
SHARED = re.compile(r"\{shared\.([^}]*)\}")
NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Plan:
    """The content of a reproduce.yaml."""

    config: str
    """base config of every run, relative to the project"""
    checkpoint: str
    """what eval.main is given, relative to the run folder; an arm's own key `checkpoint` overrides it"""
    arms: dict[str, dict[str, Any]]
    """name -> dotted overrides of the config; `{shared.NAME}` in a value is the folder of that shared run"""
    quantities: dict[str, Quantity]
    comparisons: list[Claim]
    paper: dict[str, Any]
    """claim, source and numbers, shown as they stand"""
    shared: dict[str, dict[str, Any]] = field(default_factory=dict)
    """runs that are made once per seed and that arms build on, such as a teacher"""
    seeds: int = 3
    curves: list[Curve] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    """globs in the run folders of the first seed"""
    cost: list[str] = field(default_factory=list)
    """keys of metrics.json shown in the table of arms"""

    def runs(self) -> dict[str, dict[str, Any]]:
        """Overrides of shared runs and arms by their names."""
        return {**self.shared, **self.arms}


@dataclass(frozen=True)
class Job:
    """One training run and, for an arm, its evaluation."""

    project: str
    """the experiment, which is the project's name but for further families of tasks"""
    name: str
    seed: int
    train: tuple[str, ...]
    """arguments of train.main"""
    run: Path
    log: Path
    checkpoint: Path | None = None
    """what eval.main is given; None for a shared run, which only trains"""
    needs: tuple[str, ...] = ()
    """shared runs of the same seed"""
    wanted: tuple[str, ...] = ()
    """metrics that the evaluation must give"""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.project, self.name, self.seed


def load_plan(path: Path) -> Plan:
    """A checked reproduce.yaml. Errors: InputError naming file, line and key."""
    tree, lines = _read(path)
    place = Place(str(path), "", lines)
    plan = checked(Plan, tree, place)
    if plan.seeds < 1:
        raise place.at("seeds").fault(f"must be at least 1, found {plan.seeds}")
    for key in ("claim", "source"):
        if key not in plan.paper:
            raise place.at("paper").fault(f"the key {key} is missing")
    for index, claim in enumerate(plan.comparisons):
        _check_claim(claim, plan, place.at("comparisons", index))
    for name, overrides in plan.shared.items():
        _check_run(name, overrides, plan, place.at("shared", name))
    for name, overrides in plan.arms.items():
        if name in plan.shared:
            raise place.at("arms", name).fault("is also the name of a shared run")
        _check_run(name, overrides, plan, place.at("arms", name))
    return plan


def _check_claim(claim: Claim, plan: Plan, place: Place) -> None:
    place.at("a").require(claim.a, plan.arms)
    place.at("b").require(claim.b, plan.arms)
    place.at("quantity").require(claim.quantity, plan.quantities)
    if claim.kind == "equivalence" and (claim.margin is None or claim.margin < 0):
        raise place.fault("an equivalence needs a margin of at least 0, fixed beforehand")
    if claim.kind != "equivalence" and claim.margin is not None:
        raise place.at("margin").fault(f"only an equivalence has a margin, this is kind {claim.kind}")


def _check_run(name: str, overrides: dict[str, Any], plan: Plan, place: Place) -> None:
    if NAME.fullmatch(name) is None:
        raise place.fault("use letters, digits, _ . + - only: the name becomes a folder")
    for option, value in overrides.items():
        if option in ("config", "out", "seed"):
            raise place.at(option).fault("is set by the runner")
        for reference in SHARED.findall(str(value)):
            if name in plan.shared:
                raise place.at(option).fault("a shared run cannot build on another")
            place.at(option).require(reference, plan.shared)


def check_overrides(root: Path, project: str, plan: Plan) -> None:
    """Every run's overrides against the experiment's Config. Errors: InputError naming run and key."""
    config_class, file = entry_module(root, project, "train").Config, file_of(root, project, FILE)
    for name, overrides in plan.runs().items():
        own = {key: value for key, value in overrides.items() if key not in ("checkpoint", "stage")}
        try:
            common.config.parse(config_class, ["--config", str(file.parent / plan.config), *_options(own, {})], "")
        except InputError as error:
            group = "shared" if name in plan.shared else "arms"
            raise InputError(f"{file}: {group}.{name}: {error}") from error


def plan_jobs(root: Path, project: str, plan: Plan, seeds: range, out: Path) -> list[Job]:
    """The runs of an experiment, shared ones first; their folders are out/runs/PROJECT/NAME/seedN."""
    jobs, base = [], file_of(root, project, FILE).parent / plan.config
    for name, overrides in plan.runs().items():
        for seed in seeds:
            folders = {shared: out / "runs" / project / shared / f"seed{seed}" for shared in plan.shared}
            options = {key: value for key, value in overrides.items() if key != "checkpoint"}
            run = out / "runs" / project / name / f"seed{seed}"
            fixed = ["--config", str(base), "--out", str(run), "--seed", str(seed)]
            job = {"train": (*fixed, *_options(options, folders)), "run": run}
            job["log"] = out / "logs" / project / f"{name}-seed{seed}.txt"
            if name in plan.arms:
                job["checkpoint"] = run / overrides.get("checkpoint", plan.checkpoint)
                job["needs"] = tuple(n for n in plan.shared if n in SHARED.findall(str(options)))
                job["wanted"] = tuple(quantity.source for quantity in plan.quantities.values())
            jobs.append(Job(project, name, seed, **job))
    return sorted(jobs, key=lambda job: (job.checkpoint is not None, job.seed))


def _options(overrides: dict[str, Any], folders: dict[str, Path]) -> list[str]:
    """Overrides as `--key=value`, with the folders of shared runs filled in."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in overrides.items()}
    fill = lambda found: str(folders.get(found[1], found[0]))
    return [f"--{key}={SHARED.sub(fill, text)}" for key, text in texts.items()]


def _read(path: Path) -> tuple[Any, dict[str, int]]:
    """Plain data of a YAML file and the line of every dotted key. Errors: InputError, also for a key given twice."""
    try:
        text = path.read_text(encoding="utf-8")
        node, data = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        if isinstance(node, yaml.SequenceNode):
            pairs = [(yaml.ScalarNode("", str(i), item.start_mark), item) for i, item in enumerate(node.value)]
        for name, item in pairs:
            key, line = f"{prefix}{name.value}", name.start_mark.line + 1
            if key in lines:
                raise InputError(f"{path}:{line}: {key} was already given in line {lines[key]}")
            lines[key] = line
            walk(item, f"{key}.")

    walk(node, "")
    return data, lines
