"""What a training step, the attention scores and the mixing cost, each against what a user has otherwise; one thread.

    python bench.py [--rounds 7] [--model deit_tiny_patch16_224] [--batch 16] [--size 224] [--device all]

`step_smmix`: a step on the region branch: un-mixed pass, mixing, forward, three losses, backward, AdamW, with the
finite check that train.py makes. `step_mixup`: a step on the Mixup branch. `step_mean`: the mean of both, which is
what a run at switch probability 0.5 pays. Reference of all three: a CutMix step of the same network, with fused
attention as well. `reference_explicit`: that CutMix step with explicit softmax attention in every block, as the
official code has it. `hook`: a forward that also gives attention scores. `look`: the un-mixed pass as SMMix makes it
(class row of the last block only). Reference of both: a plain forward without gradient. `mixing`: scores of all
regions, choice, gather and masks; reference: the CutMix step, so its cost is the share of a step. Rows of a GPU end
in `_cuda`; there the default batch is 256.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

from common.cost import compare, interleaved, saved_for_backward, table, write_bench
from common.errors import InputError
from common.run import entry

import torch
from torch import Tensor, nn

from smmix.adapters import Adapter, adapt
from smmix.config import Config
from smmix.method import SMMix, pool_regions, smooth_labels
from smmix.mixing import Baseline
from smmix.models import build
from smmix.optim import parameter_groups

CLASSES = 1000


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds a row (default: 7)")
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="network (default: deit_tiny_patch16_224)")
    parser.add_argument("--batch", type=int, help="images of a step (default: 16, on a GPU 256)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--device", choices=("all", "cpu", "cuda"), default="all", help="default: all there are")
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; leave the option out")
    torch.set_num_threads(1)
    devices = [d for d in ("cpu", "cuda") if given.device in ("all", d) and (d == "cpu" or torch.cuda.is_available())]
    rows = {}
    for device in devices:
        rows |= bench_device(argparse.Namespace(**{**vars(given), "device": device}))
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


def bench_device(given: argparse.Namespace) -> dict:
    """All rows of one device."""
    torch.manual_seed(0)
    batch = given.batch or (256 if given.device == "cuda" else 16)
    images = torch.randn(batch, 3, given.size, given.size, device=given.device)
    labels = torch.randint(0, CLASSES, (batch,), device=given.device)
    rows = {**bench_step(given, images, labels), **bench_scores(given, images)}
    suffix = "_cuda" if given.device == "cuda" else ""
    workload = f"{given.model} {given.size}, batch {batch}, fp32"
    return {name + suffix: {**row, "workload": workload} for name, row in rows.items()}


def make(given: argparse.Namespace) -> nn.Module:
    """A fresh network in training mode with the recipe's stochastic depth."""
    size = None if given.size == 224 else given.size
    return build(given.model, CLASSES, image_size=size).to(given.device).train()


def optimiser_of(network: nn.Module) -> torch.optim.AdamW:
    """The recipe's optimiser, at its full rate."""
    o = Config().optim
    return torch.optim.AdamW(parameter_groups(network, o.weight_decay), lr=1e-3, betas=o.betas, eps=o.eps)


def cutmix_step(given: argparse.Namespace, images: Tensor, labels: Tensor, explicit: bool = False) -> tuple:
    """(step, its forward pass, network): what a user of timm's CutMix has."""
    network = make(given)
    for block in network.modules():
        if explicit and hasattr(block, "fused_attn"):
            block.fused_attn = False
    optimiser, mixer, rng = optimiser_of(network), Baseline("cutmix", CLASSES), random.Random(0)

    def loss() -> Tensor:
        mixed = mixer(images, labels, None, rng)
        return mixer.losses(mixed, network(mixed.images))["cls"]

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()

    return step, loss, network


def smmix_step(given: argparse.Namespace, images: Tensor, labels: Tensor, switch_prob: float) -> tuple:
    """(step, its forward pass, network) on one branch: regions (1) or Mixup (0)."""
    network = make(given)
    adapter, optimiser = adapt(network), optimiser_of(network)
    mixer, rng = SMMix(CLASSES, switch_prob=switch_prob), random.Random(0)

    def loss() -> Tensor:
        mixed = mixer(images, labels, adapter.look, rng)
        if mixed.source is None:
            return sum(mixer.losses(mixed, network(mixed.images)).values())
        logits, tokens = adapter.run(mixed.images)
        regions = network.token_head(pool_regions(tokens, mixed.source)).chunk(2)
        return sum(mixer.losses(mixed, logits, *regions).values())

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        finite = torch.isfinite(torch.stack([value.detach(), norm])).all()
        if given.device == "cpu":
            finite.item()  # read at every step on the CPU only
        optimiser.step()

    return step, loss, network


def bench_step(given: argparse.Namespace, images: Tensor, labels: Tensor) -> dict:
    """The rows of the training step and of the mixing."""
    reference, plain, cutmix_network = cutmix_step(given, images, labels)
    smmix, regions, network = smmix_step(given, images, labels, 1.0)
    mixup, _, _ = smmix_step(given, images, labels, 0.0)
    explicit, _, _ = cutmix_step(given, images, labels, explicit=True)
    runs = {"reference": reference, "step_smmix": smmix, "step_mixup": mixup, "reference_explicit": explicit}
    runs["mixing"] = mixing(adapt(network), images, labels)
    seconds = interleaved(runs, given.rounds, warmup=1)
    seconds["step_mean"] = [(a + b) / 2 for a, b in zip(seconds["step_smmix"], seconds["step_mixup"])]
    timings = compare(seconds, "reference")
    kept = saved_for_backward(regions, network.parameters()) / saved_for_backward(plain, cutmix_network.parameters())
    notes = {name: {"against": "CutMix step, fused attention"} for name in timings}
    notes["step_smmix"]["memory"] = kept
    order = ("step_smmix", "step_mixup", "step_mean", "reference_explicit", "mixing")
    return {name: timings[name].row(layout="contiguous", **notes[name]) for name in order}


def mixing(adapter: Adapter, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """The mixing of a batch whose scores and un-mixed logits are known, with a new side at every call."""
    logits, scores = adapter.look(images)
    mixer, rng, smooth = SMMix(CLASSES), random.Random(0), smooth_labels(labels, CLASSES)
    return lambda: mixer.regions(images, smooth, logits, scores, rng)


def bench_scores(given: argparse.Namespace, images: Tensor) -> dict:
    """The rows of a forward with attention scores."""
    network = make(given).eval()
    adapter = adapt(network)

    @torch.no_grad()
    def plain():
        network(images)

    @torch.no_grad()
    def hooked():
        adapter(images)

    runs = {"forward": plain, "hook": hooked, "look": lambda: adapter.look(images)}
    timings = compare(interleaved(runs, 3 * given.rounds, warmup=1), "forward")
    against = {"layout": "contiguous", "against": "plain forward, no gradient"}
    return {name: timings[name].row(**against) for name in ("hook", "look")}


if __name__ == "__main__":
    entry(main)
