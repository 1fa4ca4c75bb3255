"""What a step, the data path and the condensation cost, each against what a user has otherwise; one thread.

    python bench.py [--rounds 7]

`step`: teacher forward, student forward and backward, 0.1 CE + 0.9 KD, SGD for resnet32x4 -> resnet8x4, batch 64.
Reference: the same in torch's default layout with the teacher as it was trained. Ours: BatchNorm folded into the
teacher, channels last, and the recording of values and the finite check that train.py makes.
`step_reference_channels_last`: the reference merely put into channels last, so that both layouts are quoted.
`data_resident`: 50,000 32x32 images, crop and flip. Reference: torchvision's transforms an image at a time in a
DataLoader with one worker. `data_workers`: our own batched loader path with one worker, against the same.
`summary`: blending 2,500 pairs as the paper's first condensation does. Reference: pair by pair.
`condensation`: record, rank and blend for a whole stage of T = 40 epochs. Reference: those 40 epochs of steps.
"""

import argparse
import time
from pathlib import Path

from common.cost import Timing, compare, interleaved, saved_for_backward, table, write_bench
from common.fold import fold_batchnorm
from common.imagesets import ArraySet
from common.labelled import STATISTICS, Labelled, batches
from common.run import entry

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from kcd import distillers, models
from kcd.config import Config
from kcd.method import Condenser, mix
from kcd.pair import Answer, StudentStep, feature_shapes
from kcd.train import sgd

BATCH, CLASSES, N, INTERVAL = 64, 100, 50_000, 40


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds a row (default: 7)")
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step_rows, seconds = bench_step(rounds)
    rows = {**step_rows, **bench_data(rounds), **bench_condensation(rounds, seconds)}
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


def bench_step(rounds: int) -> tuple[dict, float]:
    """The rows of the training step, and the seconds of ours."""
    images, labels, index = torch.randn(BATCH, 3, 32, 32), torch.randint(0, CLASSES, (BATCH,)), torch.arange(BATCH)
    teacher = models.build("resnet32x4", CLASSES).eval().requires_grad_(False)
    config = Config()

    def reference(layout: torch.memory_format):
        student = models.build("resnet8x4", CLASSES).to(memory_format=layout).train()
        asked = models.build("resnet32x4", CLASSES).eval().requires_grad_(False).to(memory_format=layout)
        optimiser = sgd(config, student.parameters(), 0.05)
        batch = images.contiguous(memory_format=layout)

        def loss():
            with torch.no_grad():
                target = asked(batch)
            logits = student(batch)
            return 0.1 * F.cross_entropy(logits, labels) + 0.9 * distillers.kd(logits, target, 4.0)

        def step():
            optimiser.zero_grad(set_to_none=True)
            loss().backward()
            optimiser.step()

        return step, loss, student

    student = models.build("resnet8x4", CLASSES).to(memory_format=torch.channels_last)
    shapes = [feature_shapes(network, images[:2]) for network in (student, teacher)]
    distiller = distillers.build("kd", *shapes, n_data=N, n_classes=CLASSES, seed=0)
    parts = StudentStep(student, distiller, config).train()
    folded = fold_batchnorm(Answer(teacher, False, False)).to(memory_format=torch.channels_last)
    optimiser = sgd(config, student.parameters(), 0.05)
    condenser = Condenser(N)
    batch = images.contiguous(memory_format=torch.channels_last)

    def losses():
        with torch.no_grad():
            features, target = folded(batch)
        terms, logits = parts(batch, labels, index, features, target)
        condenser.record(index, logits, target, labels)
        return sum(terms.values())

    def ours():
        optimiser.zero_grad(set_to_none=True)
        loss = losses()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in student.parameters()])
        torch.isfinite(torch.stack([loss.detach(), norm])).all().item()  # read at every step on the CPU only
        optimiser.step()

    contiguous, forward, plain = reference(torch.contiguous_format)
    channels_last, _, _ = reference(torch.channels_last)
    runs = {"reference": contiguous, "step": ours, "step_reference_channels_last": channels_last}
    timings = compare(interleaved(runs, rounds, warmup=1), "reference")
    kept = saved_for_backward(losses, student.parameters()) / saved_for_backward(forward, plain.parameters())
    note = {"workload": "resnet32x4 -> resnet8x4, batch 64"}
    rows = {
        "step": timings["step"].row(layout="channels_last / contiguous", memory=kept, **note),
        "step_reference_channels_last": timings["step_reference_channels_last"].row(layout="both", **note),
    }
    return rows, timings["step"].median


