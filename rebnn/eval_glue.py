"""GLUE's measures of checkpoints on the development sets, with size, OPs and weight oscillation.

    python eval_glue.py --checkpoint runs/embedded_glue/student/last.pt [--data.root DIR]
    python eval_glue.py --checkpoint runs/A/student/best.pt runs/B/student/best.pt …      also the average over tasks
    python eval_glue.py --checkpoint FOLDER --config configs/NAME.yaml --role student     (a released BiBERT or BiT)

The releases report the best score of any evaluation on the development set (best.pt); last.pt is that of the last step.
"""

import argparse
from pathlib import Path

from common import config, distributed
from common.environment import environment
from common.errors import CheckpointError, InputError
from common.report import print_metrics, write_metrics
from common.run import entry

from rebnn.eval import experiment, oscillation
from rebnn.glue import weights
from rebnn.glue.bert import Bert, binary_bert, real_bert
from rebnn.glue.config import Config
from rebnn.glue.cost import count
from rebnn.glue.data import Data, load
from rebnn.glue.pair import form, sizes_of
from rebnn.train_glue import STAGES, evaluate


def main(argv: list[str]) -> dict:
    """Evaluate checkpoints; prints tables, writes metrics.json beside each, returns the (last) content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, nargs="+", help="last.pt or best.pt, or a released folder")
    parser.add_argument("--config", help="the experiment of released weights, which do not carry it")
    parser.add_argument("--role", choices=STAGES, default="student", help="what released weights are of")
    parser.add_argument("--out", help="metrics file of a single checkpoint (default: metrics.json beside it)")
    given, overrides = parser.parse_known_args(argv)
    if given.out and len(given.checkpoint) > 1:
        raise InputError("--out names one file for several checkpoints; leave it out")
    scores, metrics = {}, {}
    for path in map(Path, given.checkpoint):
        conf, role, own = experiment(given, path, Config, "glue")
        conf = config.override(conf, overrides)
        metrics = measure(conf, role, own, path)
        scores |= {f"{conf.data.name} {name}": metrics[name] for name in metrics if name.startswith("score")}
        beside = (path if path.is_dir() else path.parent) / "metrics.json"
        write_metrics(Path(given.out) if given.out else beside, metrics)
        print_metrics(metrics)
    if len(given.checkpoint) > 1:
        print(f"average of {', '.join(scores)}: {sum(scores.values()) / len(scores):.2f}")
    return metrics


def measure(conf: Config, role: str, own: dict, path: Path) -> dict:
    """Everything that metrics.json says of one checkpoint."""
    data = load(conf, own["state"]["vocabulary"] if own else None)
    device = distributed.start(conf.run.device)
    network = load_network(conf, role, data, path).to(device)
    metrics = evaluate(network, data, conf, device) | count(network, data.counts["longest"])._asdict()
    if own:
        metrics |= {"best_score": own["state"]["progress"]["best"], "train_seconds": own["seconds"]}
        metrics |= oscillation(own["state"]["progress"]["history"])
    metrics["_meta"] = {"checkpoint": path.name, "recipe": conf.student.recipe, "role": role, "data": conf.data.name}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    return metrics


def load_network(conf: Config, role: str, data: Data, path: Path) -> Bert:
    """The trained network of a stage. Errors: CheckpointError."""
    if role == "student":
        network = binary_bert(sizes_of(conf, data), form(conf))
        lacking = weights.load_student(network, path)
        if conf.binary.binarizer == "recipe" and lacking:
            raise CheckpointError(f"{path}: lacks {', '.join(lacking[:3])}; give weights of a {conf.student.recipe}")
        return network
    sizes = sizes_of(conf, data)
    network = real_bert(sizes) if role == "teacher" else binary_bert(sizes, form(conf, ternary=True))
    weights.load_real(network, path)
    return network


if __name__ == "__main__":
    entry(main)
