"""The paper's protocol on a checkpoint: region errors of removal, or synthesis against known shadows.

    python eval.py --checkpoint runs/cfg/removal/last.pt [--data.root DIR] [--data.detected DIR]
    python eval.py --checkpoint runs/cfg/synthesis/last.pt
    python eval.py --config configs/istd.yaml --coarse G1.pth --refine G2.pth --data.root DIR      (the release's)

The number to report is that of the last epoch (last.pt); a best.pt has been chosen on the test set. Of a run on
synthetic crops, removal's metrics include those of the pseudo shadows that it learnt from.
"""

import argparse
from pathlib import Path

from common import checkpoint, config, cost, distributed
from common.environment import environment
from common.errors import InputError
from common.report import print_metrics, write_metrics
from common.run import entry

from hqss import data, evaluation, models
from hqss.build import build_removal, pseudo_shadows, stage1_files
from hqss.config import Config


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="last.pt or best.pt of a run, either stage")
    parser.add_argument("--config", help="the experiment of released weights, which do not carry it")
    parser.add_argument("--coarse", help="released weights of G1")
    parser.add_argument("--refine", help="released weights of G2")
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    parser.add_argument(
        "--size", choices=("protocol", "full"), default="protocol", help="256x256 (SRD 640x840) or full"
    )
    parser.add_argument("--white", choices=("d50", "d65"), default="d50", help="of Lab in the errors: MATLAB's, or D65")
    given, overrides = parser.parse_known_args(argv)
    conf, stage, path, parts, own = experiment(given)
    conf = config.override(conf, overrides)
    data.check(conf.data)
    _, source = data.sources(conf.data, conf.seed)
    frame = data.SRD_FRAME if conf.data.name == "srd" else None
    test = data.Photographs(source, frame, data.detected_masks(conf.data, source))

    device = distributed.start(conf.run.device)
    metrics = {}
    if stage == "removal":
        networks = build_removal(conf)
        for name, network in networks.items():
            models.load_weights(network, *parts(name))
            network.to(device)
        size = None if given.size == "full" else data.SRD_FRAME if conf.data.name == "srd" else (256, 256)
        metrics = evaluation.removal(*networks.values(), test, conf.removal.clear, size, given.white)
        metrics["params"] = sum(cost.parameters(network).total for network in networks.values())
    if stage == "synthesis" or (own and evaluation.is_known(test)):
        files = [path] if stage == "synthesis" else stage1_files(conf, path.parent)
        metrics |= evaluation.synthesis(pseudo_shadows(conf, files, device), test, conf.data, device)
    metrics["_meta"] = {
        "checkpoint": path.name,
        "stage": stage,
        "data": conf.data.name,
        "size": given.size,
        "white": given.white,
    }
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics)
    return metrics


def experiment(given: argparse.Namespace) -> tuple:
    """Config, stage, path, name of a network -> (file, part of it), and the content of a checkpoint of ours or {}."""
    if given.checkpoint:
        if given.coarse or given.refine or given.config:
            raise InputError("--checkpoint goes without --config, --coarse and --refine")
        path = Path(given.checkpoint)
        own = checkpoint.load_own(path, "hqss")
        return config.from_dict(Config, own["config"]), own["stage"], path, lambda name: (path, name), own
    if not (given.config and given.coarse and given.refine):
        raise InputError("give --checkpoint, or --config, --coarse and --refine for released weights")
    files = {"coarse": (given.coarse,), "refine": (given.refine,)}
    return config.load(Config, given.config), "removal", Path(given.coarse), files.__getitem__, {}


if __name__ == "__main__":
    entry(main)
