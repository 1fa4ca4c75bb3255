"""Checks that every project has the one shape: `python -m ci.contract`.

A rule is a function from a project to its faults. A project that has not been built yet is listed, not failed.
"""

import ast
import functools
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import common.config
from common.errors import InputError

import torch

from ci import PROJECTS, ROOT, experiments, file_of, is_there, project_module, readme, results
from ci.plan import FILE, check_overrides, load_plan

REQUIRED = (
    *("README.md", "requirements.txt", "cfg.yaml", "configs/", "reproduce.yaml", "__init__.py", "config.py"),
    *("train.py", "eval.py", "method.py|method/", "models.py|models/", "data.py"),
    *(f"tests/test_{name}.py" for name in ("method", "models", "data", "train", "oracles")),
)
METHOD_MAY_IMPORT = {"hqss": ("common.shadow", "common.gan"), "labnet": ("common.shadow",)}
"""what a method file may import beside torch, the standard library and its own kind"""
ORACLES_LIMIT = 500_000
"""bytes of a project's committed oracles"""
GENERATED = {"__pycache__", "runs", "reproduction", "data", "save", ".pytest_cache", ".hypothesis", ".ruff_cache"}
TEXT = {".py", ".md", ".txt", ".yaml", ".yml", ".json", ".toml", ".cfg", ".sh", ".c", ".cpp", ".h"}
MACHINE_PATH = re.compile(r"(?<![\w.$/}~*-])/(?:work|home|root|tmp|Users)\b|\.\./shared\b")
HEADER = {
    "the table row or figure": re.compile(r"\b(table|row|figure|fig\.|section|poster)\b", re.I),
    "the hardware": re.compile(r"\b(\d+ ?x ?)?(GPUs?|CPUs?|cores?|[AHV]\d{2,3})\b"),
    "the expected number (`expected …`)": re.compile(r"\bexpect(ed|s)?\b.*((?<![\w-])\d|\bno\b)", re.I),
}


@dataclass(frozen=True)
class Fault:
    """One breach: file relative to the repository, line (0: the file as a whole) and what is wrong."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}" if self.line else f"{self.path}: {self.message}"


@dataclass(frozen=True)
class Project:
    """A folder of the repository under check."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def fault(self, path: Path, line: int, message: str) -> Fault:
        return Fault(path.relative_to(self.root).as_posix(), line, message)

    def files(self, *suffixes: str) -> list[Path]:
        """Files that are written by hand, with one of the suffixes."""
        paths = (path for path in self.folder.rglob("*") if path.suffix in suffixes and path.is_file())
        return sorted(path for path in paths if not GENERATED.intersection(self._parts(path)))

    def sources(self) -> list[Path]:
        """Python files that are not tests."""
        return [path for path in self.files(".py") if "tests" not in self._parts(path)]

    def configs(self) -> list[Path]:
        """cfg.yaml and everything in configs/."""
        paths = (self.folder / "cfg.yaml", *sorted(self.folder.glob("configs/**/*.yaml")))
        return [path for path in paths if path.is_file()]

    def _parts(self, path: Path) -> tuple[str, ...]:
        """The folders between the project and the file; its data.py is a file, its data/ is not ours."""
        return path.relative_to(self.folder).parts[:-1]


def required_files(project: Project) -> list[Fault]:
    """The shape that all ten share."""
    faults = []
    for entry in REQUIRED:
        ways = [project.folder / way for way in entry.split("|")]
        # Path drops a final slash; what has a suffix is a file.
        if not any(way.is_file() if way.suffix else way.is_dir() for way in ways):
            faults.append(project.fault(ways[0], 0, f"is missing ({' or '.join(entry.split('|'))})"))
    return faults


