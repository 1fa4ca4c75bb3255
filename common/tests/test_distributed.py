"""What ranks do together equals what one process does over the same micro-batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from common import distributed

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pretend(monkeypatch):
    def as_rank(rank, world):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world", lambda: world)

    return as_rank


def shares(pretend, batch, world, micro_batches):
    """What every rank takes of a batch."""
    taken = []
    for rank in range(world):
        pretend(rank, world)
        taken.append(distributed.share(batch, micro_batches))
    return taken


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_shares_give_the_gradient_of_the_whole_batch(pretend, size, world, micro_batches):
    generator = torch.Generator().manual_seed(size)
    inputs = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, generator=generator, dtype=torch.float64)
    batch = torch.randperm(100, generator=generator)[:size]

    def gradient(part):
        """Of the mean of a loss that is not linear in the sample."""
        w = weight.clone().requires_grad_()
        torch.tanh(inputs[part] @ w).square().mean().backward()
        return w.grad

    taken = shares(pretend, batch, world, micro_batches)
    assert all(len(mine) == micro_batches for mine in taken)
    used = torch.cat([part for mine in taken for part, share in mine if share])
    assert torch.equal(used, batch), "every sample once, in order"
    # DistributedDataParallel averages over ranks what each rank has added up over its micro-batches.
    averaged = sum(share * gradient(part) for mine in taken for part, share in mine) / world
    torch.testing.assert_close(averaged, gradient(batch), rtol=1e-12, atol=1e-14)


@given(size=st.integers(1, 70), world=st.integers(1, 9), micro_batches=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_the_weights_of_a_batch_average_to_one(size, world, micro_batches):
    with pytest.MonkeyPatch.context() as patch:
        for_rank = []
        for rank in range(world):
            patch.setattr(distributed, "rank", lambda r=rank: r)
            patch.setattr(distributed, "world", lambda: world)
            for_rank.append(distributed.share(torch.arange(size), micro_batches))
    weights = [weight for mine in for_rank for _, weight in mine]
    lengths = [len(part) for mine in for_rank for part, _ in mine]
    assert sum(weights) == pytest.approx(world)
    assert min(lengths) >= 1
    full = [length for length, weight in zip(lengths, weights) if weight]
    assert sum(full) == size
    assert max(full) - min(full) <= 1


def test_an_empty_share_takes_part_with_weight_zero(pretend):
    batch = torch.tensor([7, 4])
    taken = shares(pretend, batch, 4, 1)
    assert [[(part.tolist(), weight) for part, weight in mine] for mine in taken] == [
        [([7], 2.0)],
        [([4], 2.0)],
        [([7], 0.0)],
        [([7], 0.0)],
    ]


def test_one_process_needs_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start("cpu") == torch.device("cpu")
    assert not torch.distributed.is_initialized()
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    network = nn.BatchNorm1d(2)
    assert distributed.wrap(network) is network
    tensor = torch.tensor([1.0, 2.0])
    assert distributed.sum_(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    device = torch.device("cpu")
    assert (distributed.any_(True, device), distributed.any_(False, device)) == (True, False)
    distributed.sync_buffers(network)
    distributed.barrier()
    distributed.stop()
    ((part, weight),) = distributed.share(torch.tensor([3, 1, 2]))
    assert (part.tolist(), weight) == ([3, 1, 2], 1.0)


TWO_RANKS = """
import json, sys
from common import distributed
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()

def loss(model, part):
    inputs = torch.sin(torch.arange(40, dtype=torch.float64)).view(10, 4)
    return nn.functional.cross_entropy(model(inputs[part]), part % 2)

device = distributed.start("cpu")
rank = distributed.rank()
report = {"world": distributed.world(), "main": distributed.is_main(), "local": distributed.local_rank()}
report["any"] = [distributed.any_(flag, device) for flag in (rank == 1, rank == 0, False, True)]
report["sum"] = distributed.sum_(torch.tensor([1.0, rank])).tolist()

norm = nn.BatchNorm1d(2)
norm(torch.randn(8, 2, generator=torch.Generator().manual_seed(rank)) + 10 * rank)
own = norm.running_mean.tolist()
before = norm.weight.detach().clone().add_(rank)
norm.weight.data.copy_(before)
distributed.sync_buffers(norm)
report["own"], report["mean"], report["tracked"] = own, norm.running_mean.tolist(), int(norm.num_batches_tracked)
report["weight"] = norm.weight.tolist()

# Batches of 10, of 5 (uneven) and of 1 (one rank has nothing) in two micro-batches.
report["gradients"] = []
for batch in (torch.arange(10), torch.arange(5), torch.tensor([3])):
    model = network()
    wrapped = distributed.wrap(model)
    assert type(wrapped) is nn.parallel.DistributedDataParallel and not wrapped.broadcast_buffers
    for part, weight in distributed.share(batch, 2):
        (loss(wrapped, part) * weight).backward()
    alone = network()
    loss(alone, batch).backward()
    pairs = zip(model.parameters(), alone.parameters())
    report["gradients"].append(max(float((a.grad - b.grad).abs().max()) for a, b in pairs))
distributed.barrier()
distributed.stop()
report["stopped"] = not torch.distributed.is_initialized()
open(f"{sys.argv[1]}/{rank}.json", "w").write(json.dumps(report))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_gloo_processes(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, tmp_path],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first["world"], first["main"], first["local"]) == (2, True, 0)
    assert (second["world"], second["main"], second["local"]) == (2, False, 1)
    for report in (first, second):
        assert report["any"] == [True, True, False, True]
        assert report["sum"] == [2.0, 1.0]
        assert report["mean"] == first["own"]
        assert report["tracked"] == 1
        assert report["stopped"]
        assert max(report["gradients"]) < 1e-14
    assert first["own"] != second["own"]
    assert second["weight"] == [2.0, 2.0], "parameters are DistributedDataParallel's affair"
