"""What a training step of the second stage costs against an ordinary network's step; one thread.

    python bench.py [--rounds 5] [--batch 24]

`step`: ReBNN-18 at 224 px, teacher ResNet-34 included: the teacher's forward without gradient, the student's forward
and backward on the distributional loss, Adam, γ and oscillation counts, and the check for finite values of train.py.
Reference: the same graph with ordinary float convolutions and no sign (learned biases and PReLU kept) in torch's
default layout, the teacher as it was trained. Ours: BatchNorm folded into the teacher, channels last.
`step_reference_channels_last`: the reference merely put into channels last, so that both layouts are quoted.
`step_unfused`: sign and RPReLU left to autograd, operation by operation, and the official binariser; same reference.
`bert_step`: of bench_glue.py, binary BERT-base against the float student.
`roi_align`, `nms`: of bench_detection.py, the operators of the fallback.
`memory`: what autograd keeps for the backward pass, against the reference; `memory_of_unfused`: against `step_unfused`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from common.cost import compare, interleaved, saved_for_backward, table, write_bench
from common.fold import fold_batchnorm
from common.run import entry

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebnn import models
from rebnn.bench_detection import bench_operators
from rebnn.bench_glue import bench_bert
from rebnn.method import Balance, distribution_loss
from rebnn.method.binariser import LEVEL
from rebnn.models.resnet import Block
from rebnn.train import adam

CLASSES, SIZE = 1000, 224


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a row (default: 5)")
    parser.add_argument("--batch", type=int, default=24, help="images of a step (default: 24)")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = bench_step(given.rounds, torch.randn(given.batch, 3, SIZE, SIZE)) | bench_bert(given.rounds)
    rows |= bench_operators(given.rounds)
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


def bench_step(rounds: int, images: Tensor) -> dict[str, dict]:
    """The rows of the training step."""
    teacher = models.teacher("resnet34_teacher", CLASSES).eval().requires_grad_(False)
    plain = {
        "reference": (PlainBlock, torch.contiguous_format),
        "step_reference_channels_last": (PlainBlock, torch.channels_last),
        "step_unfused": (UnfusedBlock, torch.contiguous_format),
    }
    steps, memory = {}, {}
    for name, (block, layout) in plain.items():
        student = rebuilt(models.build("resnet18", CLASSES), block)
        steps[name], memory[name] = make_step(student, teacher, images, layout)
    student = models.build("resnet18", CLASSES)
    steps["step"], memory["step"] = make_step(
        student, fold_batchnorm(teacher), images, torch.channels_last, Balance(student)
    )
    timings = compare(interleaved(steps, rounds, warmup=1), "reference")
    layouts = {"step": "channels_last / contiguous", "step_reference_channels_last": "channels_last / contiguous"}
    note = {"workload": f"ReBNN-18, {SIZE} px, batch {len(images)}"}
    rows = {
        name: timings[name].row(
            layout=layouts.get(name, "contiguous"), memory=memory[name] / memory["reference"], **note
        )
        for name in ("step", "step_reference_channels_last", "step_unfused")
    }
    rows["step"]["memory_of_unfused"] = memory["step"] / memory["step_unfused"]
    return rows


def make_step(
    student: nn.Module,
    teacher: Callable[[Tensor], Tensor],
    images: Tensor,
    layout: torch.memory_format,
    balance: Balance | None = None,
) -> tuple[Callable[[], None], int]:
    """A training step, and the bytes that its forward pass keeps; with balance it is ours, and checked."""
    student = student.to(memory_format=layout).train()
    asked = teacher.to(memory_format=layout)
    batch = images.contiguous(memory_format=layout)
    parameters = [*student.parameters()]
    optimiser = adam(parameters, 1e-3) if balance else torch.optim.Adam(parameters, 1e-3)

    def loss() -> Tensor:
        with torch.no_grad():
            target = asked(batch)
        return distribution_loss(student(batch), target)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        if balance:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            torch.isfinite(torch.stack([value.detach(), norm])).all().item()  # read at every step on the CPU only
        optimiser.step()
        if balance:
            balance.step()

    return step, saved_for_backward(loss, parameters)


def rebuilt(network: nn.Module, block: type[nn.Module]) -> nn.Module:
    """The network with the computation of its blocks replaced; parameters stay as they are."""
    for stage in network.stages():
        for i, one in enumerate(stage):
            stage[i] = block(one)
    return network


class PlainBlock(nn.Module):
    """A block with ordinary float convolution: x + β, convolution, BN, shortcut, biases and PReLU."""

    def __init__(self, block: Block):
        super().__init__()
        self.block = block

    def convolution(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.block.binary_conv.weight, stride=self.block.stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        out = block.bn1(self.convolution(x + block.move0.bias)) + block.downsample(x)
        return block.prelu(out + block.move1.bias) + block.move2.bias


class UnfusedBlock(PlainBlock):
    """A binary block whose gradients autograd finds by itself, through every operation of the formulas."""

    def convolution(self, x: Tensor) -> Tensor:
        conv = self.block.binary_conv
        return F.conv2d(
            unfused_sign(x), UnfusedBinariser.apply(conv.weight, conv.scaling_factor.abs()), None, conv.stride, 1
        )


def unfused_sign(x: Tensor) -> Tensor:
    """sign(x) in front of the piecewise quadratic, which is blended from its pieces with masks of 0 and 1."""
    left, negative, inside = ((x < edge).to(x.dtype) for edge in (-1, 0, 1))
    rising = -left + (x * x + 2 * x) * (1 - left)
    falling = rising * negative + (-x * x + 2 * x) * (1 - negative)
    smooth = falling * inside + (1 - inside)
    return torch.sign(x).detach() - smooth.detach() + smooth


class UnfusedBinariser(torch.autograd.Function):
    """ŵ = 0.02·a·sign(w) with the reconstruction loss of γ = 2e-4, as the official code executes it (section 2.6)."""

    @staticmethod
    def forward(ctx, weight: Tensor, a: Tensor) -> Tensor:
        ctx.save_for_backward(weight, a)
        return a * (LEVEL * torch.sign(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        weight, a = ctx.saved_tensors
        quantised = LEVEL * torch.sign(weight)
        residual = weight - a * quantised
        grad_a = (grad * weight).sum((1, 2, 3), keepdim=True) - 2e-4 * (residual * quantised).sum(
            (1, 2, 3), keepdim=True
        )
        return a * grad + 2e-4 * residual, grad_a


if __name__ == "__main__":
    entry(main)
