"""Checkpoints that are never half written, never execute anything, and know what they belong to."""

import hashlib
import os
import random
import shutil
from pathlib import Path

from common.errors import CheckpointError, InputError

import numpy as np
import torch

FORMAT = 1


def save(path: str | Path, content: dict) -> None:
    """Write a checkpoint so that `path` is at every moment either the old file or the new one.

    content: nested dicts, lists and tuples of tensors, numbers, strings and None, so that loading never needs to
    trust it. The previous file stays beside it as prev.pt. Errors: InputError when the disk refuses, with the old
    files intact and nothing left behind; TypeError for content that is not plain.
    """
    path = Path(path)
    _require_plain(content, path.name)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == "last.pt" and path.exists():
            _keep_previous(path)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    # torch's zip writer reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({error}); the previous checkpoint is untouched") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def load(path: str | Path) -> dict:
    """Read a checkpoint to the CPU without executing anything in it.

    Errors: CheckpointError for a missing, truncated, foreign or unsafe file, naming the file and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # A truncated file is a RuntimeError, an empty one an EOFError, a foreign pickle an UnpicklingError …
    except Exception as error:
        remedy = ""
        if path.name == "last.pt" and path.with_name("prev.pt").exists():
            remedy = f"; the one before it is {path.with_name('prev.pt')}"
        cause = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: is not a readable checkpoint of plain tensors "
            f"({type(error).__name__}: {cause[0][:160] if cause else 'empty file'}){remedy}"
        ) from None


def load_own(path: str | Path, project: str, stage: str | None = None, hint: str = "") -> dict:
    """A checkpoint that this repository wrote for this project (and stage, if given).

    hint: the end of every error, for commands that take files of others too. Errors: CheckpointError.
    """
    try:
        content = load(path)
        _check_own(content, path, project, stage)
    except CheckpointError as error:
        if not hint:
            raise
        raise CheckpointError(f"{error}; {hint}") from None
    return content


def _check_own(content: object, path: str | Path, project: str, stage: str | None) -> None:
    if not isinstance(content, dict) or "format" not in content or "project" not in content:
        raise CheckpointError(f"{path}: was not written by this repository's train.py")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: has format {content['format']}; this version reads format {FORMAT}")
    if content["project"] != project:
        raise CheckpointError(f"{path}: belongs to {content['project']}, not to {project}")
    if stage is not None and content["stage"] != stage:
        raise CheckpointError(f"{path}: is of stage {content['stage']}, not of stage {stage}")


def remove_stray(folder: Path) -> None:
    """Remove what a killed process was writing when it died."""
    for stray in folder.glob("*.pt.tmp-*"):
        stray.unlink(missing_ok=True)


def random_state() -> dict:
    """The states of the python, numpy, torch and CUDA generators as plain content."""
    version, keys, gauss = random.getstate()
    name, words, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, torch.tensor(keys), gauss],
        "numpy": [name, torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict) -> None:
    """Undo whatever has been drawn since `random_state`."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys.tolist()), gauss))
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file's bytes, as a teacher's identity."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:
    """`hashlib.file_digest` for Python 3.10."""
    sha = hashlib.sha256()
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


def _require_plain(value, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where}: the key {key!r} is neither a string nor an integer")
            _require_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _require_plain(item, f"{where}[{number}]")
    elif type(value) not in (int, float, bool, str, type(None)) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where}: {type(value).__name__} is not plain checkpoint content")


def _keep_previous(path: Path) -> None:
    """Make prev.pt a second name of the current file, so that the current name never disappears."""
    link = path.with_name(f"prev.pt.tmp-{os.getpid()}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
    except OSError:
        shutil.copy2(path, link)
    os.replace(link, path.with_name("prev.pt"))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
