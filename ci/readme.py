"""The commands of a README's fenced shell blocks, checked against what there is."""

import functools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from common.errors import InputError

SHELLS = ("sh", "bash", "shell", "console", "zsh")


def faults(text: str, folder: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, message) for every folder, script, config, module and make target that does not exist.

    A block may be meant for the project's folder or for the repository's root, and go elsewhere by `cd`.
    """
    for block in _shell_blocks(text):
        places = [folder, root]
        for line, words in block:
            if words[0] == "cd" and len(words) > 1 and not _placeholder(words[1]):
                places = [place / words[1] for place in places if (place / words[1]).is_dir()]
                if not places:
                    yield line, f"cd {words[1]}: there is no such folder"
                    break
            yield from ((line, message) for message in _command_faults(words, places, root))


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

    def missing(word: str) -> bool:
        return not (_placeholder(word) or any((place / word).exists() for place in places))

    program = Path(words[0]).name
    if program == "make":
        targets = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        yield from (f"make {t}: the Makefile has no such target" for t in targets if not is_target(t, root))
    if program not in ("python", "python3", "torchrun"):
        return
    script = next((word for word in words[1:] if word.endswith(".py")), None)
    if "-m" in words[:-1] and program != "torchrun":
        module = words[words.index("-m") + 1]
        path = root.joinpath(*module.split("."))
        ours = (root / module.split(".")[0]).is_dir()
        if ours and not (path.is_dir() or path.with_suffix(".py").is_file()):
            yield f"python -m {module}: there is no such module"
    elif script and missing(script):
        yield f"{script}: there is no such script"
    for config in re.findall(r"--config[ =](\S+)", " ".join(words)):
        if missing(config):
            yield f"--config {config}: there is no such file"


def is_target(name: str, root: Path) -> bool:
    """Whether the Makefile has the target, as a name or by a pattern."""
    return _placeholder(name) or any(
        re.fullmatch(re.escape(target).replace("%", ".+"), name) for target in make_targets(root)
    )


@functools.cache
def make_targets(root: Path) -> frozenset[str]:
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
