"""Costs against numbers worked out by hand; locks and timings by their observable order."""

import fcntl
import json
import math
import threading
import time

from common import cost
from common.errors import InputError

import pytest
import torch
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )


def test_parameters_count_shared_tensors_once(net):
    assert cost.parameters(net) == (3 * 8 * 9 + 8 + 16 + 8 * 16 * 5 + 5,) * 2
    net[0].requires_grad_(False)
    assert cost.parameters(net).total - cost.parameters(net).trainable == 3 * 8 * 9 + 8
    assert cost.parameters(nn.ModuleList([net[4], net[4]])).total == 8 * 16 * 5 + 5


def test_macs_are_convolutions_and_matrix_products(net):
    assert cost.macs(net, torch.zeros(1, 3, 8, 8)) == 4 * 4 * 8 * 3 * 9 + 8 * 16 * 5
    assert cost.macs(net, torch.zeros(3, 3, 8, 8)) == 3 * (4 * 4 * 8 * 3 * 9 + 8 * 16 * 5)
    grouped = nn.Conv2d(8, 8, 3, groups=8, bias=False)
    assert cost.macs(grouped, torch.zeros(1, 8, 5, 5)) == 3 * 3 * 8 * 9


def test_macs_of_attention():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    assert cost.macs(Attention(), torch.randn(2, 3, 7, 4)) == 2 * (2 * 3 * 7 * 7 * 4)


def test_macs_of_a_transformer_layer():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    tokens, width = 5, 8
    projections = 4 * tokens * width**2 + 2 * tokens * width * 16
    assert cost.macs(layer, torch.randn(3, tokens, width)) == 3 * (projections + 2 * tokens**2 * width)
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_leave_the_model_alone(net):
    net[1].eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cost.macs(net, torch.randn(2, 3, 8, 8))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.raises(RuntimeError):
        cost.macs(net, torch.zeros(1, 4, 8, 8))
    assert [module.training for module in net.modules()] == modes


def test_macs_where_a_view_of_a_parameter_enters_a_module():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.head = nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.token.expand(len(x), -1, -1))

    net = Token()
    net.head.bias.requires_grad_(False)
    assert cost.macs(net, torch.zeros(2, 1)) == 2 * 4 * 3
    assert [p.requires_grad for p in net.parameters()] == [True, True, False]


def test_macs_of_the_meta_device():
    with torch.device("meta"):
        assert cost.macs(nn.Linear(4096, 4096, bias=False), torch.zeros(1, 4096)) == 4096**2


def test_saved_for_backward_counts_storages_once():
    weight = torch.randn(6, 10, requires_grad=True)
    x = torch.randn(4, 10)
    product = lambda: x @ weight.T  # saves x for the weight; nothing needs weight, for x needs no gradient
    assert cost.saved_for_backward(product) == 4 * 10 * 4
    x.requires_grad_(True)
    assert cost.saved_for_backward(product) == 4 * 10 * 4 + 6 * 10 * 4
    assert cost.saved_for_backward(product, exclude=[weight]) == 4 * 10 * 4
    assert cost.saved_for_backward(lambda: (x[:2] * x[2:]).sum()) == 4 * 10 * 4


def test_saved_for_backward_sees_what_a_leaner_form_saves():
    x = torch.randn(1000, requires_grad=True)
    chain = lambda: x.exp().exp().exp()
    checkpointed = lambda: torch.utils.checkpoint.checkpoint(lambda y: y.exp().exp().exp(), x, use_reentrant=False)
    assert cost.saved_for_backward(chain) == 3 * 4000
    assert cost.saved_for_backward(checkpointed) == 4000
    with torch.no_grad():
        assert cost.saved_for_backward(chain) == 0


def test_interleaved_rotates_and_warms_up():
    calls = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = cost.interleaved(functions, rounds=4, warmup=1)
    assert "".join(calls) == "cababcbcacababc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_interleaved_measures_seconds():
    seconds = cost.interleaved({"long": lambda: time.sleep(0.02), "none": lambda: None}, rounds=3, warmup=0)
    timings = cost.compare(seconds, "long")
    assert 0.02 <= timings["long"].median < 0.2
    assert timings["long"].cost == 1
    assert timings["none"].cost < 0.5


def test_cost_is_the_median_of_paired_ratios():
    # The machine slows down by ten midway: unpaired medians (5 and 20) would give a cost of 4.
    seconds = {"ours": [1.0, 1.0, 5.0, 10.0, 10.0], "reference": [2.0, 2.0, 20.0, 20.0, 20.0]}
    ours = cost.compare(seconds, "reference")["ours"]
    assert ours.cost == 0.5
    assert (ours.median, ours.iqr) == (5.0, 9.0)
    assert ours.row(layout="NCHW") == {"cost": 0.5, "ratio": 2.0, "seconds": 5.0, "iqr": 9.0, "layout": "NCHW"}
    assert cost.compare({"once": [3.0]}, "once")["once"] == cost.Timing(3.0, 0.0, 1.0)


def test_wrong_comparisons_are_refused():
    with pytest.raises(InputError, match="'torch'"):
        cost.compare({"ours": [1.0]}, "torch")
    with pytest.raises(InputError, match="0 rounds"):
        cost.interleaved({"ours": lambda: None}, rounds=0)
    with pytest.raises(InputError, match="0 functions"):
        cost.interleaved({})


def test_bench_file(tmp_path):
    path = tmp_path / "runs" / "bench.json"
    cost.write_bench(path, {"step": {"cost": 0.8, "layout": "NHWC"}})
    assert json.loads(path.read_text()) == {"step": {"cost": 0.8, "ratio": 1.25, "layout": "NHWC"}}
    for broken in ({}, {"cost": math.nan}, {"cost": 0.0}, {"cost": math.inf}):
        with pytest.raises(InputError, match="step"):
            cost.write_bench(path, {"step": broken})
    with pytest.raises(ValueError):
        cost.write_bench(path, {"step": {"cost": 1.0, "seconds": math.nan}})
    assert json.loads(path.read_text())["step"]["cost"] == 0.8
    assert [p.name for p in path.parent.iterdir()] == ["bench.json"]


def test_table_aligns_rows_with_different_notes():
    text = cost.table({"step": {"cost": 0.81234, "layout": "NCHW"}, "a longer name": {"cost": 1.0, "threads": 1}})
    head, first, second = text.splitlines()
    assert head.split() == ["cost", "layout", "threads"]
    assert first.split() == ["step", "0.8123", "NCHW"]
    assert second.index("1") == first.index("0.8123") == head.index("cost")
    assert second.rindex("1") == head.index("threads")


def test_bench_lock_excludes_and_frees(tmp_path):
    path, order = tmp_path / "locks" / "bench.lock", []

    def other():
        with cost.bench_lock(path):
            order.append("other")

    with cost.bench_lock(path):
        waiter = threading.Thread(target=other)
        waiter.start()
        waiter.join(0.2)
        assert waiter.is_alive()
        order.append("first")
    waiter.join(5)
    assert order == ["first", "other"]
    with pytest.raises(RuntimeError, match="inside"), cost.bench_lock(path):
        raise RuntimeError("inside")
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
