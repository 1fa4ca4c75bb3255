"""The tasks: where their columns, labels and files are, and which measures they are judged by (sections 5 and 6)."""

from pathlib import Path
from typing import NamedTuple

from common.errors import InputError


class Task(NamedTuple):
    """Columns count from 0, -1 is the last; no labels means a number to be predicted."""

    folder: str
    first: int
    second: int | None
    label: int
    labels: tuple[str, ...]
    measures: tuple[str, ...] = ("accuracy",)
    """the first (or the mean of two correlations) chooses best.pt"""
    header: bool = True
    short_rows: bool = False
    """whether rows with too few columns occur and are skipped"""
    dev: tuple[str, ...] = ("dev",)

    @property
    def outputs(self) -> int:
        """Logits of a network: one for a number."""
        return len(self.labels) or 1


BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
TASKS = {
    "cola": Task("CoLA", 3, None, 1, BINARY, ("matthews",), header=False),
    "sst2": Task("SST-2", 0, None, 1, BINARY),
    "mrpc": Task("MRPC", 3, 4, 0, BINARY, ("accuracy", "f1")),
    "stsb": Task("STS-B", 7, 8, -1, (), ("pearson", "spearman")),
    "qqp": Task("QQP", 3, 4, 5, BINARY, ("accuracy", "f1"), short_rows=True),
    "mnli": Task("MNLI", 8, 9, -1, ("contradiction", "entailment", "neutral"), dev=("dev_matched", "dev_mismatched")),
    "qnli": Task("QNLI", 1, 2, -1, ENTAILMENT),
    "rte": Task("RTE", 1, 2, -1, ENTAILMENT),
}
"""GLUE, by the names that configs use"""


class Row(NamedTuple):
    """One sample: a text or a pair of them, and the number of its label or the number to be predicted."""

    first: str
    second: str | None
    label: float


def parts(task: Task, evaluate: str) -> tuple[str, ...]:
    """The files that are evaluated, without their ending."""
    return task.dev if evaluate == "dev" else tuple(part.replace("dev", "test") for part in task.dev)


def read(task: Task, root: str | Path, part: str) -> tuple[list[Row], int]:
    """The rows of a part and how many were too short to use.

    Errors: InputError for a file that is missing, not UTF-8 or empty, a row with too few columns (but where the task
    is known for them), and a label that the task does not have.
    """
    path = find(task, root, part)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    rows, short = [], 0
    for number, line in enumerate(lines, 1):
        if not line or (task.header and number == 1):
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) <= max(task.first, task.second or 0, task.label):
            if task.short_rows:
                short += 1
                continue
            raise InputError(
                f"{path}:{number}: has {len(cells)} columns, {task.folder} needs "
                f"{max(task.first, task.second or 0, task.label) + 1} (tab separated); is it this task's file?"
            )
        second = None if task.second is None else cells[task.second]
        rows.append(Row(cells[task.first], second, label_of(task, cells[task.label], f"{path}:{number}")))
    if not rows:
        raise InputError(f"{path}: holds no samples; give {task.folder}'s {part}.tsv")
    return rows, short


def label_of(task: Task, text: str, where: str) -> float:
    """The number of a label, or the number itself. Errors: InputError."""
    if task.labels:
        if text not in task.labels:
            raise InputError(f"{where}: {text!r} is no label of {task.folder} ({', '.join(task.labels)})")
        return float(task.labels.index(text))
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(f"{where}: {text!r} is not a finite number, which {task.folder} predicts")
    return value


def find(task: Task, root: str | Path, part: str) -> Path:
    """ROOT/TASK/part.tsv or ROOT/part.tsv. Errors: InputError."""
    places = [Path(root) / task.folder / f"{part}.tsv", Path(root) / f"{part}.tsv"]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"{places[0]}: there is no such file, nor {places[1]}; get {task.folder} from https://gluebenchmark.com/tasks "
        "and give its folder as --data.root"
    )
