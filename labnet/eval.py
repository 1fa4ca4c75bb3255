"""The field's protocol on a checkpoint: error (Lab), PSNR and SSIM in the shadow, outside it and over all.

    python eval.py --checkpoint runs/cfg/train/last.pt [--data.root DIR] [--out metrics.json] [--pictures DIR]
    python eval.py --checkpoint weights.safetensors --data.root DIR                     (of export.py)
    python eval.py --checkpoint best_net_G.pth --config configs/istd.yaml --data.root ISTD      (an official one)

Metrics are named NAME_REGION_SIZE_WHITE: error_s_256_d50 is the mean over images of the sum over channels of absolute
Lab differences in the shadow, at 256x256, D50; error_pp pools pixels of all images. `input_` and `relight_` are the
same of the untouched input and of the classical relight. Region PSNR and SSIM are the script's: of pictures that are
black outside the region, over all pixels.
"""

import argparse
import math
from pathlib import Path

from common import checkpoint, config, cost, distributed
from common.environment import environment
from common.images import write_image
from common.report import write_metrics
from common.run import entry
from common.shadow import metrics as region
from common.shadow.relight import relit

import torch

from labnet import data, models, transforms
from labnet.config import Config
from labnet.method import Regions
from labnet.restore import remove_shadow

COLUMNS = ("error_s", "error_ns", "error_all", "psnr_s", "psnr_ns", "psnr_all", "ssim_s", "ssim_ns", "ssim_all")
SIDE = 256  # of the picture that multiply-adds are stated for, without the attention's matrix products


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint on the test set; prints a table, writes metrics.json beside it, returns its content."""
    from labnet.train import build

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or a file of weights")
    parser.add_argument("--config", help="the experiment of a file of weights, which does not carry it")
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    parser.add_argument("--pictures", help="folder for the results as PNG")
    given, overrides = parser.parse_known_args(argv)
    path = Path(given.checkpoint)
    conf, own = experiment(given, path)
    conf = config.override(conf, overrides)
    _, _, test = data.load(conf)
    device = distributed.start(conf.run.device)
    network = build(conf)
    models.load_weights(network, path)
    network = network.to(device, memory_format=torch.channels_last)

    found = evaluate(network, test, conf, device, conf.eval.baselines, given.pictures)
    side = max(SIDE, network.minimum)
    with torch.device("meta"):
        shapes = torch.empty(1, 3, side, side), torch.empty(1, 1, side, side), Regions(*torch.zeros(2, 1, 1).long())
        found |= {"params": cost.parameters(network).total, "macs": cost.macs(build(conf), *shapes)}
    if own:
        found["train_seconds"] = own["seconds"]
    found["_meta"] = {"checkpoint": path.name, "data": conf.data.name, "pictures": len(test), "mac_size": side}
    found["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, found)
    print_table(found, conf)
    return found


def experiment(given: argparse.Namespace, path: Path) -> tuple[Config, dict]:
    """The config and content of a checkpoint of ours; of other weights the given config, or an export's own, and {}."""
    if given.config:
        return config.load(Config, given.config), {}
    if path.suffix == ".safetensors" and path.is_file() and (stored := models.stored_config(path)):
        return config.from_dict(Config, stored), {}
    own = checkpoint.load_own(path, "labnet", hint="a file of weights needs --config as well")
    return config.from_dict(Config, own["config"]), own


def evaluate(network, test, conf: Config, device, baselines: bool = True, pictures: str | None = None) -> dict:
    """Scores of the network on a source, and of the input and the classical relight as baselines."""
    network.eval()
    size = tuple(conf.data.test_size) if conf.data.test_size else None
    methods = {"": None, "input_": lambda s, m: s, "relight_": relit} if baselines else {"": None}
    scores = {(method, protocol): [] for method in methods for protocol in conf.eval.protocols}
    for number in range(len(test)):
        sample = test.read(number)
        free, mask = (transforms.resize(picture, size) for picture in (sample.free, sample.mask))
        result = remove_shadow(network, sample.shadow, sample.mask, conf, device)
        if pictures:
            write_image(Path(pictures) / f"{test.name(number)}.png", result)
        for method, function in methods.items():
            if function:
                result = transforms.resize(function(sample.shadow, sample.mask), size)
            for protocol in conf.eval.protocols:
                resized, white = protocol.split("_")
                resized = None if resized == "full" else (int(resized), int(resized))
                scores[method, protocol].append(region.score(result, free, mask, resized, white))
    return {
        f"{method}{name}_{protocol}": value
        for (method, protocol), values in scores.items()
        for name, value in region.summary(values).items()
        if math.isfinite(value)  # absent: a region that no image has, the PSNR of equal pictures
    }


def print_table(found: dict, conf: Config) -> None:
    """One line for each method and protocol."""
    print(f"{'':<22}" + "".join(f"{column:>10}" for column in COLUMNS))
    for protocol in conf.eval.protocols:
        for method in ("", "input_", "relight_") if conf.eval.baselines else ("",):
            values = [found.get(f"{method}{column}_{protocol}") for column in COLUMNS]
            cells = "".join(f"{'-' if value is None else format(value, '.3f'):>10}" for value in values)
            print(f"{(method.rstrip('_') or 'LAB-Net') + ' ' + protocol:<22}{cells}")


if __name__ == "__main__":
    entry(main)
