"""What quantisation and freezing cost on ResNet-20 (CIFAR shape, W2A2, batch 128) against named references, one thread.

    python bench.py [--rounds 11]

`step`: forward, backward, scratcher and both optimisers with freezing on (sine), and the finite check of train.py, in
channels-last layout. Reference: the same network in full precision with SGD in torch's default layout.
`step_contiguous`: ours in the reference's layout. `step_reference_channels_last`: the reference merely put into
channels last. `step_official_form`: the quantisers written as the paper's formulas, everything else as ours.
`eval`: a batch of evaluation with cached quantised weights. Reference: full precision, default layout; the same
three companions. `memory`: bytes kept for backward. Reference: the official form.
`quantiser`: the activation quantiser alone, forward and backward, on [128, 16, 32, 32]. Reference: the official form.
`bookkeeping`: what the scratcher takes (observe, hold, count). Reference: our step without it.
`state`: bytes the scratcher keeps a weight. Reference: the four floats of the release.
`skip_<p>`: forward and backward with p percent of each layer's output rows wholly frozen and left out of the weight
gradient. Reference: the same with none left out; `theory` is the share of multiply-adds that remains.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from common.cost import Timing, compare, interleaved, saved_for_backward, table, write_bench
from common.run import entry

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lts import models
from lts.accounting import layer_macs
from lts.experiment import optimisers
from lts.method import Schedule, Scratcher, initialise, quantise, quantised_layers
from lts.method.quantisers import BoundedActivation

BATCH, CLASSES, BITS = 128, 100, 2
DEFAULT, LAST = torch.contiguous_format, torch.channels_last
RATES = {"lr": 0.1, "lr_quantiser": 1e-4, "momentum": 0.9, "weight_decay": 1e-4}  # section 4
WORKLOAD = {"workload": f"resnet20 W{BITS}A{BITS}, batch {BATCH}"}


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds a row (default: 11)")
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = bench_step(rounds) | bench_eval(rounds) | bench_memory() | bench_quantiser(rounds)
    rows |= bench_bookkeeping(rounds) | bench_state() | bench_skip(rounds)
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


# -- the straightforward form ----------------------------------------------------------------------------------------


class Round(torch.autograd.Function):
    """round(x) with the identity's gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def formula(x: Tensor, lower: Tensor, upper: Tensor, n: int) -> Tensor:
    """x̄ of section 2.1, an autograd operation for each sign of the formula."""
    return Round.apply(((x - lower) / (upper - lower)).clamp(0, 1) * n) / n


class OfficialForm(nn.Conv2d):
    """A convolution quantised by the formulas; made of a quantised one in place."""

    def forward(self, x: Tensor) -> Tensor:
        w, a = self.weight_quantiser, self.activation_quantiser
        weight = 2 * (formula(self.weight, w.lower, w.upper, w.n) - 0.5)
        x = formula(x, a.lower, a.upper, a.n)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


# -- networks and steps ----------------------------------------------------------------------------------------------


def batch(layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator).contiguous(memory_format=layout)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def network(layout: torch.memory_format, form: str) -> nn.Module:
    """ResNet-20 in the form `float`, `ours` or `official`, initialised on a batch, in training mode."""
    torch.manual_seed(0)
    model = models.build("resnet20", CLASSES).to(memory_format=layout)
    if form != "float":
        initialise(quantise(model, BITS, BITS), batch(layout)[0])
    return model.train()


def as_official(model: nn.Module) -> nn.Module:
    """Swap the quantised convolutions for the straightforward form."""
    for layer in quantised_layers(model).values():
        if isinstance(layer, nn.Conv2d):
            layer.__class__ = OfficialForm
    return model


def float_step(layout: torch.memory_format) -> Callable[[], None]:
    """The plain step: cross entropy and SGD in full precision."""
    model, (images, labels) = network(layout, "float"), batch(layout)
    (sgd,) = optimisers(model, **RATES)

    def step() -> None:
        sgd.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        sgd.step()

    return step


def scratch_step(layout: torch.memory_format, form: str = "ours", scratch: bool = True) -> Callable[[], None]:
    """One step of train.py: forward, backward, finite check, scratcher, both optimisers."""
    model, (images, labels) = network(layout, form), batch(layout)
    scratcher = Scratcher(model, Schedule("sine", 10_000, 0, 1)) if scratch else None
    if form == "official":
        as_official(model)
    trained, parameters = optimisers(model, **RATES), [*model.parameters()]

    def step() -> None:
        for optimiser in trained:
            optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.isfinite(torch.stack([loss.detach(), norm])).all().item()  # read at every step on the CPU only
        if scratcher is None:
            for optimiser in trained:
                optimiser.step()
            return
        scratcher.observe()
        with scratcher.held():
            for optimiser in trained:
                optimiser.step()
        scratcher.frozen_counts()

    return step


# -- the rows --------------------------------------------------------------------------------------------------------


def bench_step(rounds: int) -> dict:
    """The rows of the training step."""
    runs = {
        "reference": float_step(DEFAULT),
        "step": scratch_step(LAST),
        "step_contiguous": scratch_step(DEFAULT),
        "step_reference_channels_last": float_step(LAST),
        "step_official_form": scratch_step(DEFAULT, "official"),
    }
    return rows_of(compare(interleaved(runs, rounds, warmup=1), "reference"))


