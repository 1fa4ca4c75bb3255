"""What the student's step and its angle term cost against the straightforward forms; one thread.

    python bench.py [--rounds 5]

`step`: CycleGAN student at 256x256, batch 1, 64 -> 16 channels: the teacher's image and VGG features without gradient,
relations, adversarial term through the frozen discriminator, Adam. Reference: a plain distillation step of the same
networks: teacher forward without gradient, student with least-squares GAN and L1 to the teacher's image, then a
discriminator step on the student's and the teacher's image, two Adams.
`angle_256`: angle term and its gradient for 256 slices of 768 numbers. Reference: unit vectors [n, n, d] and their
products, as the released code has it. `memory` is what autograd keeps until backward, against the reference's.
"""

import argparse
from pathlib import Path

from common.cost import Timing, compare, interleaved, saved_for_backward, table, write_bench
from common.gan import build_discriminator, build_generator
from common.gan.objectives import frozen
from common.gan.perceptual import VGGFeatures
from common.gan.reference import ARCHITECTURE, STUDENT_WIDTH, TEACHER_WIDTH, reference_step
from common.run import entry

import torch
import torch.nn.functional as F

from crd import method
from crd.config import Config
from crd.student import Student

SIZE, SLICES, LENGTH = 256, 256, 768


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a row (default: 5)")
    parser.add_argument("--rows", nargs="+", choices=("step", "angle_256"), default=["step", "angle_256"])
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    benches = {"step": bench_step, "angle_256": bench_angle}
    rows = {name: benches[name](given.rounds) for name in given.rows}
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


def bench_step(rounds: int) -> dict:
    """The row of the training step."""
    source, real = (torch.rand(1, 3, SIZE, SIZE) * 2 - 1 for _ in range(2))
    reference, plain, existing = reference_step(source, real)
    batch = (source, real, torch.zeros(1, dtype=torch.int64), 1.0)
    teacher = build_generator(ARCHITECTURE, TEACHER_WIDTH)
    discriminator = build_discriminator()
    ours = Student(Config(), build_generator(ARCHITECTURE, STUDENT_WIDTH), VGGFeatures())

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return teacher(source)

    def step() -> None:
        ours.step([batch], [answer()], discriminator, finite)

    def losses() -> torch.Tensor:
        with frozen(discriminator):
            return sum(ours.terms(source, answer(), discriminator).values())

    timings = compare(interleaved({"reference": reference, "step": step}, rounds, warmup=1), "reference")
    kept = saved_for_backward(losses, [p for n in (ours.network, ours.vgg, discriminator) for p in n.parameters()])
    memory = {"memory": kept / saved_for_backward(plain, existing), "MiB": kept / 2**20}
    return timings["step"].row(layout="contiguous, VGG channels_last", **memory, workload=f"{SIZE}x{SIZE}, batch 1")


def finite(terms: dict[str, torch.Tensor], parameters: list[torch.Tensor]) -> None:
    """The check that train.py makes at every step on the CPU."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    torch.isfinite(torch.stack([*(value.detach() for value in terms.values()), norm])).all().item()


def bench_angle(rounds: int) -> dict:
    """The row of the angle term. Errors: ArithmeticError where the two forms disagree."""
    student, teacher = (torch.rand(1, SLICES, LENGTH) * 2 - 1 for _ in range(2))
    student.requires_grad_()

    def gram() -> torch.Tensor:
        return method.angle_loss(method.squared_distances(student), method.squared_distances(teacher)).mean()

    def direct() -> torch.Tensor:
        return F.smooth_l1_loss(method.direct_angles(student), method.direct_angles(teacher))

    def timed(form):
        return lambda: torch.autograd.grad(form(), student)

    loss, gradient = gram().item() - direct().item(), timed(gram)()[0] - timed(direct)()[0]
    if abs(loss) > 1e-6 * direct().item() or gradient.abs().max() > 1e-5 * timed(direct)()[0].abs().max():
        raise ArithmeticError(f"the two forms differ by {loss:.2g} and {gradient.abs().max():.2g}")
    timings = compare(interleaved({"direct": timed(direct), "gram": timed(gram)}, rounds, warmup=1), "direct")
    kept, before = (saved_for_backward(form, [student]) for form in (gram, direct))
    row: Timing = timings["gram"]
    return row.row(layout="float32", memory=kept / before, MiB=kept / 2**20, workload=f"{SLICES} slices of {LENGTH}")


if __name__ == "__main__":
    entry(main)
