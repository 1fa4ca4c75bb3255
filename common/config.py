"""Configs are frozen dataclasses; YAML files and the command line fill them, and every fault names its key.

A field is one line with its default, followed by a string that gives meaning, unit and source; that string is what
`--help` prints. Nothing unknown is ignored, nothing is evaluated, and a file only states what differs from the
defaults.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import typing
from argparse import ArgumentError
from pathlib import Path

from common.errors import InputError

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt, restricted_number_type

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Count, Index, Fraction = PositiveInt, NonNegativeInt, ClosedUnitInterval
Positive = restricted_number_type("Positive", float, [(">", 0), ("<", math.inf)])
NonNegative = restricted_number_type("NonNegative", float, [(">=", 0), ("<", math.inf)])
Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])

ConfigT = typing.TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class Command:
    """What is asked of one call, beside the experiment itself."""

    out: str | None = None
    """folder of the run; by default runs/ and the name of the config"""
    stage: str = "all"
    """the stage to run, or all of them in order"""
    resume: str = "never"
    """never, auto (continue from the run folder where it has a checkpoint) or the path of a checkpoint"""
    resume_force: bool = False
    """resume although the config has changed since the checkpoint"""


def parse(
    config_class: type[ConfigT], argv: list[str], description: str, stages: tuple[str, ...] = ()
) -> tuple[ConfigT, Command, str]:
    """Parse `--config FILE`, dotted overrides and the flags of `Command`; also returns the config's name.

    Errors: InputError naming the file and line (or the option), the key and the nearest valid name.
    """
    parser = _parser(config_class, description)
    parser.add_class_arguments(Command, as_group=True)
    path = _config_path(argv)
    lines = _check_file(parser, path) if path else {}
    values = _parse(parser, argv, path, lines)
    command = _build(Command, values)
    if command.stage not in ("all", *stages):
        raise InputError(f"--stage {command.stage}: {_choices(command.stage, ['all', *stages])}")
    return _build(config_class, values), command, Path(path).stem if path else "default"


def load(config_class: type[ConfigT], path: str | Path) -> ConfigT:
    """The config in one YAML file. Errors: as `parse`."""
    parser = _parser(config_class, "")
    lines = _check_file(parser, str(path))
    return _build(config_class, _parse(parser, ["--config", str(path)], str(path), lines))


def override(config: ConfigT, argv: list[str], description: str = "") -> ConfigT:
    """The config with dotted command-line overrides such as `--data.root DIR`. Errors: as `parse`."""
    parser = _parser(type(config), description)
    parser.set_defaults(_flat(to_dict(config)))
    return _build(type(config), _parse(parser, argv, None, {}))


def from_dict(config_class: type[ConfigT], values: dict) -> ConfigT:
    """The inverse of `to_dict`. Errors: InputError for values that this version does not know."""
    parser = _parser(config_class, "")
    unknown = [key for key in _flat(values) if key not in _keys(parser)]
    if unknown:
        raise InputError(f"the stored config has keys this version does not know: {', '.join(unknown)}")
    try:
        return _build(config_class, parser.parse_object(values).as_dict())
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"the stored config does not fit this version: {' '.join(str(error).split())}") from error


def to_dict(config) -> dict:
    """Plain nested dict of numbers, strings, lists and None."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def dump(config) -> str:
    """The whole config as YAML, in the order of its definition."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def digest(config) -> str:
    """sha256 of the config's content; every checkpoint and env.json carry it."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def differences(old: dict, new: dict) -> list[str]:
    """`key: old -> new` for every key on which two nested dicts differ."""
    old, new = _flat(old), _flat(new)
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """`, did you mean …?` when a valid name lies close, otherwise nothing."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def _choices(name: str, valid: list[str]) -> str:
    return f"not one of {', '.join(valid)}{nearest(name, valid)}"


def _parser(config_class: type, description: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with what differs from the defaults")
    parser.add_class_arguments(config_class, as_group=True)
    return parser


def _keys(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.option_strings]


def _config_path(argv: list[str]) -> str | None:
    paths = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"]
    paths += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if len(paths) > 1:
        raise InputError(f"--config was given {len(paths)} times ({', '.join(paths)}); give one")
    return paths[0] if paths else None


def _parse(parser: ArgumentParser, argv: list[str], path: str | None, lines: dict[str, int]) -> dict:
    given = {word.partition("=")[0].lstrip("-") for word in argv if word.startswith("--")}
    # jsonargparse lets the later word win; an option wins over the file wherever it stands.
    argv = ["--config", path, *_without_config(argv)] if path else argv
    try:
        return parser.parse_args(argv).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
    found = re.search(r'key "([^"]+)":? ?(.*)', message)
    if found:
        key, cause = found.groups()
        where = f"{path}:{lines[key]}: " if key in lines and key not in given else "--"
        raise InputError(f"{where}{key}: {cause}")
    options = [word.partition("=")[0][2:] for word in argv if word.startswith("--")]
    for name in options:
        if name not in _keys(parser) and not name.startswith("print_config"):
            raise InputError(f"--{name} is not an option{nearest(name, _keys(parser))}")
    raise InputError(f"{path}: {message}" if path and "config" in message else message)


def _without_config(argv: list[str]) -> list[str]:
    taken = {i + k for i, word in enumerate(argv) if word == "--config" for k in (0, 1)}
    return [word for i, word in enumerate(argv) if i not in taken and not word.startswith("--config=")]


def _check_file(parser: ArgumentParser, path: str) -> dict[str, int]:
    """The line of every key; InputError for what YAML would accept silently or report without a place."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tags = [token for token in yaml.scan(text) if isinstance(token, yaml.TagToken)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text") from error
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if node is None or node.tag != "tag:yaml.org,2002:map":
        raise InputError(f"{path}: must hold `key: value` lines, found {'nothing' if node is None else node.id}")
    if tags:
        line = tags[0].start_mark.line
        raise InputError(f"{path}:{line + 1}: tags are not allowed: {text.splitlines()[line].strip()[:80]}")
    valid = _keys(parser)
    empty = [a.dest for a in parser._actions if type(None) in typing.get_args(getattr(a, "_typehint", None))]
    lines: dict[str, int] = {}

    def walk(mapping: yaml.MappingNode, prefix: str) -> None:
        for key_node, value in mapping.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            if key in lines:
                raise InputError(f"{path}:{line}: {key} was already given in line {lines[key]}")
            if key not in valid or key == "config":
                raise InputError(f"{path}:{line}: unknown key {key}{nearest(key, valid)}")
            lines[key] = line
            if isinstance(value, yaml.MappingNode):
                walk(value, f"{key}.")
            elif any(name.startswith(f"{key}.") for name in valid):
                raise InputError(f"{path}:{line}: {key} is a group; give its keys below it, indented")
            elif value.tag == "tag:yaml.org,2002:null" and key not in empty:
                raise InputError(f"{path}:{line}: {key} needs a value")

    walk(node, "")
    try:
        yaml.safe_load(text)  # scalars that are not what they look like, such as a 13th month
    except yaml.constructor.ConstructorError as error:
        raise InputError(f"{path}:{error.problem_mark.line + 1}: {error.problem}") from error
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    return lines


def _build(cls: type[ConfigT], values: dict) -> ConfigT:
    """A (nested) dataclass from a plain dict that may hold other keys as well."""
    if not isinstance(values, dict):
        raise InputError(f"{cls.__name__.lower()} is a group of keys, not {values!r}")
    hints = typing.get_type_hints(cls)
    for key, hint in hints.items():  # jsonargparse takes None for every type
        if values[key] is None and type(None) not in typing.get_args(hint):
            raise InputError(f"{key} needs a value")
    made = {
        field.name: _build(hints[field.name], values[field.name])
        if dataclasses.is_dataclass(hints[field.name])
        else _plain(values[field.name], hints[field.name])
        for field in dataclasses.fields(cls)
    }
    return cls(**made)


def _plain(value, hint=None):
    """The value without jsonargparse's subclasses of int and float, which no checkpoint may hold.

    A tuple is one again after a detour through JSON or a default: a frozen config must be hashable.
    """
    if isinstance(value, list | tuple):
        kind = tuple if typing.get_origin(hint) is tuple else type(value)
        return kind(_plain(item) for item in value)
    return next((kind(value) for kind in (bool, int, float) if isinstance(value, kind)), value)


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
