"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles

import pytest

from lts.tests.oracle_method import check_freeze_sim, check_layers, check_quantizer, check_schedule, check_train_sim
from lts.tests.oracle_networks import check_flops, check_networks

CHECKS = {
    "quantizer": check_quantizer,
    "layers": check_layers,
    "freeze_sim": check_freeze_sim,
    "train_sim": check_train_sim,
    "networks": check_networks,
    "flops": check_flops,
    "schedule": check_schedule,
}
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