class PerImage(Dataset):
    """The usual CIFAR pipeline: PIL crop and flip, tensor, normalise, one image at a time."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        from torchvision import transforms

        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(*STATISTICS["cifar100"]),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i], i


def bench_data(rounds: int, images: int = 6400) -> dict:
    """The rows of the data paths, each over the same number of images."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, N)
    resident = ArraySet(pixels, labels, range(CLASSES), STATISTICS["cifar100"], padding=4, flip=True)
    order = torch.from_numpy(rng.permutation(N)[:images])
    per_image = PerImage(pixels, labels)
    device = torch.device("cpu")

    def run(settings: Labelled):
        for _ in batches(resident, order, 1, settings, device):
            pass

    def reference():
        for _ in DataLoader(per_image, BATCH, sampler=order.tolist(), num_workers=1):
            pass

    functions = {
        "reference": reference,
        "data_resident": lambda: run(Labelled(batch_size=BATCH)),
        "data_workers": lambda: run(Labelled(batch_size=BATCH, resident=False, workers=1)),
    }
    timings = compare(interleaved(functions, rounds, warmup=1), "reference")
    return {
        name: timing.row(layout="uint8 [N, H, W, 3]", workload=f"{images / timing.median:,.0f} images/s")
        for name, timing in timings.items()
        if name != "reference"
    }


def bench_condensation(rounds: int, step_seconds: float) -> dict:
    """The rows of the summary and of the whole condensation."""
    images = torch.randint(0, 256, (N, 32, 32, 3), dtype=torch.uint8)
    pairs = N // 20
    kept, lost = images[:pairs], images[pairs : 2 * pairs]
    rate = torch.linspace(1, 0.7, pairs)

    def pair_by_pair():
        for r, a, b in zip(rate, kept, lost):
            (r * a.float() + (1 - r) * b.float()).to(torch.uint8)

    timings = compare(interleaved({"loop": pair_by_pair, "summary": lambda: mix(kept, lost)}, rounds, 1), "loop")
    condenser = Condenser(N)
    logits, labels = torch.randn(BATCH, CLASSES), torch.randint(0, CLASSES, (BATCH,))
    index = torch.arange(BATCH)
    record = compare(interleaved({"one": lambda: condenser.record(index, logits, logits, labels)}, 50), "one")["one"]
    began = time.perf_counter()
    condenser.note(torch.arange(N), torch.rand(N))
    condenser.merge()
    condenser.condense(images)
    once = time.perf_counter() - began
    steps = INTERVAL * -(-N // BATCH)
    share = (steps * record.median + INTERVAL * once) / (steps * step_seconds)  # merging at every epoch, rounded up
    whole = torch.arange(N // 2)
    began = time.perf_counter()
    mix(images[whole], images[whole + N // 2])
    all_images = time.perf_counter() - began
    return {
        "summary": timings["summary"].row(layout="uint8", workload=f"2,500 pairs; 50,000 images in {all_images:.2f} s"),
        "condensation": Timing(steps * record.median + once, record.iqr, share).row(
            layout="resident", workload=f"rank and blend {once * 1e3:.0f} ms; record 41 bytes a point"
        ),
    }


if __name__ == "__main__":
    entry(main)
