"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles
from common.tests import oracle_gan

import pytest

from crd.tests.oracle_relations import check_relations_batch_pix2pix, check_relations_image, check_rkd_core
from crd.tests.oracle_student import check_student_step_cyclegan, check_student_step_pix2pix

CHECKS = {
    **oracle_gan.CHECKS,
    "rkd_core": check_rkd_core,
    "relations_image": check_relations_image,
    "relations_batch_pix2pix": check_relations_batch_pix2pix,
    "student_step_cyclegan": check_student_step_cyclegan,
    "student_step_pix2pix": check_student_step_pix2pix,
}
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
