"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed in the modules' CHECKS; one of no known kind fails, and so does an empty
folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles

import pytest

from dda.tests import oracle_inference, oracle_method, oracle_networks

CHECKS = oracle_method.CHECKS | oracle_networks.CHECKS | oracle_inference.CHECKS
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
