"""No checkpoint is ever half written, nothing in one is ever executed, and each knows what it belongs to."""

import builtins
import os
import pickle
import random
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

from common import checkpoint
from common.errors import CheckpointError, InputError

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def content(step=1, **changes):
    state = {"model": {"weight": torch.arange(6.0).view(2, 3) * step}, "list": [1, None, (2.5, "a")], 3: True}
    return {
        "format": checkpoint.FORMAT,
        "project": "kcd",
        "stage": "student",
        "step": step,
        "state": state,
        **changes,
    }


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, content())
    assert equal(checkpoint.load(path), content())
    assert names(tmp_path) == ["last.pt"]


def test_the_one_before_stays_as_prev(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "last.pt", content(step))
        checkpoint.save(tmp_path / "best.pt", content(step))
    assert names(tmp_path) == ["best.pt", "last.pt", "prev.pt"]
    assert [checkpoint.load(tmp_path / name)["step"] for name in names(tmp_path)] == [3, 3, 2]


def test_prev_is_kept_where_files_cannot_have_two_names(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links on this file system")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        checkpoint.save(tmp_path / "last.pt", content(step))
    assert checkpoint.load(tmp_path / "prev.pt")["step"] == 1
    assert names(tmp_path) == ["last.pt", "prev.pt"]


def test_last_is_a_whole_checkpoint_at_every_moment(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, content(1))
    checkpoint.save(path, content(2))
    seen = []

    def watched(name):
        original = getattr(os, name)

        def call(*arguments):
            seen.append(checkpoint.load(path)["step"])
            done = original(*arguments)
            seen.append(checkpoint.load(path)["step"])
            return done

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "replace"):
        watched(name)
    checkpoint.save(path, content(3))
    # fsync of the file, second name, prev.pt, last.pt, fsync of the folder: only the fourth changes last.pt.
    assert seen == [2, 2, 2, 2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_writer_that_fails_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "last.pt"
    for step in (1, 2):
        checkpoint.save(path, content(step))

    def half(_, file):
        file.write(b"half of a file")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(InputError, match=r"last\.pt: cannot be written .* untouched"):
        checkpoint.save(path, content(3))
    assert names(tmp_path) == ["last.pt", "prev.pt"]
    assert [checkpoint.load(tmp_path / name)["step"] for name in names(tmp_path)] == [2, 1]


def test_a_writer_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last.pt", content(1))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "last.pt", content(2))
    assert names(tmp_path) == ["last.pt"]
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full exists on Linux only")
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last.pt", content(1))
    real = builtins.open

    def full(file, mode="r", *rest, **named):
        return real("/dev/full" if "w" in mode and ".tmp-" in str(file) else file, mode, *rest, **named)

    monkeypatch.setattr(builtins, "open", full)
    large = content(2, state=torch.zeros(1 << 20))
    with pytest.raises(InputError, match=r"last\.pt: cannot be written"):
        checkpoint.save(tmp_path / "last.pt", large)
    monkeypatch.undo()
    assert names(tmp_path) == ["last.pt"]
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 1


def test_a_folder_that_is_missing_or_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "last.pt", tmp_path / "file" / "last.pt"):
        with pytest.raises(InputError, match="cannot be written"):
            checkpoint.save(path, content())


