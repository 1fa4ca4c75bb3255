"""Numbers computed from first principles on seeded inputs, file by file (there is no official code).

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles

import pytest

from winograd3d.tests.oracle_layers import check_sparse_inference, check_training_steps
from winograd3d.tests.oracle_method import (
    check_conv,
    check_equivalent_kernel,
    check_lowrank,
    check_matrices,
    check_scores_masks,
    check_tile,
)
from winograd3d.tests.oracle_networks import (
    check_c3d_narrow,
    check_metrics_data,
    check_networks_full,
    check_r3d_narrow,
)

CHECKS = {
    "01_matrices": check_matrices,
    "02_tile": check_tile,
    "03_conv": check_conv,
    "04_equivalent_kernel": check_equivalent_kernel,
    "05_lowrank": check_lowrank,
    "06_scores_masks": check_scores_masks,
    "07_sparse_inference": check_sparse_inference,
    "08_training_steps": check_training_steps,
    "09_metrics_data": check_metrics_data,
    "10_networks_full": check_networks_full,
    "11_c3d_narrow": check_c3d_narrow,
    "12_r3d_narrow": check_r3d_narrow,
}
CHECKS |= {name.partition("_")[2]: check for name, check in CHECKS.items()}  # with and without its number
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
