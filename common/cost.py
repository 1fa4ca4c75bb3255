"""What a network costs: parameters, multiply-adds, memory kept for backward, and time against a reference."""

import contextlib
import fcntl
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Parameters(NamedTuple):
    trainable: int
    total: int


@dataclass(frozen=True)
class Timing:
    """Median and interquartile range in seconds; cost is the median over rounds of this time / the reference's."""

    median: float
    iqr: float
    cost: float

    def row(self, **notes) -> dict:
        """A row for `write_bench` and `table`; notes (layout, shape, threads) follow the numbers."""
        return {"cost": self.cost, "ratio": 1 / self.cost, "seconds": self.median, "iqr": self.iqr, **notes}


def parameters(model: nn.Module) -> Parameters:
    """The number of trainable and of all parameters; a shared tensor counts once, buffers do not count."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Parameters(trainable, sum(p.numel() for p in model.parameters()))


def macs(model: nn.Module, *inputs) -> int:
    """Multiply-adds of the model's convolutions, matrix products and attention on these inputs, in eval mode.

    Biases, normalisation, activations, pooling, interpolation and other elementwise work are not counted, and
    neither is a kernel of one's own that torch knows no formula for. The model's modes and buffers stay as they are.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [p for p in model.parameters() if p.requires_grad]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    try:
        model.eval()
        # Even without gradients a view of a trained parameter says that it requires one, and the counter trips on it.
        for parameter in trained:
            parameter.requires_grad_(False)
        # torch has no formula for its fused CPU attention and would count 0; unfused, it is two matrix products.
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


def saved_for_backward(function: Callable[[], object], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps while function(), a forward pass, waits for its backward.

    Every storage counts once and whole, however many views of it are saved; those of `exclude` (parameters, which
    exist anyway) do not. What a custom Function keeps as a plain attribute is not seen.
    """
    saved = []  # holding the tensors keeps the address of one from being given to the next
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function()
    key = lambda t: (t.device, t.untyped_storage().data_ptr())
    known = {key(t) for t in exclude}
    return sum({key(t): t.untyped_storage().nbytes() for t in saved if key(t) not in known}.values())


def interleaved(functions: dict[str, Callable], rounds: int = 20, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each function in each round; all run in every round, each round starting with another one.

    Neighbours in time meet the same clock speed and the same disturbances, so ratios within a round are what to
    compare. Waits for CUDA before and after each call.
    """
    if not functions or rounds < 1 or warmup < 0:
        raise InputError(f"cannot time {len(functions)} functions for {rounds} rounds; give at least one of each")
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    names, seconds = [*functions], {name: [] for name in functions}
    for turn in range(-warmup, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wait()
            start = time.perf_counter()
            functions[name]()
            wait()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(seconds: dict[str, list[float]], reference: str) -> dict[str, Timing]:
    """Median, interquartile range and paired cost of each function of `interleaved`; the reference's own cost is 1."""
    if reference not in seconds:
        raise InputError(f"no times of the reference {reference!r}; there are {[*seconds]}")
    timings = {}
    for name, times in seconds.items():
        cost = statistics.median(t / base for t, base in zip(times, seconds[reference], strict=True))
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if times[1:] else times * 3
        timings[name] = Timing(middle, high - low, cost)
    return timings


def write_bench(path: str | os.PathLike, rows: dict[str, dict]) -> None:
    """Write {name: {"cost": our time / reference time, "ratio": its inverse, ...}} as JSON, whole or not at all."""
    for name, row in rows.items():
        if not 0 < row.get("cost", 0) < float("inf"):
            raise InputError(f"row {name!r} has the cost {row.get('cost')}; give our time / the reference's time")
    full = {name: {**row, "ratio": 1 / row["cost"]} for name, row in rows.items()}
    text = json.dumps(full, indent=2, allow_nan=False) + "\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{path}.tmp-{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def table(rows: dict[str, dict]) -> str:
    """The rows as aligned text, one line each, with a column for every key that any row has."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    text = [["", *keys]]
    for name, row in rows.items():
        cells = (row.get(key, "") for key in keys)
        text.append([name, *(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)])
    widths = [max(len(line[i]) for line in text) for i in range(len(keys) + 1)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in text)


@contextlib.contextmanager
def bench_lock(path: str | os.PathLike) -> Iterator[None]:
    """Hold an exclusive lock on the file, waiting for its holder, so that two benchmarks never run at once."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.getLogger(__name__).info("another benchmark holds %s; waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
