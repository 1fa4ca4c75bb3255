"""What the tests of several projects do alike: run and kill commands, compare runs, stand-in data, oracles."""

import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from common import checkpoint
from common.images import write_image

import numpy as np
import torch

ROOT = Path(__file__).parent.parent


def python(project: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess:
    """Run this Python with the words in a project's folder, as a user would; output as text.

    It gets as many threads as this process has, since sums depend on their number in the last bit.
    """
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **threads, **environment}
    return subprocess.run([sys.executable, *words], cwd=project, env=variables, capture_output=True, text=True)


def options(defaults: dict, **overrides) -> list[str]:
    """Words of the command line for options and what replaces them; in a keyword a dot is a double underscore."""
    values = defaults | {key.replace("__", "."): value for key, value in overrides.items()}
    return [f"--{key}={value}" for key, value in values.items()]


def arguments(config: Path, defaults: dict, out: Path, **overrides) -> list[str]:
    """Words for a run of a config into a folder, with options as `options` takes them."""
    return ["--config", str(config), "--out", str(out), *options(defaults, **overrides)]


def signalled(project: Path, words: list[str], number: int, step: int) -> subprocess.CompletedProcess:
    """Run the project's train.py in a process that sends itself a signal where it first watches a step's loss."""
    script = f"""
import os
from common.run import Run, entry
from {project.name} import train
watch, pending = Run.watch, [{number}]
def watch_and_signal(run, step, *rest):
    if step == {step} and pending:
        os.kill(os.getpid(), pending.pop())
    return watch(run, step, *rest)
Run.watch = watch_and_signal
entry(train.main)
"""
    return python(project, ["-c", script, *words])


def torchrun(
    project: Path, words: list[str], processes: int = 2, script: str = "train.py"
) -> subprocess.CompletedProcess:
    """Run the project's train.py, or another script of it, under torchrun on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}", script]
    return python(project, [*launcher, *words])


def log(folder: Path, ignore: Iterable[str] = ()) -> list[dict]:
    """The lines of a stage's log.jsonl without what a clock says and the named keys."""
    ignored = set(ignore)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k and k not in ignored} for line in lines]


def state(folder: Path) -> dict:
    """What a stage's last.pt says of the run: step, epoch, state and random states."""
    content = checkpoint.load(folder / "last.pt")
    return {key: content[key] for key in ("step", "epoch", "state", "random")}


def assert_same(one, two, where: str = "state", ignore: Iterable[str] = ()) -> None:
    """Nested dicts and lists of tensors and values are equal bit for bit, except for the named keys."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            if key not in ignore:
                assert_same(one[key], two[key], f"{where}.{key}", ignore)
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for number, pair in enumerate(zip(one, two)):
            assert_same(*pair, f"{where}[{number}]", ignore)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


class Payload:
    """A pickle that makes a file where it is executed."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def hostile(path: Path, canary: Path) -> Path:
    """A pickle at path that creates the canary when it is executed; returns path."""
    path.write_bytes(pickle.dumps(Payload(canary)))
    return path


def card_is_of(weights: Path) -> bool:
    """Whether the model card beside a file of weights names its sha256."""
    card = (weights.parent / "README.md").read_text(encoding="utf-8")
    return checkpoint.file_sha256(weights) in card


def image_archive(folder: Path, labels: list[int], classes: int | tuple[str, ...] = 10) -> Path:
    """An .npz of encoded 32x32 random images for `data.root`, train and test the same; returns its path."""
    encoded = []
    for i in range(len(labels)):
        write_image(folder / "image.png", np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        encoded.append((folder / "image.png").read_bytes())
    content = {"classes": np.array([str(c) for c in range(classes)] if isinstance(classes, int) else classes)}
    for part in ("train", "test"):
        content[f"{part}_jpeg"] = np.frombuffer(b"".join(encoded), np.uint8)
        content[f"{part}_offset"] = np.cumsum([0, *map(len, encoded)])
        content[f"{part}_label"] = np.array(labels)
    np.savez(folder / "set.npz", **content)
    return folder / "set.npz"


def domain_images(folder: Path, name: str, count: int) -> Path:
    """What `data.root` needs for two domains of a name in `common.gan.data`: random images, `count` a side."""
    if name == "classes":
        return image_archive(folder, [5, 7] * count, ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse"))
    wide = 2 if name == "aligned" else 1
    parts = {"aligned": ("train", "val"), "folder_paired": ("",)}.get(name, ("trainA", "trainB", "valA", "valB"))
    rng = np.random.default_rng(0)
    for part, i in itertools.product(parts, range(max(count, 3))):
        write_image(folder / part / f"{i}.png", rng.integers(0, 256, (256, 256 * wide, 3), dtype=np.uint8))
    return folder


def image_folders(folder: Path, classes: int = 2, images: int = 2, size: tuple[int, int] = (240, 250)) -> Path:
    """An ImageNet layout of plain images [height, width] under train/ and val/; returns folder."""
    for part in ("train", "val"):
        for c in range(classes):
            for i in range(images):
                path = folder / part / f"class{c}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, np.full((*size, 3), 40 * c + 7 * i, np.uint8))
    return folder


# -- oracles ---------------------------------------------------------------------------------------------------------


def oracles(test_file: str) -> list[Path]:
    """The oracle files of a project: of the folder ORACLES in the environment, or of oracles/ beside its test."""
    return sorted(Path(os.environ.get("ORACLES") or Path(test_file).parent / "oracles").glob("*"))


def oracle_kind(path: Path, kinds: Iterable[str]) -> str:
    """The kind of a file: the longest listed name that its own begins with; one of no known kind is a failure."""
    kinds = list(kinds)
    found = [name for name in kinds if path.stem == name or path.stem.startswith(f"{name}_")]
    assert found and path.suffix == ".npz", f"{path.name} is of no known kind ({', '.join(kinds)})"
    return max(found, key=len)


def check_oracle(path: Path, checks: dict[str, Callable[[dict[str, np.ndarray]], None]]) -> None:
    """Check a file by its kind: checks maps a kind to a function of the file's arrays."""
    check = checks[oracle_kind(path, checks)]
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    torch.manual_seed(0)
    check(arrays)
