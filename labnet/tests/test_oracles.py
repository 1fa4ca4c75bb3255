"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles
from common.tests.oracle_shadow import check_color8, check_evaluate_matlab, check_shadow_synthesis

import pytest

from labnet.tests import oracle_network as network
from labnet.tests.oracle_data import check_data_transform, check_inference

CHECKS = {
    "color8": check_color8,
    "evaluate_matlab": check_evaluate_matlab,
    "shadow_synthesis": check_shadow_synthesis,
    "data_transform": check_data_transform,
    "inference": check_inference,
    "mask_dilation": network.check_mask_dilation,
    "conv_layer": network.check_conv_layer,
    "eca": network.check_eca,
    "lsa": network.check_lsa,
    "basic_block": network.check_basic_block,
    "net": network.check_net,
    "losses": network.check_losses,
    "schedule": network.check_schedule,
    "init_facts": network.check_init_facts,
}
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