def configs_build(project: Project) -> list[Fault]:
    """Every config parses, and its networks can be built (on the meta device, which costs neither time nor memory)."""
    faults, entries = [], {path: _entry(project, path) for path in project.configs()}
    for script in dict.fromkeys(("train.py", *entries.values())):
        try:
            module = project_module(project.root, project.name, Path(script).stem)
            config_class, build = module.Config, module.build
        except Exception as error:  # whatever an import raises is the finding
            message = f"Config and build cannot be imported: {_told(error)}"
            faults.append(project.fault(project.folder / script, 0, message))
            continue
        for path in (path for path, entry in entries.items() if entry == script):
            try:
                config = common.config.load(config_class, path)
                with torch.device("meta"):
                    build(config)
            except Exception as error:
                faults.append(_at_line(project, path, _told(error)))
    return faults


def config_headers(project: Project) -> list[Fault]:
    """A file of configs/ begins with what it reproduces, on what, what to expect and its command."""
    faults = []
    for path in sorted(project.folder.glob("configs/**/*.yaml")):
        header = _header(path)
        option = re.escape(f"--config {path.relative_to(project.folder).as_posix()}")
        command = re.compile(rf"^(python|torchrun\b.*) train\w*\.py .*{option}(\s|$)", re.M)
        wanted = {**HEADER, "its own command": command}
        faults += [
            project.fault(path, 1, f"the comment that begins the file does not name {what}")
            for what, pattern in wanted.items()
            if not pattern.search(header)
        ]
    return faults


def config_fields_read(project: Project) -> list[Fault]:
    """Every field of the dataclasses in config.py is read as an attribute, outside the class that defines it."""
    path = project.folder / "config.py"
    if not path.is_file():
        return []
    reads = [(source, node) for source in project.sources() for node in ast.walk(_tree(source)) if _is_read(node)]
    # What every run needs (seed, device) is read where the config is handed to: common/.
    for source in Project(project.root, "common").sources():
        reads += [(source, node) for node in ast.walk(_tree(source)) if _is_read(node) and _is_config(node.value)]
    faults = []
    for definition in ast.walk(_tree(path)):
        if not isinstance(definition, ast.ClassDef) or not any(map(_is_dataclass, definition.decorator_list)):
            continue
        own = range(definition.lineno, definition.end_lineno + 1)
        outside = {node.attr for source, node in reads if source != path or node.lineno not in own}
        faults += [
            project.fault(path, item.lineno, f"{definition.name}.{item.target.id} is read nowhere")
            for item in definition.body
            if isinstance(item, ast.AnnAssign) and item.target.id not in outside
        ]
    return faults


def project_imports(project: Project) -> list[Fault]:
    """Projects never import one another."""
    return [
        project.fault(path, line, f"imports {names[0]}: projects never import one another")
        for path in project.files(".py")
        for line, names in _imports(path, project.root)
        if names[0].split(".")[0] in set(PROJECTS) - {project.name}
    ]


def method_imports(project: Project) -> list[Fault]:
    """The paper's file reads alone: torch, the standard library, itself, and what METHOD_MAY_IMPORT grants."""
    allowed = ("torch", *sys.stdlib_module_names, f"{project.name}.method", *METHOD_MAY_IMPORT.get(project.name, ()))
    files = [path for path in project.sources() if path.relative_to(project.folder).parts[0] in ("method.py", "method")]
    return [
        project.fault(path, line, f"imports {names[0]}: a method file may import {_may_import(project.name)}")
        for path in files
        for line, names in _imports(path, project.root)
        if not any(name == root or name.startswith(f"{root}.") for name in names for root in allowed)
    ]


def reproduction_plan(project: Project) -> list[Fault]:
    """Every reproduce*.yaml is valid, and so is every run's config."""
    faults = []
    for name in experiments(project.root, project.name):
        path = file_of(project.root, name, FILE)
        try:
            if path.is_file():
                check_overrides(project.root, name, load_plan(path))
        except Exception as error:
            faults.append(_at_line(project, path, _told(error)))
    return faults


def saved_results(project: Project) -> list[Fault]:
    """Committed results have the schema, and their verdicts follow from their numbers."""
    faults = []
    for name in experiments(project.root, project.name):
        try:
            results.read_saved(project.root, name)
        except InputError as error:
            faults.append(_at_line(project, file_of(project.root, name, "results.json"), str(error)))
    return faults


