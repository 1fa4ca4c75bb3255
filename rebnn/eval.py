"""The paper's protocol on a checkpoint: top-1 and top-5 on the whole test set, OPs, storage, and weight oscillation.

    python eval.py --checkpoint runs/cfg/step2/last.pt [--data.root DIR]
    python eval.py --checkpoint model_best.pth.tar --config configs/NAME.yaml --role step2       (an official one)

The number to report is that of the last epoch (last.pt); best_top1 is chosen on the test set, as the release does it,
and for information only.
"""

import argparse
from pathlib import Path

from common import checkpoint, config, distributed
from common.environment import environment
from common.labelled import place
from common.report import print_metrics, write_metrics
from common.run import entry

import torch

from rebnn import data, families, models, weights
from rebnn.config import Config
from rebnn.pair import binarizer, student
from rebnn.train import STAGES, evaluate

LATE = 0.4
"""share of the epochs, from the end, whose flips are given beside those of all (section 11: the last 4 of 10)"""


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or an official checkpoint")
    parser.add_argument("--config", help="the experiment of an official checkpoint, which does not carry it")
    parser.add_argument("--role", choices=STAGES, default="step2", help="what a checkpoint with --config is of")
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    given, overrides = parser.parse_known_args(argv)
    path = Path(given.checkpoint)

    conf, role, own = experiment(given, path)
    conf = config.override(conf, overrides)
    _, test = data.load(conf)
    device = distributed.start(conf.run.device)
    network = load(conf, role, len(test.classes), path).to(device, memory_format=torch.channels_last)

    place(test, conf.data, device)
    metrics = evaluate(network, test, conf, device)
    metrics |= cost(network, test)
    if own:
        metrics |= {"best_top1": own["state"]["progress"]["best"], "train_seconds": own["seconds"]}
        metrics |= oscillation(own["state"]["progress"]["history"])
    metrics["_meta"] = {"checkpoint": path.name, "network": network.architecture, "role": role, "data": conf.data.name}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics)
    return metrics


def experiment(given: argparse.Namespace, path: Path, kind: type = Config, family: str = "") -> tuple:
    """The config (of a kind), the stage, and the content of a checkpoint of ours ({} for an official one).

    Errors: InputError for a checkpoint that is damaged, or of another family of tasks.
    """
    if given.config:
        families.require(families.family_of_file(given.config), family, "eval", given.config)
        return config.load(kind, given.config), given.role, {}
    own = checkpoint.load_own(path, "rebnn", hint="an official checkpoint needs --config and --role as well")
    families.require(families.family_of(own["config"]), family, "eval", path)
    return config.from_dict(kind, own["config"]), own["stage"], own


def load(conf: Config, role: str, classes: int, path: Path) -> torch.nn.Module:
    """The trained network of a stage. Errors: CheckpointError."""
    if role == "teacher":
        network = models.teacher(conf.teacher.name, classes)
        weights.load_teacher(network, path)
        return network
    network = student(conf, classes, "real" if role == "step1" else binarizer(conf.binary))
    weights.load_student(network, path, conf.binary.alpha_init)
    return network


def cost(network: torch.nn.Module, test) -> dict:
    """Parameters, multiply-adds, OPs = binary / 64 + real, and bytes with 1 bit a binary weight (section 3.1)."""
    images, _ = test.fetch(torch.arange(1, device=test.labels.device), 0)
    counted = models.count(network, tuple(images.shape[2:]))
    return {
        "params": counted.parameters,
        "binary_params": counted.binary_parameters,
        "binary_macs": counted.binary_macs,
        "real_macs": counted.real_macs,
        "ops": counted.ops,
        "storage_bytes": counted.storage,
    }


def oscillation(history: list[dict]) -> dict:
    """The last epoch's mean training loss and, in step 2, flips per weight and iteration over all and late epochs."""
    if not history:
        return {}
    found = {"final_train_loss": history[-1]["loss"]}
    if "flip" in history[-1]:
        late = history[-max(1, round(LATE * len(history))) :]
        for name in ("flip", "sequential", "epoch_flip"):
            found[f"{name}_ratio"] = sum(epoch[name] for epoch in history) / len(history)
            found[f"late_{name}_ratio"] = sum(epoch[name] for epoch in late) / len(late)
        found["exact_zeros"] = history[-1]["exact_zeros"]
    return found


if __name__ == "__main__":
    entry(main)
