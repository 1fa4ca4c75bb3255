"""What a step, a forward pass and the data path cost, each against what a user has otherwise; one thread.

    python bench.py [--rounds 5]

`step_128`: LAB-Net (32 channels), 128 px, batch 1, mask of 20 %, whole loss with VGG-16 (random weights), Adam.
Reference: the same graph in torch's default layout with zero padding inside the convolutions, no attention matrix (its
convolutions kept), mean squared error, Adam. `forward_128`: both without gradient.
`loader`: one item of a 480x640 picture, crop 256, decoded arrays in memory. Reference: the release's steps with
Pillow, an item at a time; both give the same bits.
`attention_640`: one LSA (32 channels) at 480x640 with a 30 % shadow, attention through the fused operator, against the
same in chunks; and the peak memory of each, forward and with backward, in a process of its own.
"""

import argparse
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from common.cost import compare, interleaved, saved_for_backward, table, write_bench
from common.run import entry
from common.shadow.color import rgb8_to_lab8
from common.shadow.sources import Sample
from common.shadow.synthesis import draw as draw_shadow

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labnet import transforms
from labnet.config import Config, Data
from labnet.data import TrainingSet
from labnet.method import LSA, ConvLayer, Regions, dilate, regions
from labnet.models import LABNet, VGGFeatures
from labnet.train import Step


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a row (default: 5)")
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "PASS"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    rounds = given.rounds
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    if given.peak:
        print(peak(*given.peak))
        return {}
    rows = {**bench_attention(rounds), **bench_network(rounds), **bench_loader(rounds * 4)}
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


class PlainAttention(nn.Module):
    """The convolutions of an LSA without its attention matrix."""

    def __init__(self, original: LSA):
        super().__init__()
        self.conv_s, self.conv_ns, self.convfinal = original.conv_s, original.conv_ns, original.convfinal

    def forward(self, x: Tensor, *_) -> Tensor:
        return self.convfinal(torch.cat([x, self.conv_s(x) + self.conv_ns(x)], 1))


def plain(network: LABNet) -> LABNet:
    """The reference graph: zero padding inside the convolutions, attention without its matrix."""
    for module in network.modules():
        if isinstance(module, ConvLayer):
            module.conv2d.padding, module.pad = (module.pad, module.pad), 0
    for number in range(1, 5):
        setattr(network, f"spaatt{number}", PlainAttention(getattr(network, f"spaatt{number}")))
    return network


def round_mask(height: int, width: int, share: float) -> Tensor:
    """A disc that covers a share of the picture, float [1, 1, H, W]."""
    y, x = torch.meshgrid(*[torch.arange(n) - n / 2 + 0.5 for n in (height, width)], indexing="ij")
    return (x**2 + y**2 < share * height * width / np.pi).float()[None, None]


def inputs(size: int) -> dict[str, Tensor]:
    """A random picture pair and a round mask that covers 20 %."""
    mask = round_mask(size, size, 0.2)
    where = regions(mask, dilate(mask), (size, size))
    values = {name: torch.rand(1, 3, size, size) for name in ("input", "target")}
    return values | {"mask": mask, "shadow": where.shadow, "ring": where.ring}


def bench_network(rounds: int) -> dict:
    """The rows of the training step and the forward pass at 128 px."""
    values = inputs(128)
    last = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in values.items()}
    reference, ours = plain(LABNet()), LABNet().to(memory_format=torch.channels_last)
    step = Step(ours, VGGFeatures().to(memory_format=torch.channels_last), Config())
    losses = {
        "reference": lambda: F.mse_loss(reference(values["input"], values["mask"], ()), values["target"]),
        "step_128": lambda: sum(step(last).values()),
    }
    optimisers = {name: torch.optim.Adam(n.parameters(), 2e-4) for name, n in zip(losses, (reference, ours))}

    def train(name: str):
        optimisers[name].zero_grad(set_to_none=True)
        losses[name]().backward()
        optimisers[name].step()

    timings = compare(interleaved({n: lambda n=n: train(n) for n in losses}, rounds, 1), "reference")
    kept = saved_for_backward(losses["step_128"], ours.parameters())
    memory = kept / saved_for_backward(losses["reference"], reference.parameters())
    with torch.no_grad():
        passes = {
            "reference": lambda: reference(values["input"], values["mask"], ()),
            "forward_128": lambda: ours(last["input"], last["mask"]),
        }
        forward = compare(interleaved(passes, rounds, 1), "reference")["forward_128"]
    note = {"layout": "channels_last / contiguous", "workload": "32 channels, 128 px, batch 1, mask 20 %"}
    return {"step_128": timings["step_128"].row(memory=memory, **note), "forward_128": forward.row(**note)}


