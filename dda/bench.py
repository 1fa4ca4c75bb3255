"""What routed inference, the prior and a training step cost, each against what a user has otherwise.

    python bench.py [--rounds 3] [--threads 1|all] [--network mbcnn] [--memory true]

`infer_mbcnn_1024`, `infer_dmcnn_1024`: a 1024 x 1024 picture in four tiles, widths 0.6 / 0.5 / 0.4 for 1 / 2 / 1 of
them, with prior, cutting and stitching. Reference: the network at full width on the whole picture in torch's default
layout, as released. `…_channels_last`: ours against that reference in channels last as well; `share` is that of the
multiply-adds. `prior`: scoring four tiles, against the routed DMCNN inference. `step_mbcnn`, `step_dmcnn`: a training
step, mean over the three widths (patch 128, batch 2; patch 256, batch 1). Reference: the same network at full width in
the default layout, sum of absolute differences, Adam. `memory_…`: peak memory of one 1024 x 1920 inference, each in a
process of its own; cost is ours over the unrouted network's. With --threads all, rows end in `_all_cores`.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from common.cost import compare, interleaved, table, write_bench
from common.errors import InputError
from common.run import entry

import torch
from torch import Tensor, nn

from dda import models
from dda.inference import Demoirer
from dda.method.losses import l1, multi_scale
from dda.method.prior import moire_prior
from dda.models import build

WIDTHS = (0.6, 0.5, 0.4)
PATCH, BATCH = {"mbcnn": 128, "dmcnn": 256}, {"mbcnn": 2, "dmcnn": 1}
ASL = {"mbcnn": 0.25, "dmcnn": 0.0}
MEMORY_SIZE, MEMORY_TILE, MEMORY_WIDTHS = (1024, 1920), (512, 640), (0.75, 0.5, 0.25)


def main(argv: list[str]) -> dict:
    """Time what was asked for, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds a row (default: 3)")
    parser.add_argument("--size", type=int, default=1024, help="side of the picture (default: 1024)")
    parser.add_argument("--threads", choices=("1", "all"), default="1", help="default: 1")
    parser.add_argument("--network", choices=(*models.NETWORKS, "both"), default="both", help="default: both")
    parser.add_argument("--memory", choices=("true", "false"), default="true", help="also the peak memory")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.peak:
        print(peak(*given.peak))
        return {}
    if given.size % 32 or given.size < 64:
        raise InputError(f"--size {given.size}: give a multiple of 32 from 64 on, so that four tiles fill the picture")
    torch.set_num_threads(1 if given.threads == "1" else os.cpu_count())
    torch.manual_seed(0)
    rows = {}
    names = models.NETWORKS if given.network == "both" else (given.network,)
    if given.memory == "true":
        rows = {row: values for name in names for row, values in bench_memory(name).items()}
    for name in names:
        rows |= bench_inference(name, given.size, given.rounds)
        rows |= bench_step(name, given.rounds)
    if given.threads == "all":
        rows = {f"{name}_all_cores": row for name, row in rows.items()}
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


