"""What a step, a forward pass and the data path cost, each against what a user has otherwise; one thread.

    python bench.py [--rounds 5]

`step_128`: LAB-Net (32 channels), 128 px, batch 1, mask of 20 %, whole loss with VGG-16 (random weights), Adam.
Reference: the same graph in torch's default layout with zero padding inside the convolutions, no attention matrix (its
convolutions kept), mean squared error, Adam. `forward_128`: both without gradient.
`loader`: one item of a 480x640 picture, crop 256, decoded arrays in memory. Reference: the release's steps with
Pillow, an item at a time; both give the same bits.
`attention_640`: fused attention of one LSA at 480x640 with a 30 % shadow, against the same in chunks.
"""

import argparse
import resource
from pathlib import Path

from common.cost import compare, interleaved, saved_for_backward, table, write_bench
from common.run import entry
from common.shadow.sources import Sample
from common.shadow.synthesis import draw as draw_shadow

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labnet import transforms
from labnet.config import Config, Data
from labnet.data import TrainingSet
from labnet.method import LSA, ConvLayer, attend, dilate, regions
from labnet.models import LABNet, VGGFeatures
from labnet.train import Step


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a row (default: 5)")
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Attention first: the process's peak memory must not have been reached by something else.
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


def inputs(size: int) -> dict[str, Tensor]:
    """A random picture pair and a round mask that covers 20 %."""
    y, x = torch.meshgrid(*[torch.arange(size) - size / 2 + 0.5] * 2, indexing="ij")
    mask = (x**2 + y**2 < 0.2 * size**2 / np.pi).float()[None, None]
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
        draws = transforms.draw(0, 1, number, (480, 640), config.data)
        labs = [transforms.to_network(picture, config.model) for picture in (sample.shadow, sample.free)]
        levels = [(lab.movedim(0, -1) * 255).round().byte().numpy() for lab in labs]
        # The release also brings both RGB pictures along.
        pictures = [*levels, sample.mask, sample.shadow, sample.free]
        cut = [transforms.step_by_step(p, draws, config.data.crop, "stretched", "nearest") for p in pictures]
        return tuple(torch.from_numpy(np.ascontiguousarray(picture)).float() / 255 for picture in cut)

    ours = lambda number: prepared.fetch(torch.tensor([number]), 1)
    for number in range(3):
        assert torch.equal(ours(number)["input"][0], reference(number)[0].movedim(-1, 0))
    functions = {"reference": lambda: reference(next(turn)), "loader": lambda: ours(next(turn))}
    timing = compare(interleaved(functions, rounds, 2), "reference")["loader"]
    return {"loader": timing.row(layout="uint8", workload=f"480x640 -> 256, {1 / timing.median:.0f} items/s")}


def bench_attention(rounds: int) -> dict:
    """The row of fused attention at 480x640 with a 30 % shadow, and the memory that the process has grown by."""
    size, keys, wide = (480, 640), 6000, 48
    query, value = torch.randn(1, int(0.3 * size[0] * size[1]), wide), torch.randn(1, keys, wide)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        attend(query, value)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        functions = {"chunked": lambda: attend(query, value, chunked=True), "fused": lambda: attend(query, value)}
        timing = compare(interleaved(functions, min(rounds, 3), 0), "chunked")["fused"]
    return {"attention_640": timing.row(layout="[B, n, K]", workload=f"92160 x {keys}, peak grew by {grown:.0f} MiB")}


if __name__ == "__main__":
    entry(main)
