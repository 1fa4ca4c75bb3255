"""Numbers of the official code on seeded inputs, file by file.

The folder is that of the environment variable ORACLES, by default a subset beside this file. A file is checked by its
kind, the part of its name that is listed here; one of no known kind fails, and so does an empty folder.
"""

from pathlib import Path

from common.testing import check_oracle, oracles

import pytest

from smmix.tests import oracle_method as method
from smmix.tests import oracle_networks as networks
from smmix.tests import oracle_recipe as recipe

CHECKS = {
    "mixing": method.check_mixing,
    "call_sequence": method.check_call_sequence,
    "mixup_branch": method.check_mixup_branch,
    "smmix_call": method.check_smmix_call,
    "losses": method.check_losses,
    "token_pool": method.check_token_pool,
    "baseline_cutmix_mixup": method.check_baseline_cutmix_mixup,
    "transmix_baseline": method.check_transmix_baseline,
    "deit_narrow": networks.check_deit_narrow,
    "pvt_narrow": networks.check_pvt_narrow,
    "cait_narrow_peer": networks.check_cait_narrow_peer,
    "full_models": networks.check_full_models,
    "schedule": recipe.check_schedule,
    "ra_sampler": recipe.check_ra_sampler,
    "eval_transform": recipe.check_eval_transform,
    "metrics": recipe.check_metrics,
}
FILES = oracles(__file__)


def test_there_are_oracles():
    assert FILES, "there is nothing to check"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_oracle(path: Path):
    check_oracle(path, CHECKS)