def bench_eval(rounds: int) -> dict:
    """The rows of evaluation."""

    def evaluate(layout: torch.memory_format, form: str) -> Callable[[], None]:
        model, (images, _) = network(layout, form).eval(), batch(layout)
        return torch.inference_mode()(lambda: model(images))

    official = as_official(network(DEFAULT, "official")).eval()
    images, _ = batch(DEFAULT)
    runs = {
        "reference": evaluate(DEFAULT, "float"),
        "eval": evaluate(LAST, "ours"),
        "eval_contiguous": evaluate(DEFAULT, "ours"),
        "eval_reference_channels_last": evaluate(LAST, "float"),
        "eval_official_form": torch.inference_mode()(lambda: official(images)),
    }
    return rows_of(compare(interleaved(runs, 2 * rounds, warmup=2), "reference"))


def rows_of(timings: dict[str, Timing]) -> dict:
    """Rows for all but the reference, with the layouts of both sides."""
    layouts = lambda name: "contiguous" if name.endswith(("contiguous", "official_form")) else "channels_last"
    return {
        name: timing.row(layout=f"{layouts(name)} / contiguous", **WORKLOAD)
        for name, timing in timings.items()
        if name != "reference"
    }


def bench_memory() -> dict:
    """The row of what autograd keeps from forward to backward."""
    kept = {}
    for form in ("float", "ours", "official"):
        model, (images, labels) = network(LAST, form), batch(LAST)
        model = as_official(model) if form == "official" else model
        forward = lambda model=model, images=images, labels=labels: F.cross_entropy(model(images), labels)
        kept[form] = saved_for_backward(forward, model.parameters()) / 2**20
    note = ", ".join(f"{form} {size:.0f} MiB" for form, size in kept.items())
    return {"memory": {"cost": kept["ours"] / kept["official"], "layout": "channels_last", "workload": note}}


def bench_quantiser(rounds: int) -> dict:
    """The row of the activation quantiser."""
    x = torch.randn(BATCH, 16, 32, 32).relu_().requires_grad_()
    upstream = torch.randn_like(x)
    fused = BoundedActivation(BITS)
    fused.initialise(x.detach())

    def straightforward() -> None:
        formula(x, fused.lower, fused.upper, fused.n).backward(upstream)

    runs = {"reference": straightforward, "quantiser": lambda: fused(x).backward(upstream)}
    timing = compare(interleaved(runs, 3 * rounds), "reference")["quantiser"]
    return {"quantiser": timing.row(layout="contiguous", workload=f"{[*x.shape]}, forward and backward")}


def bench_bookkeeping(rounds: int) -> dict:
    """The row of the scratcher's own work, as a share of the step without it."""
    runs = {"with": scratch_step(LAST), "without": scratch_step(LAST, scratch=False)}
    step = compare(interleaved(runs, rounds, warmup=1), "without")["without"].median
    model = network(LAST, "ours")
    scratcher = Scratcher(model, Schedule("sine", 10_000, 0, 1))

    def bookkeeping() -> None:
        scratcher.observe()
        with scratcher.held():
            pass
        scratcher.frozen_counts()

    alone = compare(interleaved({"alone": bookkeeping}, rounds), "alone")["alone"]
    weights = sum(layer.weight.numel() for layer in scratcher.layers.values())
    row = Timing(alone.median, alone.iqr, alone.median / step).row(
        layout="channels_last", workload=f"{weights:,} weights in {len(scratcher.layers)} layers"
    )
    return {"bookkeeping": row}


def bench_state() -> dict:
    """The row of what the scratcher remembers."""
    model = network(LAST, "ours")
    layers = Scratcher(model, Schedule("linear", 10, 0, 1)).layers.values()
    kept = sum(t.numel() * t.element_size() for x in layers for t in vars(x.ticket).values() if torch.is_tensor(t))
    each = kept / sum(x.weight.numel() for x in layers)
    return {"state": {"cost": each / 16, "layout": "-", "workload": f"{each:.0f} bytes a weight, release 16"}}


def bench_skip(rounds: int) -> dict:
    """The rows of weight gradients that are not computed."""
    images, labels = batch(LAST)
    macs = layer_macs(network(LAST, "ours"), images)
    everything = 3 * sum(macs.values())  # forward, input and weight gradient; the input's bounds learn, so all layers
    runs, theory = {}, {}
    for percent in (0, 25, 50, 75, 100):
        model, saved = network(LAST, "ours"), 0
        scratcher = Scratcher(model, Schedule("linear", 10, 0, 1), bounds_gradient=False)
        for name, layer in scratcher.layers.items():
            frozen = layer.weight.shape[0] * percent // 100
            layer.ticket.distance[:frozen] = -1
            layer.ticket.live = True
            saved += macs[name] * frozen / layer.weight.shape[0]
        scratcher.find_rows()
        theory[f"skip_{percent}"] = 1 - saved / everything
        runs[f"skip_{percent}"] = lambda model=model: F.cross_entropy(model(images), labels).backward()
    timings = compare(interleaved(runs, rounds, warmup=1), "skip_0")
    return {
        name: timing.row(layout="channels_last", theory=theory[name], **WORKLOAD)
        for name, timing in timings.items()
        if name != "skip_0"
    }


if __name__ == "__main__":
    entry(main)
