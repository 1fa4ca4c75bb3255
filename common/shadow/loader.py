"""Micro-batches of anything that a data set fetches by position: `data.fetch(index, epoch)` -> {name: tensor}."""

from collections.abc import Iterator
from typing import NamedTuple

from common import distributed

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Part(NamedTuple):
    """One micro-batch on the device: what was fetched, the positions [B], and the weight of its mean loss."""

    values: dict[str, Tensor]
    index: Tensor
    weight: float


def batches(
    data,
    order: Tensor,
    epoch: int,
    batch_size: int,
    device: torch.device,
    *,
    workers: int = 0,
    start: int = 0,
    micro_batches: int = 1,
) -> Iterator[list[Part]]:
    """This rank's micro-batches of every step from `start` on, as one list a step.

    order: int64 [n], positions in the order of the epoch; the last batch may be smaller. workers: processes that
    fetch; what they fetch does not depend on their number.
    """
    steps = [distributed.share(batch, micro_batches) for batch in order.split(batch_size)[start:]]
    parts = [part for step in steps for part, _ in step]
    if workers:
        # The loader's own generator, or it would draw from the global one and a resumed run would differ.
        fetched = iter(
            DataLoader(
                _Fetch(data, epoch),
                batch_size=None,
                sampler=parts,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                generator=torch.Generator(),
            )
        )
    else:
        fetched = (data.fetch(part, epoch) for part in parts)
    for step in steps:
        ready = []
        for part, weight in step:
            values = {name: value.to(device, non_blocking=True) for name, value in next(fetched).items()}
            ready.append(Part(values, part.to(device, non_blocking=True), weight))
        yield ready


class _Fetch(Dataset):
    """A data set whose items are whole batches, for loader workers."""

    def __init__(self, data, epoch: int):
        self.data, self.epoch = data, epoch

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        return self.data.fetch(index, self.epoch)
