"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from functools import partial
from pathlib import Path

from common.testing import check_oracle, oracles
from common.tests.oracle_shadow import check_evaluate_matlab, check_shadow_synthesis

import pytest

from hqss.tests.oracle_data import check_color, check_dilation, check_inference, check_loader, check_mask_map
from hqss.tests.oracle_networks import NETWORKS, check_ffl, check_network
from hqss.tests.oracle_stages import check_schedule_replay, check_stage1_losses, check_stage2_losses

CHECKS = {
    "color": check_color,
    "loader": check_loader,
    "dilation": check_dilation,
    "mask_map": check_mask_map,
    **{f"net_{kind}": partial(check_network, kind=kind) for kind in NETWORKS},
    "ffl": check_ffl,
    "stage1_losses": check_stage1_losses,
    "stage2_losses": check_stage2_losses,
    "schedule_replay": check_schedule_replay,
    "inference_online_metric": check_inference,
    "evaluate_matlab": check_evaluate_matlab,
    "shadow_synthesis": check_shadow_synthesis,
}
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
