"""The paper's protocol on a checkpoint: distance to real images, cost in both conventions, nearness to the teacher.

    python eval.py --checkpoint runs/cfg/distil/last.pt [--data.root DIR] [--gallery DIR] [--latency 1 2]
    python eval.py --checkpoint best_net_G.pth --config configs/horse2zebra.yaml           (a released student)
    python eval.py --config configs/horse2zebra.yaml --statistics real_B.npz               (of your own real images)
    python eval.py --checkpoint … --drn drn-d-105_ms_cityscapes.pth --table table.txt      (mIoU on Cityscapes)

`fid` is what Inception's features give, `fd_<network>` any other network's. The number to report is that of last.pt;
best.pt is chosen on the test set. Every number says of how many images it is (`images`).
"""

import argparse
import json
from pathlib import Path

from common import checkpoint, config, distributed
from common.environment import environment
from common.errors import CheckpointError, InputError
from common.gan import frechet_distance, statistics
from common.gan.apply import ROLES, costs, gallery, load_generators
from common.gan.evaluation import features, generated, save_statistics
from common.gan.judge import Judge, pairs
from common.gan.teachers import TEACHERS
from common.gan.translate import latency
from common.run import entry
from common.weights import fit_weights, read_weights

import torch
from torch import nn

from dcd import cityscapes, data, models
from dcd.config import Config
from dcd.drn import load_drn


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
    parser.add_argument("--drn", help="weights of DRN-D-105 for the mIoU (data.direction BtoA of Cityscapes)")
    parser.add_argument("--table", help="lines `index trainIds-path photo-path` of the label maps")
    given, overrides = parser.parse_known_args(argv)
    if not given.checkpoint and not (given.config and given.statistics):
        raise InputError("give --checkpoint, or --config and --statistics to describe real images")
    conf, own = experiment(given.config, given.checkpoint)
    conf = config.override(conf, overrides)
    role = given.role or ("teacher" if own.get("stage") == "teacher" else "student")
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
        key = TEACHERS[conf.model].main[1]
        discriminator = models.build_teachers(conf)[key]
        fit_weights(discriminator, read_weights(given.checkpoint, key), given.checkpoint)
        metrics |= closeness(conf, generators, discriminator.to(device).eval(), judge)
        metrics |= {"train_seconds": own["seconds"], **own["state"]["progress"]}
        metrics |= {f"best_{name}": value for name, value in metrics.pop("best").items()}
    times = {"threads": given.latency, "compiled": given.compile}
    for row in latency(generator, conf.data.crop_size, **times) if given.latency else []:
        place = f"{row['variant']}_{row['threads']}_threads".replace(" ", "_")
        metrics |= {f"latency_{place}": row["median"], f"latency_{place}_iqr": row["iqr"]}
    if given.drn:
        metrics["miou"] = segmentation(conf, generator, test, given.drn, given.table, device)
    if given.gallery:
        gallery(Path(given.gallery), dict(sorted(generators.items(), reverse=True)), test, device)
    path = Path(given.checkpoint)
    metrics["_meta"] = {"checkpoint": path.name, "role": role, "data": conf.data.name}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    out.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    for name, value in metrics.items():
        if name != "_meta":
            print(f"{name:<36} {value:>18,.5f}" if isinstance(value, float) else f"{name:<36} {value:>18,}")
    return metrics


def experiment(config_path: str | None, path: str | None) -> tuple[Config, dict]:
    """The config, and the content of a checkpoint of ours ({} for a released one)."""
    if config_path:
        return config.load(Config, config_path), {}
    try:
        own = checkpoint.load_own(path, "dcd")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a released generator needs --config as well") from None
    return config.from_dict(Config, own["config"]), own


def load_generator(path: str, config_path: str | None, role: str) -> nn.Module:
    """One generator of a checkpoint of ours or of a released file. Errors: CheckpointError."""
    conf, own = experiment(config_path, path)
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
            judged = torch.cat([source, image], 1) if conf.model == "pix2pix" else image
            seen[name] = image, discriminator.hidden(judged)
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


def segmentation(conf: Config, generator: nn.Module, test, drn: str, table: str | None, device) -> float:
    """mIoU of the images that the generator makes of Cityscapes' colour maps. Errors: InputError."""
    if conf.data.direction != "BtoA" or not table:
        raise InputError("the mIoU is of photographs made from colour maps: give --data.direction BtoA and --table")
    network, rows = load_drn(drn).to(device), cityscapes.read_table(table)
    if len(rows) != len(test):
        raise InputError(
            f"{table}: has {len(rows)} lines, the test set {len(test)} images; one line an image is needed"
        )
    sources = (test.fetch(torch.tensor([i]), 0)[0] for i in range(len(test)))
    images = generated(generator, sources, device)
    return cityscapes.miou(network, ((name, image) for (name, _, _), image in zip(rows, images)), rows)


if __name__ == "__main__":
    entry(main)
