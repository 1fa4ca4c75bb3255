"""VOC's and COCO's protocol on a detector's checkpoint, its size and operations, and weight oscillation.

    python eval_detection.py --checkpoint runs/embedded_detection/step2/last.pt [--data.root DIR]
    python eval_detection.py --checkpoint FILE --config configs/NAME.yaml --role step2       (an official one)

The number to report is that of the last epoch (last.pt); best_map is chosen on the test set and for information only.
"""

import argparse
from pathlib import Path

from common import config, distributed
from common.environment import environment
from common.report import print_metrics, write_metrics
from common.run import entry

from torch import nn

from rebnn import models
from rebnn.detection import data
from rebnn.detection.augment import SSD_SIZE, fitted
from rebnn.detection.config import Config
from rebnn.detection.evaluation import coco_metrics, detect
from rebnn.detection.fasterrcnn import DIVISOR
from rebnn.detection.pair import detector
from rebnn.detection.pictures import draw_sheet
from rebnn.detection.voc import mean_average_precision
from rebnn.detection.weights import load_detector
from rebnn.eval import experiment, oscillation
from rebnn.pair import binarizer
from rebnn.train_detection import STAGES


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints a table, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or an official checkpoint")
    parser.add_argument("--config", help="the experiment of an official checkpoint, which does not carry it")
    parser.add_argument("--role", choices=STAGES, default="step2", help="what a checkpoint with --config is of")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="images to evaluate on")
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    given, overrides = parser.parse_known_args(argv)
    path = Path(given.checkpoint)

    conf, role, own = experiment(given, path, Config, "detection")
    conf = config.override(conf, overrides)
    train, test = data.load(conf)
    scenes = test if given.split == "test" else data.Scenes(train.scenes, train.classes, conf, False, train.counts)
    device = distributed.start(conf.run.device)
    network = detector(conf, "real" if role == "step1" else binarizer(conf.binary), len(test.classes))
    load_detector(network, path, conf.binary.alpha_init)
    network = network.to(device)

    found = detect(network, scenes, device, conf.run.precision)
    voc = mean_average_precision(scenes.scenes, found, scenes.classes)
    metrics = {name: voc[name] for name in ("map_voc07", "map_area")}
    metrics |= coco_metrics(scenes.scenes, found, scenes.classes)
    metrics |= cost(network, conf)
    if own:
        metrics |= {"best_map": own["state"]["progress"]["best"], "train_seconds": own["seconds"]}
        metrics |= oscillation(own["state"]["progress"]["history"])
    metrics["_meta"] = {"checkpoint": path.name, "network": network.architecture, "role": role, "data": conf.data.name}
    metrics["_meta"] |= {"split": given.split, "classes": voc["classes"], "counts": dict(scenes.counts)}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    if not distributed.is_main():
        return metrics
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    draw_sheet(out.with_name(f"{out.stem}.png"), scenes, found)
    print_metrics(metrics)
    return metrics


def cost(network: nn.Module, conf: Config) -> dict:
    """Parameters, and multiply-adds of what every image passes through.

    For Faster-RCNN that is backbone, pyramid and proposal head at the size of evaluation of a picture of 4:3; the work
    of the regions depends on their number and is left out.
    """
    regions, size = conf.detector.name != "ssd", (SSD_SIZE, SSD_SIZE)
    if regions:
        sides = fitted((300, 400), conf.data.test_long, conf.data.test_short)
        size = tuple(-(-side // DIVISOR) * DIVISOR for side in sides)
    counted = models.count(Dense(network, regions), size)
    return {
        "params": sum(p.numel() for p in network.parameters()),
        "binary_params": sum(m.weight.numel() for m in models.binary_convolutions(network).values()),
        "dense_binary_macs": counted.binary_macs,
        "dense_real_macs": counted.real_macs,
        "dense_ops": counted.ops,
    }


class Dense(nn.Module):
    """The part of a detector that sees whole images."""

    def __init__(self, network: nn.Module, regions: bool):
        super().__init__()
        self.network, self.regions = network, regions

    def forward(self, x):
        if not self.regions:
            return self.network.dense(x)
        return self.network.rpn.head([*self.network.backbone(x).values()])


if __name__ == "__main__":
    entry(main)
