"""What a reproduction leaves, as checked JSON: report.json and `<project>/results.json` (committed, from long runs).

Both have this one schema, and their verdicts are computed again from their metrics whenever a file is read.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from common.errors import InputError

from ci import file_of, verdict
from ci.schema import Place, checked, plain

SCHEMA = 1


@dataclass(frozen=True)
class Quantity:
    """A number that arms are compared by."""

    source: str = field(metadata={"key": "from"})
    """its key in metrics.json"""
    higher_is_better: bool
    unit: str = ""
    label: str = ""


@dataclass(frozen=True)
class Claim:
    """One comparison of two arms, as reproduce.yaml states it."""

    a: str
    b: str
    quantity: str
    kind: Literal["direction", "equivalence", "exact"]
    claim: str
    margin: float | None = None
    """largest difference that still counts as equal, in the quantity's unit; fixed before the run"""


@dataclass(frozen=True, kw_only=True)
class Comparison(Claim):
    """A claim and what the paired differences a - b, one a seed, say about it."""

    differences: list[float | None]
    mean: float | None
    interval: list[float] | None
    verdict: str
    reason: str


@dataclass(frozen=True)
class Curve:
    """A value of a stage's log.jsonl drawn over epochs."""

    quantity: str
    split: str
    stage: str


@dataclass(frozen=True)
class CurveResult:
    """Mean, lowest and highest value over the seeds at each epoch."""

    epochs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Named:
    """Something by its name and the sha256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Hardware:
    """Where it ran: cores of the machine, its processor, and how many runs shared it."""

    cores: int
    cpu: str
    jobs: int


@dataclass(frozen=True)
class SharedResult:
    """A run that arms build on; lists hold one entry per seed."""

    overrides: dict[str, Any]
    commands: list[str]
    """training and, of an arm, evaluation of the first seed, to be typed at the repository's root"""
    seconds: list[float | None]
    """wall time of training, with `hardware.jobs` runs at a time"""
    errors: list[str | None]


@dataclass(frozen=True)
class ArmResult(SharedResult):
    """One arm; a seed whose run failed has no metrics."""

    metrics: list[dict[str, float | None] | None]
    curves: list[CurveResult | None]
    """one entry per curve of the project"""

    def values(self, metric: str) -> list[float | None]:
        """The metric of every seed, None where there is none."""
        return [None if metrics is None else metrics.get(metric) for metrics in self.metrics]


@dataclass(frozen=True)
class ProjectResult:
    """Everything that one project's arms gave."""

    paper: dict[str, Any]
    config: Named
    data: Named | None
    commit: str | None
    dirty: bool
    """whether files differed from the commit"""
    versions: dict[str, str]
    hardware: Hardware
    command: str
    seeds: list[int]
    quantities: dict[str, Quantity]
    cost: list[str]
    curves: list[Curve]
    shared: dict[str, SharedResult]
    arms: dict[str, ArmResult]
    comparisons: list[Comparison]

    def runs(self) -> dict[str, SharedResult]:
        """Shared runs and arms by their names."""
        return {**self.shared, **self.arms}


@dataclass(frozen=True)
class Results:
    """The content of report.json and of every results.json."""

    schema: int = field(default=SCHEMA, kw_only=True)
    projects: dict[str, ProjectResult]


def compare(claim: Claim, quantities: dict[str, Quantity], arms: dict[str, ArmResult]) -> Comparison:
    """The claim judged by the arms' metrics."""
    quantity = quantities[claim.quantity]
    a, b = (arms[name].values(quantity.source) for name in (claim.a, claim.b))
    found = verdict.judge(claim.kind, a, b, quantity.higher_is_better, claim.margin)
    return Comparison(
        **{f.name: getattr(claim, f.name) for f in fields(Claim)},
        differences=found.differences,
        mean=found.mean,
        interval=found.interval,
        verdict=found.word,
        reason=found.reason,
    )


