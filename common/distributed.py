"""torchrun in a few plain calls; without torchrun each of them is the identity."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


def start(device: str = "auto") -> torch.device:
    """Join the process group that torchrun announces, if any, and return this rank's device.

    device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N". NCCL for CUDA, gloo for the CPU.
    """
    use_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timedelta(minutes=10))
    if not use_cuda:
        return torch.device("cpu")
    chosen = torch.device("cuda", local_rank()) if device in ("auto", "cuda") else torch.device(device)
    torch.cuda.set_device(chosen)
    return chosen


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world() -> int:
    """The number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank has come here."""
    if dist.is_initialized():
        dist.barrier()


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Add a tensor up over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_(flag: bool, device: torch.device) -> bool:
    """Whether any rank says so; every rank gets the same answer."""
    if not dist.is_initialized():
        return flag
    return bool(sum_(torch.tensor(int(flag), device=device)).item())


def sync_buffers(module: nn.Module) -> None:
    """Give every rank the buffers (BatchNorm statistics) of rank 0."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def wrap(module: nn.Module) -> nn.Module:
    """The module under DistributedDataParallel, or itself when there is one process.

    Buffers are not broadcast at every step: BatchNorm uses its rank's batch, and `sync_buffers` makes the running
    statistics those of rank 0 before they are used.
    """
    if not dist.is_initialized():
        return module
    return nn.parallel.DistributedDataParallel(module, forward_sync_buffers=False)


def share(batch: torch.Tensor, micro_batches: int = 1) -> list[tuple[torch.Tensor, float]]:
    """This rank's part of a total batch, in micro-batches, with the weight of each part's mean loss.

    batch: [B] sample numbers, the same on every rank. Rank r of W takes parts r*m .. r*m+m-1 of the W*m nearly equal
    parts. Since DistributedDataParallel averages gradients over ranks, a part of n samples weighs n * W / B, so that
    the result is the gradient of the mean over the total batch. A part left empty by a small last batch is the
    batch's first sample with weight 0, so that every rank takes part in the reduction.
    """
    parts = torch.tensor_split(batch, world() * micro_batches)
    mine = parts[rank() * micro_batches : (rank() + 1) * micro_batches]
    return [(part, len(part) * world() / len(batch)) if len(part) else (batch[:1], 0.0) for part in mine]
