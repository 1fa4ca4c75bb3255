"""Plain YAML or JSON data against dataclasses: it becomes one, or an error that names file, line and key."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field

from common.config import nearest
from common.errors import InputError


@dataclass(frozen=True)
class Place:
    """A dotted key of a file; `lines` gives the line of a key where that is known."""

    file: str
    key: str = ""
    lines: dict[str, int] = field(default_factory=dict)

    def at(self, *names) -> "Place":
        """The place of a key, an index or a path of them below this one."""
        return dataclasses.replace(self, key=".".join(map(str, [*filter(None, [self.key]), *names])))

    def fault(self, message: str) -> InputError:
        """The error to raise, which begins with file, line and key."""
        file = f"{self.file}:{self.lines[self.key]}" if self.key in self.lines else self.file
        return InputError(f"{file}: {self.key}: {message}" if self.key else f"{file}: {message}")

    def require(self, name: str, among: typing.Iterable[str]) -> None:
        """Raise unless the name is one of those."""
        among = list(map(str, among))
        if name not in among:
            raise self.fault(f"{name} is not one of {', '.join(among)}{nearest(name, among)}")


def checked(kind, value, place: Place):
    """The value as `kind`: a dataclass, or list, dict, `X | None`, Literal and scalar types within it.

    Errors: InputError, for an unknown key or choice with the nearest valid one.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, place)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else checked(arguments[0], value, place)
    if origin is typing.Literal:
        place.require(str(value), arguments)
        return value
    if origin is list:
        if not isinstance(value, list):
            raise place.fault(f"must be a list, found {value!r}")
        return [checked(arguments[0], part, place.at(index)) for index, part in enumerate(value)]
    if origin is dict:
        pairs = _pairs(value, place)
        return {name: checked(arguments[1], part, place.at(name)) for name, part in pairs.items()}
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise place.fault(f"must be {kind.__name__}, found {value!r}")
    return float(value) if kind is float else value


def _object(kind: type, value, place: Place):
    """A dataclass; a field whose name in the file is not an identifier gives it in its metadata, as `key`."""
    pairs = _pairs(value, place)
    fields = {f.metadata.get("key", f.name): f for f in dataclasses.fields(kind)}
    for name in pairs:
        if name not in fields:
            raise place.at(name).fault(f"unknown key{nearest(name, fields)}")
    for name, f in fields.items():
        if name not in pairs and f.default is f.default_factory is dataclasses.MISSING:
            raise place.fault(f"the key {name} is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{fields[n].name: checked(hints[fields[n].name], part, place.at(n)) for n, part in pairs.items()})


def _pairs(value, place: Place) -> dict[str, typing.Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise place.fault(f"must hold `name: value` pairs, found {value!r}")
    return value


def plain(value):
    """The inverse of `checked`: dicts, lists and scalars, ready for JSON."""
    if dataclasses.is_dataclass(value):
        return {f.metadata.get("key", f.name): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value
