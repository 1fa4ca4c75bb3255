"""The paper's protocol on a checkpoint: distance to real images, cost in both conventions, nearness to the teacher.

    python eval.py --checkpoint runs/cfg/distil/last.pt [--data.root DIR] [--gallery DIR] [--latency 1 2]
    python eval.py --checkpoint best_net_G.pth --config configs/horse2zebra.yaml           (a released student)
    python eval.py --config configs/horse2zebra.yaml --statistics real_B.npz               (of your own real images)
    python eval.py --checkpoint … --segmentation.weights drn-d-105_ms_cityscapes.pth --segmentation.table table.txt

`fid` is what Inception's features give, `fd_<network>` any other network's. The number to report is that of last.pt;
best.pt is chosen on the test set. The last command adds Cityscapes' mIoU. Every number is of so many `images`.
"""

import argparse
from functools import partial
from pathlib import Path

from common import config, distributed
from common.environment import environment
from common.errors import InputError
from common.gan import frechet_distance, statistics
from common.gan.apply import ROLES, costs, experiment, gallery, latencies, load_generators
from common.gan.evaluation import features, generated, save_statistics
from common.gan.judge import Judge, pairs
from common.gan.teachers import TEACHERS
from common.report import print_metrics, write_metrics
from common.run import entry
from common.weights import fit_weights, read_weights

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcd import data, models
from dcd.cityscapes import segmentation
from dcd.config import Config


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="last.pt or best.pt of a run, or a released generator")
    parser.add_argument("--config", help="the experiment of a released generator, which does not carry it")
    parser.add_argument(
        "--role", choices=ROLES, help="generator to judge (default: student, of stage teacher: teacher)"
    )
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    parser.add_argument("--statistics", help="write the real target images' mu and sigma to this .npz and stop")
    parser.add_argument("--gallery", help="folder for a page of source, real, teacher and student images")
    parser.add_argument("--latency", type=int, nargs="+", default=[], metavar="THREADS", help="time one image as well")
    parser.add_argument("--compile", action="store_true", help="time the compiled generator as well")
    given, overrides = parser.parse_known_args(argv)
    if not given.checkpoint and not (given.config and given.statistics):
        raise InputError("give --checkpoint, or --config and --statistics to describe real images")
    conf, own = experiment(Config, "dcd", given.config, given.checkpoint)
    conf = config.override(conf, overrides)
    role = given.role or ("teacher" if own.get("stage") == "teacher" else "student")
    _, test = data.load(conf)
    device = distributed.start(conf.run.device)
    judge, recognise = Judge(conf.judging, test, device), segmentation(conf, test, device)
    if given.statistics:
        save_statistics(given.statistics, judge.statistics())
        return {"images": len(judge.real)}

    generators = load_generators(conf.networks, given.checkpoint, role, bool(own))
    generator = generators[role].to(device)
    metrics = judge(generator) | costs(conf.networks, generator)
    if own:
        key = TEACHERS[conf.model].main[1]
        discriminator = models.build_teachers(conf)[key]
        fit_weights(discriminator, read_weights(given.checkpoint, key), given.checkpoint)
        discriminator.to(device).eval()
        metrics |= closeness(conf, generators, discriminator, judge)
        metrics |= {"train_seconds": own["seconds"], **own["state"]["progress"]}
        metrics |= {f"best_{name}": value for name, value in metrics.pop("best").items()}
    metrics |= latencies(generator, conf.data.crop_size, given.latency, given.compile)
    if recognise:
        metrics["miou"] = recognise(generator)
    if given.gallery:
        more = partial(seen_difference, conf, discriminator) if own else None
        gallery(Path(given.gallery), dict(sorted(generators.items(), reverse=True)), test, device, more)
    path = Path(given.checkpoint)
    metrics["_meta"] = {"checkpoint": path.name, "role": role, "data": conf.data.name}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics)
    return metrics


def load_generator(path: str, config_path: str | None, role: str) -> nn.Module:
    """One generator of a checkpoint of ours or of a released file. Errors: CheckpointError."""
    conf, own = experiment(Config, "dcd", config_path, path)
    return load_generators(conf.networks, path, role, bool(own))[role]


@torch.inference_mode()
def closeness(conf: Config, generators: dict, discriminator: nn.Module, judge: Judge) -> dict[str, float]:
    """How far the student is from its teacher on the test images.

    teacher_l1: mean absolute difference of images in [-1, 1]. discriminator_distance: the same of the discriminator's
    last hidden activation. teacher_<distance>: Fréchet distance between student's and teacher's images.
    """
    networks = {name: generator.to(judge.device) for name, generator in generators.items()}
    images: dict[str, list] = {name: [] for name in networks}
    sums, count = torch.zeros(2), 0
    for source, _ in pairs(judge.test):
        source, seen = source.to(judge.device), {}
        for name, network in networks.items():
            image = next(generated(network, [source], judge.device))
            images[name].append(image)
            seen[name] = image, seen_by(discriminator, conf.model, source, image)
        pair = zip(seen["student"], seen["teacher"])
        sums += torch.stack([(s - t).abs().mean().cpu() for s, t in pair]) * len(source)
        count += len(source)
    spread = [statistics(features(judge.extract, images[name])) for name in ("student", "teacher")]
    l1, distance = (sums / count).tolist()
    return {
        "teacher_l1": l1,
        "discriminator_distance": distance,
        f"teacher_{judge.name}": frechet_distance(*spread),
    }


def seen_by(discriminator: nn.Module, model: str, source: Tensor, image: Tensor) -> Tensor:
    """The discriminator's last hidden activation [B, C, h, w] for images, next to their sources in pix2pix."""
    return discriminator.hidden(torch.cat([source, image], 1) if model == "pix2pix" else image)


@torch.inference_mode()
def seen_difference(conf: Config, discriminator: nn.Module, source: Tensor, images: dict[str, Tensor]) -> dict:
    """Where the discriminator tells student and teacher apart, patch by patch: white where most, black where not.

    {"difference": [1, 3, H, W] in [-1, 1]}, scaled by the picture's own largest difference.
    """
    student, teacher = (seen_by(discriminator, conf.model, source, images[name]) for name in ("student", "teacher"))
    difference = (student - teacher).abs().mean(1, keepdim=True)
    shown = F.interpolate(difference / difference.max().clamp(min=1e-12), source.shape[-2:], mode="nearest")
    return {"difference": shown.expand(-1, 3, -1, -1) * 2 - 1}


if __name__ == "__main__":
    entry(main)
