"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles

import pytest

from rebnn.tests import oracle_detection, oracle_glue, oracle_networks, oracle_xnor
from rebnn.tests.oracle_method import (
    check_activation,
    check_binarize,
    check_block_rebnn,
    check_block_step1,
    check_block_step2,
    check_fixed_gamma,
    check_flip_ratio,
    check_layer,
    check_lighting,
    check_losses,
    check_schedule,
    check_trajectory_code,
    check_trajectory_paper,
)

CHECKS = {
    "binarize": check_binarize,
    "binarize_fixed_gamma": check_fixed_gamma,
    "activation": check_activation,
    "layer": check_layer,
    "block_rebnn": check_block_rebnn,
    "block_reactnet_step1": check_block_step1,
    "block_reactnet_step2": check_block_step2,
    "losses": check_losses,
    "lighting": check_lighting,
    "schedule": check_schedule,
    "flip_ratio": check_flip_ratio,
    "trajectory_code": check_trajectory_code,
    "trajectory_paper": check_trajectory_paper,
    **oracle_networks.CHECKS,
    **oracle_detection.CHECKS,
    **oracle_xnor.CHECKS,
    **oracle_glue.CHECKS,
}
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
