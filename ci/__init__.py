"""What looks across the ten projects: contract check, reproduction runner and report, benchmark runner."""

import dataclasses
import importlib
import sys
import types
import typing
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


def checked(kind, value, file: str, key: str = "", lines: dict[str, int] | None = None):
    """Plain YAML or JSON data as `kind`: a dataclass, or list, dict, union, literal and scalar types within it.

    A field whose name in the file is not an identifier says so in its metadata (`key`). `lines` gives the line of a
    dotted key. Errors: InputError naming file, line, key and, for an unknown key or choice, the nearest valid one.
    """

    def fault(message: str, at: str = key) -> InputError:
        line = (lines or {}).get(at)
        place = f"{file}:{line}" if line else file
        return InputError(f"{place}: {at}: {message}" if at else f"{place}: {message}")

    def inside(part_kind, part, name):
        return checked(part_kind, part, file, f"{key}.{name}" if key else str(name), lines)

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return checked(next(a for a in arguments if a is not type(None)), value, file, key, lines)
    if origin is typing.Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise fault(f"{value!r} is not one of {choices}{nearest(str(value), map(str, arguments))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise fault(f"must be a list, found {value!r}")
        return [inside(arguments[0], part, index) for index, part in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise fault(f"must hold `name: value` pairs, found {value!r}")
        return {name: inside(arguments[1], part, name) for name, part in value.items()}
    if not dataclasses.is_dataclass(kind):
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise fault(f"must be {kind.__name__}, found {value!r}")
        return float(value) if kind is float else value
    if not isinstance(value, dict):
        raise fault(f"must hold `key: value` pairs, found {value!r}")
    fields = {field.metadata.get("key", field.name): field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in fields:
            at = f"{key}.{name}" if key else str(name)
            raise fault(f"unknown key{nearest(str(name), fields)}", at)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise fault(f"the key {name} is missing")
    return kind(**{f.name: inside(hints[f.name], value[n], n) for n, f in fields.items() if n in value})
