"""Checks that every project has the one shape: `python -m ci.contract`.

A rule is a function from a project to its faults. A project that has not been built yet is listed, not failed.
"""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import common.config
from common.errors import InputError

import torch

from ci import PROJECTS, ROOT, is_there, project_module, results
from ci.plan import check_overrides, load_plan

REQUIRED = (
    *("README.md", "requirements.txt", "cfg.yaml", "configs/", "reproduce.yaml", "__init__.py", "config.py"),
    *("train.py", "eval.py", "method.py|method/", "models.py|models/", "data.py"),
    *(f"tests/test_{name}.py" for name in ("method", "models", "data", "train", "oracles")),
)
METHOD_MAY_IMPORT = {"hqss": ("common.shadow",), "labnet": ("common.shadow",)}
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
SHELLS = ("sh", "bash", "shell", "console", "zsh")


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
        return [
            path
            for path in (self.folder / "cfg.yaml", *sorted(self.folder.glob("configs/**/*.yaml")))
            if path.is_file()
        ]

    def _parts(self, path: Path) -> tuple[str, ...]:
        """The folders between the project and the file; its data.py is a file, its data/ is not ours."""
        return path.relative_to(self.folder).parts[:-1]


def required_files(project: Project) -> list[Fault]:
    """The shape that all ten share."""
    return [
        project.fault(
            project.folder / entry.rstrip("/").split("|")[0], 0, f"is missing ({' or '.join(entry.split('|'))})"
        )
        for entry in REQUIRED
        if not any(
            (project.folder / way).is_dir() if way.endswith("/") else (project.folder / way).is_file()
            for way in entry.split("|")
        )
    ]


def configs_build(project: Project) -> list[Fault]:
    """Every config parses, and its networks can be built (on the meta device, which costs neither time nor memory)."""
    faults = []
    try:
        config_class, build = (
            project_module(project.root, project.name, "config").Config,
            project_module(project.root, project.name, "train").build,
        )
    except Exception as error:  # whatever an import raises is the finding
        return [project.fault(project.folder / "train.py", 0, f"Config and build cannot be imported: {_told(error)}")]
    for path in project.configs():
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
        lines = path.read_text(encoding="utf-8").splitlines()
        count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        header = "\n".join(line.lstrip("# ") for line in lines[:count])
        command = re.escape(f"--config {path.relative_to(project.folder).as_posix()}")
        wanted = {**HEADER, "its own command": re.compile(rf"^(python|torchrun\b.*) train\.py .*{command}(\s|$)", re.M)}
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
    """reproduce.yaml is valid, and so is every run's config."""
    path = project.folder / "reproduce.yaml"
    if not path.is_file():
        return []
    try:
        plan = load_plan(path)
        check_overrides(project.root, project.name, plan)
    except Exception as error:
        return [_at_line(project, path, _told(error))]
    return []


def saved_results(project: Project) -> list[Fault]:
    """Committed results have the schema, and their verdicts follow from their numbers."""
    try:
        results.read_saved(project.root, project.name)
    except InputError as error:
        return [_at_line(project, project.folder / "results.json", str(error))]
    return []


def readme_commands(project: Project) -> list[Fault]:
    """Scripts, configs and make targets in the README's fenced shell blocks exist."""
    path = project.folder / "README.md"
    if not path.is_file():
        return []
    faults = []
    for block in _shell_blocks(path.read_text(encoding="utf-8")):
        places = [project.folder, project.root]
        for line, words in block:
            if words[0] == "cd" and len(words) > 1 and not _placeholder(words[1]):
                places = [place / words[1] for place in places if (place / words[1]).is_dir()]
                if not places:
                    faults.append(project.fault(path, line, f"cd {words[1]}: there is no such folder"))
                    break
            faults += [project.fault(path, line, message) for message in _command_faults(words, places, project.root)]
    return faults


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


def _shell_blocks(text: str) -> Iterator[list[tuple[int, list[str]]]]:
    """The commands of every fenced shell block as (line, words), without environment assignments before them."""
    language, block, pending, start = None, [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*(```+|~~~+)\s*(\w*)", line)
        if fence:
            if language in SHELLS:
                yield block
            language, block, pending = (fence[2] or "text") if language is None else None, [], ""
        elif language in SHELLS:
            if language == "console" and not pending and not line.startswith("$ "):
                continue  # what a command printed
            start = start if pending else number
            pending += line.strip().removeprefix("$ ")
            if pending.endswith("\\"):
                pending = pending[:-1] + " "
                continue
            try:
                block += [(start, words) for words in list(_commands(pending))]
                pending = ""
            except ValueError:  # a quote that a later line closes
                pending += "\n"


def _commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();&|")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();&|"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"\w+=", word):
            words.append(word)


def _placeholder(word: str) -> bool:
    """Whether a word stands for something the reader fills in: $DATA, <path>, {a,b}, *.yaml, …, NAME."""
    return bool(re.search(r"[$<>{}*…]|\.\.\.|\b[A-Z]{2,}\b(?!\.)", word))


def _command_faults(words: list[str], places: list[Path], root: Path) -> Iterator[str]:
    """What in a command does not exist in any of the folders that it may be called in."""

    def exists(word: str) -> bool:
        return _placeholder(word) or any((place / word).exists() for place in places)

    program = Path(words[0]).name
    if program == "make":
        targets = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        yield from (f"make {t}: the Makefile has no such target" for t in targets if not _is_target(t, root))
    if program not in ("python", "python3", "torchrun"):
        return
    if "-m" in words[:-1] and program != "torchrun":
        module = words[words.index("-m") + 1].split(".")
        if (root / module[0]).is_dir() and not any(
            root.joinpath(*module).with_suffix(end).exists() for end in (".py", "")
        ):
            yield f"python -m {'.'.join(module)}: there is no such module"
    else:
        script = next((word for word in words[1:] if word.endswith(".py")), None)
        if script and not exists(script):
            yield f"{script}: there is no such script"
    options = [
        b if a == "--config" else a.removeprefix("--config=")
        for a, b in zip(words, [*words[1:], ""])
        if a == "--config" or a.startswith("--config=")
    ]
    yield from (f"--config {option}: there is no such file" for option in options if not exists(option))


def _is_target(name: str, root: Path) -> bool:
    return _placeholder(name) or any(
        re.fullmatch(re.escape(target).replace("%", ".+"), name) for target in _make_targets(root)
    )


@functools.cache
def _make_targets(root: Path) -> frozenset[str]:
    """Targets and patterns as make itself lists them, its variables expanded; nothing is built.

    Errors: InputError where there is no make.
    """
    if not (root / "Makefile").is_file():
        return frozenset()
    command = ["make", "-C", str(root), "--no-print-directory", "-pqR", ":"]
    try:
        environment = {**os.environ, "LC_ALL": "C"}
        listing = subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stdout
    except OSError as error:
        raise InputError(f"make cannot be started ({error.strerror}); the README's targets need it") from error
    blocks = (block for block in listing.split("\n\n") if "# Not a target:" not in block)
    found = (re.match(r"^([^#\s:=][^:=]*):(?!=)", line) for block in blocks for line in block.splitlines())
    return frozenset(name for match in found if match for name in match[1].split()) - {":"}


def check(root: Path) -> dict[str, list[Fault] | None]:
    """Faults by project, None where it is not there yet; also by `common` and `ci`."""
    _tree.cache_clear()
    _make_targets.cache_clear()
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