def readme_commands(project: Project) -> list[Fault]:
    """Scripts, configs and make targets in the README's fenced shell blocks exist."""
    path = project.folder / "README.md"
    if not path.is_file():
        return []
    found = readme.faults(path.read_text(encoding="utf-8"), project.folder, project.root)
    return [project.fault(path, line, message) for line, message in found]


def oracles_size(project: Project) -> list[Fault]:
    """Committed oracles stay small; the full set is given by the environment variable ORACLES."""
    folder = project.folder / "tests" / "oracles"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size <= ORACLES_LIMIT:
        return []
    return [project.fault(folder, 0, f"holds {size / 1000:.0f} kB, the limit is {ORACLES_LIMIT / 1000:.0f} kB")]


def machine_paths(project: Project) -> list[Fault]:
    """No file names a path of the machine that it was written on."""
    return [
        project.fault(path, number, f"names a path of one machine: {found[0]}")
        for path in project.files(*TEXT)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if (found := MACHINE_PATH.search(line))
    ]


RULES = (
    *(required_files, configs_build, config_headers, config_fields_read, project_imports, method_imports),
    *(reproduction_plan, saved_results, readme_commands, oracles_size, machine_paths),
)
SHARED_RULES = (project_imports, machine_paths)
"""what also holds for common/ and ci/, which know no project by its code"""


def _header(path: Path) -> str:
    """The comment that begins a YAML file, without its signs."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line.lstrip("# ") for line in lines)


def _entry(project: Project, path: Path) -> str:
    """The script that a config is for, as the command in its first lines says: train.py or another train_*.py."""
    command = re.escape(path.relative_to(project.folder).as_posix())
    found = re.search(rf"\b(train_\w+\.py) .*--config {command}", _header(path))
    return found[1] if found else "train.py"


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _at_line(project: Project, path: Path, message: str) -> Fault:
    """A fault whose message may begin with the file and line it is about."""
    found = re.match(rf"{re.escape(str(path))}(?::(\d+))?: (.*)", message, re.S)
    return project.fault(path, int(found[1] or 0), found[2]) if found else project.fault(path, 0, message)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _is_read(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)


def _is_config(node: ast.AST) -> bool:
    return getattr(node, "id", getattr(node, "attr", "")) in ("config", "conf")


def _is_dataclass(decorator: ast.expr) -> bool:
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    return (call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")) == "dataclass"


def _imports(path: Path, root: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, absolute names) of every import of a file, inside functions too.

    `from a import b` may mean the module a.b or a name in a: both are given, a first.
    """
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, [alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, [base, f"{base}.{alias.name}"]) for alias in node.names)


def _may_import(project: str) -> str:
    return ", ".join(["torch", "the standard library", "method files", *METHOD_MAY_IMPORT.get(project, ())])


def check(root: Path) -> dict[str, list[Fault] | None]:
    """Faults by project, None where it is not there yet; also by `common` and `ci`."""
    _tree.cache_clear()
    readme.make_targets.cache_clear()
    found: dict[str, list[Fault] | None] = {}
    for name in PROJECTS:
        there = is_there(root, name)
        found[name] = _faults(Project(root, name), RULES) if there else None
    for name in ("common", "ci"):
        found[name] = _faults(Project(root, name), SHARED_RULES)
    return found


def _faults(project: Project, rules: tuple) -> list[Fault]:
    """Faults of all rules; a file that is not Python is one fault, because the rules that read syntax cannot go on."""
    for path in project.files(".py"):
        try:
            _tree(path)
        except SyntaxError as error:
            return [project.fault(path, error.lineno or 0, f"is not valid Python: {error.msg}")]
    return [fault for rule in rules for fault in rule(project)]


def main(root: Path = ROOT) -> int:
    """Print a line for each project, then each fault; 1 if there is any."""
    found = check(root.resolve())
    for name, faults in found.items():
        count = "not there yet" if faults is None else f"{len(faults)} faults" if faults else "ok"
        print(f"{name:12} {count}")
    faults = [fault for faults in found.values() for fault in faults or []]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
