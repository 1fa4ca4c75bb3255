"""What the student's step costs against the plain step of a GAN that learns from a teacher's image; one thread.

    python bench.py [--rounds 5] [--size 256]

`step`: teacher forward, student step with style, feature, adversarial and DCD terms, mobile ResNets 64 -> 16, VGG-16,
batch 1. Reference: teacher forward, student step with a least-squares adversarial term and L1 to the teacher's image,
discriminator step on real and generated images, two Adams, torch's own layers. `step_without_adversarial`: ours
without that term.
"""

import argparse
from pathlib import Path

from common.cost import compare, interleaved, saved_for_backward, table, write_bench
from common.gan import build_discriminator, build_generator, frozen
from common.gan.perceptual import random_vgg
from common.gan.reference import ARCHITECTURE, TEACHER_WIDTH, reference_step
from common.run import entry

import torch

from dcd.config import Config, Distill
from dcd.method import tapped
from dcd.models import build_distiller, build_student
from dcd.student import Student


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--size", type=int, default=256, help="side of the images (default: 256)")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source, real = torch.rand(2, 1, 3, given.size, given.size) * 2 - 1
    teacher = build_generator(ARCHITECTURE, TEACHER_WIDTH)
    vgg = random_vgg(divide=1)
    ours, losses, parameters = student_step(source, teacher, vgg, Config())
    without, _, _ = student_step(source, teacher, vgg, Config(distill=Distill(student_gan="none")))
    reference, plain, own = reference_step(source, real)
    runs = {"reference": reference, "step": ours, "step_without_adversarial": without}
    timings = compare(interleaved(runs, given.rounds, warmup=1), "reference")
    kept = saved_for_backward(losses, parameters) / saved_for_backward(plain, own)
    note = {
        "layout": "VGG channels_last, else contiguous / contiguous",
        "workload": f"64 -> 16 at {given.size}, batch 1",
    }
    rows = {name: timings[name].row(**note) for name in runs if name != "reference"}
    rows["step"]["memory"] = kept
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


def student_step(source: torch.Tensor, teacher, vgg, config: Config) -> tuple:
    """The step, its forward alone, and the tensors that exist anyway."""
    discriminator = build_discriminator()
    student = Student(config, build_student(config), build_distiller(config), vgg)
    batch = (source, source, None, 1.0)

    def answer():
        with torch.no_grad():
            return tapped(teacher, student.layers, source)

    def step():
        student.step([batch], [answer()], discriminator, lambda *_: None)

    def losses():
        with frozen(discriminator):
            return student.terms(source, answer(), discriminator)

    return step, losses, [*student.network.parameters(), *discriminator.parameters(), *vgg.parameters()]


if __name__ == "__main__":
    entry(main)
