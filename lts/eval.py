"""The paper's protocol on a checkpoint: top-1 and top-5 on the whole test set, what was frozen, and the model's size.

    python eval.py --checkpoint runs/cfg/quantised/best.pt [--data.root DIR]
    python eval.py --checkpoint model_best.pth.tar --config configs/NAME.yaml            (an official one)

The paper's code reports the best epoch (best.pt), which it chooses on the test set; last.pt is the honest number.
"""

import argparse
from pathlib import Path

from common import checkpoint, config, cost, distributed
from common.environment import environment
from common.errors import CheckpointError, InputError
from common.labelled import place
from common.report import print_metrics, write_metrics
from common.run import entry

import torch
from torch import nn

from lts import accounting, data, integer
from lts.config import Config
from lts.experiment import build
from lts.method import quantiser_parameters
from lts.train import evaluate
from lts.weights import load_weights

STABILITY = (10, 25, 50, 75)  # percent of the epochs at which the levels are compared with the final ones


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or an official checkpoint")
    parser.add_argument("--config", help="the experiment of an official checkpoint, which does not carry it")
    parser.add_argument("--stage", choices=("float", "quantised"), default="quantised", help="network of --config")
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    given, overrides = parser.parse_known_args(argv)
    path = Path(given.checkpoint)

    conf, stage, own = experiment(given, path)
    trained = config.to_dict(conf)
    conf = config.override(conf, overrides)
    changed = config.differences(trained, config.to_dict(conf))
    if changed := [key for key in changed if own and key.startswith(("model.", "quant."))]:
        raise InputError(f"{path}: is of another network ({'; '.join(changed)}); evaluate it as it was trained")
    _, test = data.load(conf)
    device = distributed.start(conf.run.device)
    network = build(conf, len(test.classes), stage == "quantised")
    loaded = load_weights(network, path)
    if stage == "quantised" and [*quantiser_parameters(network)] and not loaded.quantised:
        raise CheckpointError(f"{path}: holds no trained quantisers; give --stage float, or a quantised checkpoint")
    network = network.to(device, memory_format=torch.channels_last)

    place(test, conf.data, device)
    metrics = evaluate(network, test, conf, device)
    images, _ = test.fetch(torch.arange(1, device=test.labels.device), 0)
    macs = accounting.layer_macs(network, images.to(device))
    metrics |= {"params": cost.parameters(network).total, "macs": sum(macs.values())}
    if stage == "quantised":
        metrics |= {"integer_bytes": integer.size(integer.to_integer(network)), "float_bytes": float_bytes(network)}
    metrics |= progress(own)
    metrics["_meta"] = {"checkpoint": path.name, "network": conf.model.name, "stage": stage, "data": conf.data.name}
    metrics["_meta"] |= {"per_layer": own["state"]["account"]["per_layer"]} if "account" in own.get("state", {}) else {}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics)
    return metrics


def experiment(given: argparse.Namespace, path: Path) -> tuple[Config, str, dict]:
    """The config, the stage, and the content of a checkpoint of ours ({} for an official one)."""
    if given.config:
        return config.load(Config, given.config), given.stage, {}
    own = checkpoint.load_own(path, "lts", hint="an official checkpoint needs --config as well")
    return config.from_dict(Config, own["config"]), own["stage"], own


def float_bytes(network: nn.Module) -> int:
    """What the network's float32 weights, biases and BatchNorm take, without its quantisers."""
    learned = sum(p.numel() for p in quantiser_parameters(network))
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    return 4 * (cost.parameters(network).total - learned + statistics)


def progress(own: dict) -> dict:
    """What a run of ours has frozen and saved, and how early its levels were the final ones."""
    if "account" not in own.get("state", {}):
        return {"train_seconds": own["seconds"]} if own else {}
    account = own["state"]["account"]
    history = accounting.LevelHistory()
    history.load_state_dict(account["history"])
    curve = history.curve()
    stability = {f"level_stability_{p}": accounting.stability_at(curve, p / 100) for p in STABILITY} if curve else {}
    return account["summary"] | stability | {"epochs": len(curve), "train_seconds": own["seconds"]}


if __name__ == "__main__":
    entry(main)