class One:
    """A source of one triplet in memory."""

    def __init__(self):
        free = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        self.sample = Sample(*draw_shadow(0, 0, (480, 640)).cast(free), free)

    def read(self, index: int, epoch: int = 0) -> Sample:
        return self.sample


def bench_loader(rounds: int) -> dict:
    """The row of the data path; asserts that both forms give the same pictures."""
    source, config = One(), Config(data=Data())
    prepared = TrainingSet(source, config, LABNet(2))
    turn = iter(range(10**9))

    def reference(number: int) -> tuple[Tensor, ...]:
        sample = source.sample
        (draws,) = transforms.draw(0, 1, torch.tensor([number]), [(480, 640)], config.data)
        # The release converts whole pictures and brings both RGB ones along.
        labs = [rgb8_to_lab8(picture) for picture in (sample.shadow, sample.free)]
        pictures = [*labs, sample.mask, sample.shadow, sample.free]
        cut = [transforms.step_by_step(p, draws, config.data.crop, "stretched", "nearest") for p in pictures]
        return tuple(torch.from_numpy(np.ascontiguousarray(picture)).float() / 255 for picture in cut)

    ours = lambda number: prepared.fetch(torch.tensor([number]), 1)
    for number in range(3):
        found, expected = ours(number), reference(number)
        assert torch.equal(found["input"][0], expected[0].movedim(-1, 0))
        assert torch.equal(found["target"][0], expected[1].movedim(-1, 0))
        assert torch.equal(found["mask"][0, 0], (expected[2] > config.data.train_threshold).float())
    functions = {"reference": lambda: reference(next(turn)), "loader": lambda: ours(next(turn))}
    timing = compare(interleaved(functions, rounds, 2), "reference")["loader"]
    return {"loader": timing.row(layout="uint8", workload=f"480x640 -> 256, {1 / timing.median:.0f} items/s")}


def lsa_640(form: str) -> tuple[Callable[[], Tensor], Regions]:
    """One LSA of the paper's network over a 480x640 map, `fused` or `chunked`, as a call; and where it looks."""
    size, mask = (480, 640), round_mask(480, 640, 0.3)
    where = regions(mask, dilate(mask), size)
    module, x = LSA(32, form == "chunked"), torch.randn(1, 32, *size).to(memory_format=torch.channels_last)
    return lambda: module(x, where, size), where


def bench_attention(rounds: int) -> dict:
    """The row of one LSA at 480x640 with a 30 % shadow, and the memory that it needs."""
    needed = {}
    for form in ("fused", "chunked"):
        for which in ("forward", "backward"):
            command = [sys.executable, __file__, "--peak", form, which]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{form} {which} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            needed[form, which] = f"{int(done.stdout) / 2**20:.0f}"
    (fused, where), (chunked, _) = lsa_640("fused"), lsa_640("chunked")
    with torch.no_grad():
        timing = compare(interleaved({"chunked": chunked, "fused": fused}, min(rounds, 2), 0), "chunked")["fused"]
    memory = "; ".join(f"{form} {needed[form, 'forward']}, {needed[form, 'backward']}" for form in ("fused", "chunked"))
    looks = f"{where.shadow.shape[1]} x {where.ring.shape[1]}"
    note = f"480x640, shadow x ring {looks}; peak MiB forward, with backward: {memory}"
    return {"attention_640": timing.row(layout="channels_last", workload=note)}


def peak(form: str, which: str) -> int:
    """Bytes by which an LSA's forward pass, or that and its backward, raise this process's memory at their peak."""
    run, _ = lsa_640(form)
    # What importing took and gave back lies below the peak already, so the present size is where counting starts.
    status = Path("/proc/self/status")
    before = _kilobytes(status, "VmRSS") if status.is_file() else _largest()
    if which == "backward":
        run().square().mean().backward()
    else:
        torch.inference_mode()(run)()
    return ((_kilobytes(status, "VmHWM") if status.is_file() else _largest()) - before) * 1024


def _kilobytes(status: Path, name: str) -> int:
    return int(re.search(rf"{name}:\s*(\d+) kB", status.read_text())[1])


def _largest() -> int:
    unit = 1024 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


if __name__ == "__main__":
    entry(main)
