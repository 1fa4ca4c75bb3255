"""What looks across the ten projects: contract check, reproduction runner and report, benchmark runner."""

import importlib
import sys
import types
from pathlib import Path

from common.config import nearest
from common.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = ("dda", "rebnn", "winograd3d", "dcd", "smmix", "crd", "hqss", "lts", "labnet", "kcd")


def is_there(root: Path, project: str) -> bool:
    """Whether the project has been built: until its folder holds a train.py it is listed, not failed."""
    return (root / project / "train.py").is_file()


def experiments(root: Path, project: str) -> list[str]:
    """What the project's claims are planned as: itself, and `PROJECT-FAMILY` for each reproduce_FAMILY.yaml.

    A family of tasks has entry points of its own, train_FAMILY.py and eval_FAMILY.py, whose Config it exports.
    """
    families = sorted(path.stem.partition("_")[2] for path in (root / project).glob("reproduce_*.yaml"))
    return [project, *(f"{project}-{family}" for family in families)]


def file_of(root: Path, experiment: str, name: str) -> Path:
    """The file of an experiment: `train.py` of `rebnn-detection` is rebnn/train_detection.py."""
    project, _, family = experiment.partition("-")
    stem, dot, suffix = name.partition(".")
    return root / project / f"{stem}{'_' * bool(family)}{family}{dot}{suffix}"


def choose(names: list[str]) -> list[str]:
    """The projects asked for, all ten when none is named. Errors: InputError with the nearest name."""
    for name in names:
        if name not in PROJECTS:
            raise InputError(f"{name} is not one of {', '.join(PROJECTS)}{nearest(name, PROJECTS)}")
    return list(dict.fromkeys(names)) or list(PROJECTS)


def entry_module(root: Path, experiment: str, name: str) -> types.ModuleType:
    """The module `train` or `eval` of an experiment as it lies under `root`."""
    path = file_of(root, experiment, name)
    return project_module(root, path.parent.name, path.name)


def project_module(root: Path, project: str, name: str) -> types.ModuleType:
    """A module of the project as it lies under `root`."""
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"{project}.{name}")
