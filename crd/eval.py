"""The paper's protocol on a checkpoint: distance to real images, complexity both ways, relations to the teacher.

    python eval.py --checkpoint runs/cfg/distil/last.pt [--data.root DIR] [--gallery DIR] [--latency 1 2]
    python eval.py --checkpoint best_net_G16.pth --config configs/horse2zebra.yaml         (a released student)
    python eval.py --config configs/horse2zebra.yaml --statistics real_B.npz               (of your own real images)

`fid` is what Inception's features give, `fd_<network>` any other network's. The number to report is that of last.pt;
best.pt is chosen on the test set. Every number says of how many images it is (`images`).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from common import config, distributed
from common.environment import environment
from common.errors import InputError
from common.gan import frechet_distance, statistics
from common.gan.apply import ROLES, costs, experiment, gallery, latencies, load_generators
from common.gan.evaluation import features, generated, save_statistics
from common.gan.judge import Judge, pairs
from common.images import write_image
from common.report import print_metrics, write_metrics
from common.run import entry

import torch
from torch import Tensor, nn

from crd import data, method
from crd.config import Config


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
    parser.add_argument("--relations", help="folder for pictures of the teacher's and the student's distances")
    parser.add_argument("--latency", type=int, nargs="+", default=[], metavar="THREADS", help="time one image as well")
    parser.add_argument("--compile", action="store_true", help="time the compiled generator as well")
    given, overrides = parser.parse_known_args(argv)
    if not given.checkpoint and not (given.config and given.statistics):
        raise InputError("give --checkpoint, or --config and --statistics to describe real images")
    conf, own = experiment(Config, "crd", given.config, given.checkpoint)
    conf = config.override(conf, overrides)
    role = given.role or ("teacher" if own.get("stage") == "teacher" else "student")
    if given.relations and not own:
        raise InputError("--relations compares student and teacher: give a checkpoint of train.py, which holds both")
    _, test = data.load(conf)
    device = distributed.start(conf.run.device)
    judge = Judge(conf.judging, test, device)
    if given.statistics:
        save_statistics(given.statistics, judge.statistics())
        return {"images": len(judge.real)}

    generators = load_generators(conf.networks, given.checkpoint, role, bool(own))
    generator = generators[role].to(device)
    metrics = judge(generator) | costs(conf.networks, generator)
    if own:
        progress = dict(own["state"]["progress"])
        best = {f"best_{name}": value for name, value in progress.pop("best").items()}
        metrics |= closeness(conf, generators, judge) | {"train_seconds": own["seconds"], **progress, **best}
    metrics |= latencies(generator, conf.data.crop_size, given.latency, given.compile)
    if given.gallery:
        gallery(Path(given.gallery), dict(sorted(generators.items(), reverse=True)), test, device)
    if given.relations:
        draw_relations(Path(given.relations), conf, generators, judge)
    path = Path(given.checkpoint)
    metrics["_meta"] = {"checkpoint": path.name, "role": role, "data": conf.data.name}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics)
    return metrics


def load(path: str, config_path: str | None, role: str) -> nn.Module:
    """A generator for predict.py and export.py, in evaluation mode."""
    conf, own = experiment(Config, "crd", config_path, path)
    return load_generators(conf.networks, path, role, bool(own))[role]


@torch.inference_mode()
def closeness(conf: Config, generators: dict[str, nn.Module], judge: Judge) -> dict[str, float]:
    """How far the student is from its teacher on the test images, per image.

    teacher_l1: mean absolute difference of images in [-1, 1]. relation_error: R_row + R_column + R_patch, whatever the
    run's weights of the sets were, so that arms compare. teacher_<distance>: between both's images.
    """
    r = conf.relations
    loss = method.ContentRelationLoss(1, 1, 1, distance=r.distance or 1, angle=r.angle or 2, patch_size=r.patch_size)
    sums: dict[str, Tensor] = {}
    shown: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    count = 0
    for student, teacher in both(generators, judge):
        found = loss.relations(student, teacher)
        found = {f"relation_{name}": values.sum() for name, values in found.items()}
        found["teacher_l1"] = (student - teacher).abs().mean((1, 2, 3)).sum()
        sums = {name: sums.get(name, 0) + value for name, value in found.items()}
        shown["student"].append(student)
        shown["teacher"].append(teacher)
        count += len(student)
    found = {name: float(value) / count for name, value in sums.items()}
    found["relation_error"] = sum(value for name, value in found.items() if name.startswith("relation_"))
    spread = [statistics(features(judge.extract, images)) for images in shown.values()]
    return found | {f"teacher_{judge.name}": frechet_distance(*spread)}


def both(generators: dict[str, nn.Module], judge: Judge) -> Iterator[tuple[Tensor, Tensor]]:
    """Student's and teacher's images [B, 3, H, W] of the test sources, batch by batch."""
    networks = [generators[name].to(judge.device) for name in ("student", "teacher")]
    for source, _ in pairs(judge.test):
        yield tuple(next(generated(network, [source], judge.device)) for network in networks)


@torch.inference_mode()
def draw_relations(folder: Path, conf: Config, generators: dict[str, nn.Module], judge: Judge, side: int = 256) -> None:
    """SET.png for rows, columns and patches of the first test image: psi_D of teacher, student and their difference.

    Black is 0, white the teacher's largest; the difference is drawn four times as bright.
    """
    loss = method.ContentRelationLoss(patch_size=conf.relations.patch_size)
    student, teacher = next(both(generators, judge))
    sets = loss.slices(student[:1].float()), loss.slices(teacher[:1].float())
    for name in sets[0]:
        own, target = (method.normalised(method.distances(method.squared_distances(s[name])))[0] for s in sets)
        maps = torch.stack([target, own, 4 * (own - target).abs()]) / target.max()
        maps = nn.functional.interpolate(maps.clamp(0, 1)[None], (side, side))[0]
        write_image(folder / f"{name}.png", (torch.cat(list(maps), 1) * 255).byte().cpu().numpy())


if __name__ == "__main__":
    entry(main)
