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


def choose(names: list[str]) -> list[str]:
    """The projects asked for, all ten when none is named. Errors: InputError with the nearest name."""
    for name in names:
        if name not in PROJECTS:
            raise InputError(f"{name} is not one of {', '.join(PROJECTS)}{nearest(name, PROJECTS)}")
    return list(dict.fromkeys(names)) or list(PROJECTS)


def project_module(root: Path, project: str, name: str) -> types.ModuleType:
    """A module of the project as it lies under `root`."""
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"{project}.{name}")