def to_json(results: Results) -> str:
    """Results as JSON text; the inverse of `from_json`."""
    return json.dumps(plain(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, file: str) -> Results:
    """Checked results: schema, one entry per seed, and verdicts that follow from the metrics.

    Errors: InputError naming file and key.
    """
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}") from error
    version = tree.get("schema") if isinstance(tree, dict) else None
    if version != SCHEMA:
        raise InputError(f"{file}: schema: is {version}, this version reads {SCHEMA}; run the project again")
    results = checked(Results, tree, Place(file))
    for name, project in results.projects.items():
        _check(project, Place(file, f"projects.{name}"))
    return results


def _check(project: ProjectResult, place: Place) -> None:
    for group, runs in (("shared", project.shared), ("arms", project.arms)):
        for name, run in runs.items():
            for key in ("seconds", "errors", "metrics"):
                if len(getattr(run, key, project.seeds)) != len(project.seeds):
                    raise place.at(group, name, key).fault(f"one entry per seed, {len(project.seeds)}")
            if len(getattr(run, "curves", project.curves)) != len(project.curves):
                raise place.at(group, name, "curves").fault(f"one entry per curve, {len(project.curves)}")
    for index, given in enumerate(project.comparisons):
        at = place.at("comparisons", index)
        if not {given.a, given.b} <= project.arms.keys() or given.quantity not in project.quantities:
            raise at.fault("its arms or its quantity are not in this file")
        found = compare(given, project.quantities, project.arms)
        if not all(_same(getattr(found, key), getattr(given, key)) for key in vars(found)):
            raise at.fault(f"the metrics give {found.verdict!r} with mean {found.mean}, not what is written")


def _same(one, other) -> bool:
    """Equality, of numbers up to the rounding of another machine's arithmetic."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return one == other


def save(results: Results, path: Path) -> None:
    """Write results after reading them back, so that nothing is written that could not be read."""
    text = to_json(results)
    from_json(text, str(path))
    path.write_text(text, encoding="utf-8")


def read_saved(root: Path, project: str) -> ProjectResult | None:
    """The project's committed results, None where there are none. Errors: InputError, also for another project's."""
    path = file_of(root, project, "results.json")
    if not path.is_file():
        return None
    results = from_json(path.read_text(encoding="utf-8"), str(path))
    if list(results.projects) != [project]:
        raise InputError(f"{path}: must hold {project} alone, found {', '.join(results.projects) or 'nothing'}")
    return results.projects[project]


def text_table(results: Results) -> str:
    """The verdicts as aligned text, one comparison a line."""
    rows = [("project", "arms", "quantity", "mean difference [95 % interval]", "verdict", "because")]
    for name, project in results.projects.items():
        for c in project.comparisons:
            shown = difference(c, project.quantities[c.quantity].unit)
            rows.append((name, f"{c.a} - {c.b}", c.quantity, shown, c.verdict, c.reason))
    if len(rows) == 1:
        return "no comparison was run"
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def number(value: float | None) -> str:
    """Four significant digits, from a million on with M, G or T; a dash for no number."""
    return numbers([value])[0]


def numbers(values: Iterable[float | None], signed: bool = False) -> list[str]:
    """Numbers to one decimal place, that of four significant digits of the largest; true minus signs."""
    values = list(values)
    size = max((abs(value) for value in values if value is not None), default=0.0)
    factor, letter = next(((f, f" {c}") for f, c in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if size >= f), (1.0, ""))
    digits = max(0, 3 - math.floor(math.log10(size / factor))) if size else 2
    form = ".2e" if 0 < size < 1e-4 else f".{digits}f"

    def text(value: float | None) -> str:
        if value is None:
            return "–"
        return f"{'+' * (signed and value > 0)}{value / factor:{form}}{letter}".replace("-", "−")

    return [text(value) for value in values]


def difference(comparison: Comparison, unit: str) -> str:
    """`mean [low, high] unit`, all to the same decimal."""
    if comparison.mean is None:
        return "–"
    mean, *bounds = numbers([comparison.mean, *(comparison.interval or [])], signed=True)
    return " ".join([mean, *([f"[{', '.join(bounds)}]"] if bounds else []), unit]).rstrip()
