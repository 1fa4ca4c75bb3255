"""The paper's protocol on a checkpoint: top-1 and top-5 on the whole test set, cost, and what the run has visited.

    python eval.py --checkpoint runs/cfg/student/last.pt [--data.root DIR]
    python eval.py --checkpoint ckpt_epoch_240.pth --config configs/NAME.yaml --role teacher      (an official one)

The number to report is that of the last epoch (last.pt); best.pt is chosen on the test set and for information only.
"""

import argparse
from pathlib import Path

from common import checkpoint, config, cost, distributed
from common.environment import environment
from common.labelled import place
from common.report import print_metrics, write_metrics
from common.run import entry

import torch

from kcd import data, models
from kcd.config import Config
from kcd.train import evaluate


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or an official checkpoint")
    parser.add_argument("--config", help="the experiment of an official checkpoint, which does not carry it")
    parser.add_argument("--role", choices=("student", "teacher"), default="student", help="network of --config")
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    given, overrides = parser.parse_known_args(argv)
    path = Path(given.checkpoint)

    conf, role, own = experiment(given, path)
    conf = config.override(conf, overrides)
    _, test = data.load(conf)
    device = distributed.start(conf.run.device)
    network = getattr(conf, role)
    model = models.build(network.name, len(test.classes), network.width)
    models.load_weights(model, path)
    model = model.to(device, memory_format=torch.channels_last)

    place(test, conf.data, device)
    metrics = evaluate(model, test, conf, device)
    images, _ = test.fetch(torch.arange(1, device=test.labels.device), 0)
    metrics |= {"params": cost.parameters(model).total, "macs": cost.macs(model, images.to(device))}
    metrics |= knowledge(own, conf)
    metrics["_meta"] = {"checkpoint": path.name, "network": network.name, "role": role, "data": conf.data.name}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics)
    return metrics


def experiment(given: argparse.Namespace, path: Path) -> tuple[Config, str, dict]:
    """The config, the role of the network, and the content of a checkpoint of ours ({} for an official one)."""
    if given.config:
        return config.load(Config, given.config), given.role, {}
    own = checkpoint.load_own(path, "kcd", hint="an official checkpoint needs --config and --role as well")
    return config.from_dict(Config, own["config"]), "teacher" if own["stage"] == "teacher" else "student", own


def knowledge(own: dict, conf: Config) -> dict:
    """What the run has cost: the share of sample visits, seconds, and points that came back."""
    if not own or own["stage"] != "student":
        return {}
    state = own["state"]
    epochs = own["epoch"] - (0 if state["done"] else 1)
    return {
        "epochs": epochs,
        "sample_visits": state["progress"]["visits"] / max(1, epochs * own["data"]["images"]),
        "kept": len(state["condenser"]["kept"]),
        "reentries": int(state["condenser"]["reentries"]),
        "train_seconds": own["seconds"],
        "condensation_share": state["progress"]["overhead"] / own["seconds"],
    }


if __name__ == "__main__":
    entry(main)