def picture(height: int, width: int) -> Tensor:
    """Smooth colours with stripes that grow stronger to one corner: uint8 [3, height, width]; tiles score unequally."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    phases = torch.arange(3.0)[:, None, None]
    stripes = (torch.arange(width) * 0.11 * (phases + 1) + torch.arange(height)[:, None] * 0.07).sin()
    return (140 + 60 * (3 * rows + phases).sin() + 50 * rows * columns * stripes).clamp(0, 255).to(torch.uint8)


def bench_inference(name: str, size: int, rounds: int) -> dict:
    """The rows of inference and, beside DMCNN, that of the prior."""
    network = build(name).eval().requires_grad_(False)
    image, half = picture(size, size), size // 2
    routed = Demoirer(network, WIDTHS, tile=(half, half))

    def whole(layout: torch.memory_format) -> Callable[[], Tensor]:
        own = build(name).eval().requires_grad_(False).to(memory_format=layout)

        @torch.inference_mode()
        def run() -> Tensor:
            given = image[None].float().div(255).contiguous(memory_format=layout)
            return own(given)[-1].mul(255).to(torch.uint8)

        return run

    contiguous, last = whole(torch.contiguous_format), whole(torch.channels_last)
    runs = {"contiguous": contiguous, "last": last, "routed": lambda: routed(image)}
    tiles = routed.cut(image, routed.grid((size, size)))
    if name == "dmcnn":
        runs["prior"] = torch.inference_mode()(lambda: moire_prior(tiles, dtype=torch.float32))  # as Demoirer does
    seconds = interleaved(runs, rounds, warmup=1)
    share = routed(image).macs / models.macs(network, 1.0, (size, size))
    note = {"workload": f"{name} {size} x {size}, widths {WIDTHS}, 1 / 2 / 1", "share": share}
    rows = {}
    for reference, suffix, layout in (
        ("contiguous", "", "channels_last / contiguous"),
        ("last", "_channels_last", "both"),
    ):
        timing = compare(seconds, reference)["routed"]
        rows[f"infer_{name}_{size}{suffix}"] = timing.row(layout=layout, **note)
    if name == "dmcnn":
        workload = f"4 tiles of {half} x {half}, against the routed inference"
        rows["prior"] = compare(seconds, "routed")["prior"].row(layout="uint8", workload=workload)
    return rows


def bench_step(name: str, rounds: int) -> dict:
    """The row of a training step."""
    patch, batch = PATCH[name], BATCH[name]
    moire, clean = (torch.randint(0, 256, (batch, 3, patch, patch), dtype=torch.uint8) for _ in range(2))
    runs = {"reference": full_step(build(name), moire, clean)}
    network = build(name)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    for width in WIDTHS:
        runs[str(width)] = supernet_step(network, optimiser, width, moire, clean, ASL[name])
    seconds = interleaved(runs, rounds, warmup=1)
    seconds["step"] = [sum(times) / len(WIDTHS) for times in zip(*(seconds[str(width)] for width in WIDTHS))]
    note = f"patch {patch}, batch {batch}, mean of widths {WIDTHS}"
    return {f"step_{name}": compare(seconds, "reference")["step"].row(layout="contiguous", workload=note)}


def full_step(network: nn.Module, moire: Tensor, clean: Tensor) -> Callable[[], None]:
    """The reference: full width, the sum of absolute differences of every output, Adam."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    x, y = moire.float().div(255), clean.float().div(255)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        outputs = network(x)
        targets = [nn.functional.avg_pool2d(y, y.shape[-1] // output.shape[-1]) for output in outputs]
        sum(l1(output, target) for output, target in zip(outputs, targets)).backward()
        optimiser.step()

    return step


def supernet_step(
    network: nn.Module, optimiser: torch.optim.Optimizer, width: float, moire: Tensor, clean: Tensor, asl: float
) -> Callable[[], None]:
    """A step as train.py makes it, with its losses and its check that they are finite."""
    parameters = list(network.parameters())

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        x = moire.float().div(255)
        loss = sum(multi_scale(network(x, width), clean.float().div(255), asl).values())
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        torch.isfinite(torch.stack([loss.detach(), norm])).all().item()  # read at every step on the CPU only
        optimiser.step()

    return step


def bench_memory(name: str) -> dict:
    """The row of peak memory; a process of its own for each way, because a peak never falls again."""
    used = {}
    for way in ("whole", "routed"):
        command = [sys.executable, __file__, "--peak", name, way]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the {way} {name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        used[way] = int(done.stdout)
    mebibytes = {way: f"{bytes_ / 2**20:.0f} MiB" for way, bytes_ in used.items()}
    height, width = MEMORY_SIZE
    note = f"{height} x {width}, widths {MEMORY_WIDTHS}: {mebibytes['routed']}, whole {mebibytes['whole']}"
    return {f"memory_{name}": {"cost": used["routed"] / used["whole"], "layout": "as timed", "workload": note}}


def peak(name: str, way: str) -> int:
    """Bytes by which one inference raises this process's peak memory; weights were there before."""
    torch.set_num_threads(1)
    network = build(name).eval().requires_grad_(False)
    image = picture(*MEMORY_SIZE)
    if way == "routed":
        routed = Demoirer(network, MEMORY_WIDTHS, tile=MEMORY_TILE)
        run = lambda: routed(image)
    else:
        run = torch.inference_mode()(lambda: network(image[None].float().div(255))[-1])
    before = highest()
    run()
    return highest() - before


def highest() -> int:
    """Peak memory of this process so far, bytes; `getrusage` counts what the parent held at the fork on Linux."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    entry(main)
