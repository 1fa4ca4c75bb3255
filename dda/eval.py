"""The paper's protocol on a checkpoint: scores of the stitched images, multiply-adds and seconds of an image.

    python eval.py --checkpoint runs/cfg/first/best.pt [--data.root DIR] [--routing.kind inverse]
    python eval.py --checkpoint runs/cfg/first/best.pt --compare          every route with the same weights
    python eval.py --checkpoint ckpt_best.pth --config configs/NAME.yaml  (released weights)

PSNR, SSIM and CIEDE2000 are those of 8-bit images, psnr_float that of the network's output; section 6 says how.
gain_db is what the network adds to the moiré image after its best global gain and offset (psnr_fitted).
"""

import argparse
from pathlib import Path

from common import checkpoint, config, distributed
from common.environment import environment
from common.report import print_metrics, write_metrics
from common.run import entry

from dda import data, models
from dda.comparison import compare, print_comparison
from dda.config import Config
from dda.evaluation import calibration, evaluate
from dda.train import build, check


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or released weights")
    parser.add_argument("--config", help="the experiment of released weights, which do not carry it")
    parser.add_argument("--compare", action="store_true", help="also every other route, with the same weights")
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    given, overrides = parser.parse_known_args(argv)
    path = Path(given.checkpoint)

    conf, own = experiment(given, path)
    conf = config.override(conf, overrides)
    check(conf)
    device = distributed.start(conf.run.device)
    network = build(conf)
    models.load_weights(network, path)
    network = network.to(device).eval()
    train, test = data.load(conf.data, conf.seed)
    thresholds = own.get("state", {}).get("thresholds") or calibration(conf, train, device)

    metrics = evaluate(network, test, conf, thresholds)
    sizes = [padded(test.size(number), network.multiple) for number in range(len(test))]
    whole = sum(models.macs(network, 1.0, size) for size in sizes) / len(sizes) / 1e9
    metrics |= {"gmac_full": whole, "reduction_percent": 100 * (1 - metrics["gmac_image"] / whole)}
    metrics |= {"gain_db": metrics["psnr_uint8"] - metrics["psnr_fitted"], "params": models.parameters(network).total}
    if given.compare:
        found = compare(network, test, conf)
        print_comparison(found)
        metrics |= {f"{name}/{key}": value for name, row in found.items() for key, value in row.items()}
    metrics["_meta"] = {"checkpoint": path.name, "network": conf.network.name, "head": conf.network.head}
    metrics["_meta"] |= {"data": conf.data.name, "routing": conf.routing.kind, "rounding": conf.rounding}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics, hidden=[name for name in metrics if "/" in name])
    return metrics


def padded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The size that a whole image is padded to before an unrouted network takes it."""
    return tuple(-(-length // multiple) * multiple for length in size)


def experiment(given: argparse.Namespace, path: Path) -> tuple[Config, dict]:
    """The config, and the content of a checkpoint of ours ({} for released weights)."""
    if given.config:
        return config.load(Config, given.config), {}
    own = checkpoint.load_own(path, "dda", hint="released weights need --config as well")
    return config.from_dict(Config, own["config"]), own


if __name__ == "__main__":
    entry(main)
