"""The helpers of the tests can fail."""

import json
import pickle
from pathlib import Path

from common import testing
from common.errors import InputError
from common.labelled import Labelled, load

import numpy as np
import pytest
import torch


def test_a_difference_is_found_wherever_it_lies():
    one = {"a": [torch.zeros(2), (1, "x")], "clock": 1.0}
    testing.assert_same(one, {"a": [torch.zeros(2), (1, "x")], "clock": 2.0}, ignore=("clock",))
    for other in (
        {"a": [torch.zeros(2), (1, "x")], "clock": 2.0},
        {"a": [torch.ones(2), (1, "x")], "clock": 1.0},
        {"a": [torch.zeros(2), (1, "y")], "clock": 1.0},
        {"a": [torch.zeros(2)], "clock": 1.0},
        {"clock": 1.0},
    ):
        with pytest.raises(AssertionError):
            testing.assert_same(one, other)


def test_a_log_is_read_without_clocks(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "seconds": 3.0, "share": 0.5, "loss": 2.0}) + "\n")
    assert testing.log(tmp_path, ignore=("share",)) == [{"step": 1, "loss": 2.0}]


def test_oracles_are_checked_by_the_longest_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("ORACLES", str(tmp_path))
    np.savez(tmp_path / "layer_fixed_3.npz", value=np.float64(2))
    (path,) = testing.oracles(__file__)
    seen = []
    testing.check_oracle(path, {"layer": pytest.fail, "layer_fixed": lambda arrays: seen.append(arrays["value"])})
    assert seen == [2]
    for name in ("layers.npz", "layer_fixed.txt"):
        with pytest.raises(AssertionError, match="no known kind"):
            testing.oracle_kind(Path(name), ["layer", "layer_fixed"])


def test_stand_in_data_loads_as_the_real_layouts(tmp_path):
    train, test = load(Labelled("cifar10", str(testing.image_archive(tmp_path, [0, 1, 9])), batch_size=1), 0)
    assert len(train) == len(test) == 3 and train.labels.tolist() == [0, 1, 9]
    root = testing.image_folders(tmp_path / "folders", classes=3, images=1)
    train, test = load(Labelled("imagenet", str(root), batch_size=1), 0)
    assert len(train) == len(test) == 3
    with pytest.raises(InputError):
        load(Labelled("cifar10", str(testing.image_archive(tmp_path, [10])), batch_size=1), 0)


def test_a_hostile_file_is_a_live_one(tmp_path):
    path = testing.hostile(tmp_path / "x.pt", tmp_path / "canary")
    pickle.loads(path.read_bytes())
    assert (tmp_path / "canary").exists()
