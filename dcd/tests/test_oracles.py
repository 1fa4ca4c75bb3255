"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles
from common.tests import oracle_gan

import pytest

from dcd.tests.oracle_cityscapes import check_cityscapes_miou, check_drn
from dcd.tests.oracle_student import check_dcd_loss, check_student_step_cyclegan, check_student_step_pix2pix

CHECKS = {
    **oracle_gan.CHECKS,
    "dcd_loss": check_dcd_loss,
    "student_step_cyclegan": check_student_step_cyclegan,
    "student_step_pix2pix": check_student_step_pix2pix,
    "cityscapes_miou": check_cityscapes_miou,
    "drn": check_drn,
}
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
