"""The families of tasks: each has a Config of its own, and train_FAMILY.py and eval_FAMILY.py beside train.py."""

import importlib
import typing
from pathlib import Path

from common.errors import InputError

import yaml

CONFIGS = {"": "rebnn.config", "detection": "rebnn.detection.config", "glue": "rebnn.glue.config"}
"""where the Config of each family is; the classifiers' scripts have no family in their names"""


def script(kind: str, family: str) -> str:
    """The name of a family's script without its ending; kind: train or eval."""
    return f"{kind}_{family}" if family else kind


def family_of(values: object) -> str | None:
    """The family that the data of a config's values belong to; None where they name none that is known."""
    data = values.get("data") if isinstance(values, dict) else None
    name = data.get("name") if isinstance(data, dict) else None
    for family, module in CONFIGS.items():
        settings = typing.get_type_hints(importlib.import_module(module).Config)["data"]
        if name in typing.get_args(typing.get_type_hints(settings)["name"]):
            return family
    return None


def config_file(argv: list[str]) -> str:
    """The config file that a command line names, or nothing."""
    paths = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    return paths[0] if paths else argv[argv.index("--config") + 1] if "--config" in argv[:-1] else ""


def family_of_file(path: str) -> str | None:
    """The family of a config file; None for what cannot be read."""
    try:
        return family_of(yaml.safe_load(Path(path).read_text(encoding="utf-8"))) if path else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # what parses the config says what is wrong with it


def require(found: str | None, own: str, kind: str, what: object) -> None:
    """Refuse what another family's script is for. Errors: InputError that names the script."""
    if found not in (None, own):
        raise InputError(f"{what}: belongs to another family of tasks; python {script(kind, found)}.py takes it")
