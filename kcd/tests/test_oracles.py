"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles

import pytest

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
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
