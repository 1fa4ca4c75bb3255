"""The paper's protocol on a checkpoint: top-1 and top-5 of the class head, cost, and on the canvas object conservation.

    python eval.py --checkpoint runs/cfg/train/last.pt [--data.root DIR]
    python eval.py --checkpoint smmix_deit_tiny.pth --config configs/imagenet_deit_tiny.yaml      (an official one)

The number to report is that of the last epoch (last.pt); best.pt is chosen on the test set and for information only.
"""

import argparse
from pathlib import Path

from common import checkpoint, cost, distributed
from common.environment import environment
from common.errors import InputError
from common.labelled import place
from common.report import print_metrics, write_metrics
from common.run import entry

import torch

from smmix import data, restore
from smmix.adapters import adapt
from smmix.config import Config
from smmix.conservation import conservation
from smmix.method import SMMix
from smmix.train import evaluate


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    restore.add_options(parser)
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    given, overrides = parser.parse_known_args(argv)
    path = Path(given.checkpoint)

    conf, network = restore.restore(given, overrides)
    own = {} if given.config else checkpoint.load_own(path, "smmix")
    device = distributed.start(conf.run.device)
    network.to(device)
    test = data.load_test(conf)
    if len(test.classes) != network.num_classes:
        raise InputError(f"{path}: has {network.num_classes} classes, data {conf.data.name} has {len(test.classes)}")
    place(test, conf.data, device)
    metrics = evaluate(network, test, conf, device)
    images, _ = test.fetch(torch.arange(1, device=test.labels.device), 0)
    heads = cost.parameters(network).total
    metrics |= {
        "params": heads - cost.parameters(network.token_head).total,
        "params_in_training": heads,
        "macs": cost.macs(network, images.to(device)),
    }
    metrics |= training(own)
    if conf.data.name == "canvas":
        metrics |= mechanism(conf, network, test, device)
    metrics["_meta"] = {"checkpoint": path.name, "network": conf.model.name, "data": conf.data.name}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics)
    return metrics


def training(own: dict) -> dict:
    """What the run has cost: seconds, un-mixed passes for each step, and their share in time and arithmetic."""
    if not own:
        return {}
    progress = own["state"]["progress"]
    looks = progress["looks"] / max(1, progress["steps"])
    return {
        "steps": own["step"],
        "train_seconds": own["seconds"],
        "looks_per_step": looks,
        "extra_passes": looks / 3,  # a step without them is a forward and a backward of twice its cost
        "extra_time": progress["looking"] / (own["seconds"] - progress["looking"]),
    }


def mechanism(conf: Config, network, test, device: torch.device) -> dict:
    """Object conservation by the regions of the config, by highest and lowest score, and by the class token's row."""
    m, classes = conf.mix, len(test.classes)
    drawn = SMMix(classes, low=m.low, high=m.high, cut=m.cut, paste=m.paste)
    seen = SMMix(classes, low=m.low, high=m.high)
    adapter = adapt(network, score=conf.model.score, layers=conf.model.score_layers)
    report = conservation(adapter, test, drawn, device)
    report["conservation_by_attention"] = conservation(adapter, test, seen, device)["conservation"]
    if getattr(network, "num_prefix_tokens", 0):
        adapter = adapt(network, score="class_row")
        report["conservation_by_class_row"] = conservation(adapter, test, seen, device)["conservation"]
    return report


if __name__ == "__main__":
    entry(main)