def test_sigkill_while_writing(tmp_path):
    """The writer stalls half-way through the file, is killed, and the next start finds the old file alone."""
    script = f"""
import sys, time
import torch
from common import checkpoint
path = {str(tmp_path / "last.pt")!r}
checkpoint.save(path, {{"step": 1, "state": torch.zeros(1000)}})
whole = torch.save
def stalled(content, file):
    whole(content, file)
    file.truncate(file.tell() // 2)
    file.flush()
    print("stalled", flush=True)
    time.sleep(60)
torch.save = stalled
checkpoint.save(path, {{"step": 2, "state": torch.ones(1000)}})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"stalled\n"
        process.send_signal(signal.SIGKILL)
    stray = [name for name in names(tmp_path) if name != "last.pt"]
    assert len(stray) == 1
    assert ".tmp-" in stray[0]
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / stray[0])
    checkpoint.remove_stray(tmp_path)
    assert names(tmp_path) == ["last.pt"]
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert loaded["step"] == 1
    assert torch.equal(loaded["state"], torch.zeros(1000))


def test_only_strays_are_removed(tmp_path):
    kept = ["best.pt", "last.pt", "log.jsonl", "notes.tmp", "prev.pt"]
    for name in (*kept, "last.pt.tmp-17", "prev.pt.tmp-4"):
        (tmp_path / name).write_text("")
    checkpoint.remove_stray(tmp_path)
    assert names(tmp_path) == kept


class Thing:
    pass


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (np.float64(1.0), "last.pt.state.a"),
        (np.zeros(3), "last.pt.state.a"),
        (Path("x"), "last.pt.state.a"),
        ({1, 2}, "last.pt.state.a"),
        (Thing(), "last.pt.state.a"),
        (torch.float32, "last.pt.state.a"),
        (b"bytes", "last.pt.state.a"),
        ([0, {"b": (1, Thing())}], r"last.pt.state.a\[1\].b\[1\]"),
        ({1.5: 0}, "last.pt.state.a: the key 1.5"),
    ],
)
def test_content_that_is_not_plain_is_refused_with_its_place(tmp_path, value, place):
    with pytest.raises(TypeError, match=place):
        checkpoint.save(tmp_path / "last.pt", content(state={"a": value}))
    assert names(tmp_path) == []


def test_a_module_and_an_optimiser_are_plain(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimiser = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 3)).sum().backward()
    optimiser.step()
    checkpoint.save(tmp_path / "a.pt", {"model": network.state_dict(), "optimiser": optimiser.state_dict()})
    loaded = checkpoint.load(tmp_path / "a.pt")
    torch.optim.AdamW(network.parameters()).load_state_dict(loaded["optimiser"])
    assert equal(loaded["model"], dict(network.state_dict()))


class Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def write_broken(path, kind):
    checkpoint.save(path, content())
    whole = path.read_bytes()
    random_bytes = np.random.default_rng(0).bytes(4096)
    path.write_bytes(
        {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "one byte short": whole[:-1],
            "random": random_bytes,
            "text": b"not a checkpoint\n",
            "zip": b"PK\x03\x04" + random_bytes,
        }[kind]
    )


@pytest.mark.parametrize("kind", ["empty", "half", "one byte short", "random", "text", "zip"])
def test_a_broken_file_is_named_with_a_remedy(tmp_path, kind):
    path = tmp_path / "last.pt"
    write_broken(path, kind)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: is not a readable checkpoint")
    assert "\n" not in message
    assert len(message) < 500
    assert "prev.pt" not in message
    (tmp_path / "prev.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"the one before it is .*prev\.pt"):
        checkpoint.load(path)


@pytest.mark.parametrize("form", ["pickle", "legacy", "zip"])
def test_a_malicious_pickle_is_not_executed(tmp_path, form):
    canary, path = tmp_path / "canary", tmp_path / "weights.pt"
    bad = content(state=Malicious(canary))
    if form == "pickle":
        path.write_bytes(pickle.dumps(bad, protocol=2))
    else:
        torch.save(bad, path, _use_new_zipfile_serialization=form == "zip")
    assert zipfile.is_zipfile(path) == (form == "zip")
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        checkpoint.load(path)
    assert not canary.exists()
    # The payload works where loading trusts the file.
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match="there is no such checkpoint file"):
        checkpoint.load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"project": "lts"}, "belongs to lts, not to kcd"),
        ({"stage": "teacher"}, "is of stage teacher, not of stage student"),
        ({"format": checkpoint.FORMAT + 1}, f"has format {checkpoint.FORMAT + 1}; this version reads format"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, change, words):
    path = tmp_path / "last.pt"
    checkpoint.save(path, content())
    assert checkpoint.load_own(path, "kcd", "student")["step"] == 1
    checkpoint.save(path, content(**change))
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load_own(path, "kcd", "student")
    if "stage" in change:
        assert checkpoint.load_own(path, "kcd")["stage"] == "teacher"


@pytest.mark.parametrize("written", [False, True], ids=["missing", "foreign"])
def test_a_hint_ends_every_error(tmp_path, written):
    path = tmp_path / "w.pt"
    if written:
        torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match=r"; give --config as well$"):
        checkpoint.load_own(path, "kcd", hint="give --config as well")


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], torch.zeros(3), None, {"format": 1}])
def test_a_foreign_file_is_refused(tmp_path, foreign):
    torch.save(foreign, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"was not written by this repository"):
        checkpoint.load_own(tmp_path / "w.pt", "kcd")


def draw():
    return random.random(), random.gauss(0, 1), *np.random.randn(3).tolist(), *torch.randn(3).tolist()  # noqa: NPY002


def test_generators_continue_where_they_were(tmp_path):
    draw()  # leaves half of a pair of normal numbers waiting in each generator
    checkpoint.save(tmp_path / "a.pt", checkpoint.random_state())
    expected = [draw() for _ in range(3)]
    checkpoint.restore_random_state(checkpoint.load(tmp_path / "a.pt"))
    assert [draw() for _ in range(3)] == expected


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example B.1
    assert checkpoint.file_sha256(tmp_path / "a") == expected
    (tmp_path / "b").write_bytes(b"a" * 1_000_000)
    expected = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"  # example B.3
    with open(tmp_path / "b", "rb") as file:
        assert checkpoint.file_sha256(tmp_path / "b") == checkpoint._digest(file) == expected
