"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kcd.tests.oracle_condensation import check_condensation, check_schedule, check_train_sim
from kcd.tests.oracle_distillers import check_adaptors, check_losses
from kcd.tests.oracle_networks import check_networks

CHECKS = {
    "losses": check_losses,
    "adaptors": check_adaptors,
    "condensation": check_condensation,
    "schedule": check_schedule,
    "networks": check_networks,
    "train_sim": check_train_sim,
}
FOLDER = Path(os.environ.get("ORACLES") or Path(__file__).parent / "oracles")
FILES = sorted(FOLDER.glob("*"))


def kind(path: Path) -> str:
    """The kind of a file: the longest listed name that its own begins with."""
    found = [name for name in CHECKS if path.stem == name or path.stem.startswith(f"{name}_")]
    assert found and path.suffix == ".npz", f"{path.name} is of no known kind ({', '.join(CHECKS)})"
    return max(found, key=len)


def test_there_are_oracles():
    assert FILES, f"{FOLDER} holds nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    torch.manual_seed(0)
    CHECKS[kind(path)](arrays)
