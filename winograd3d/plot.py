"""Accuracy against trained numbers, from the report that `python -m ci.reproduce winograd3d` has written.

python plot.py ../reproduction/report.json [--out accuracy_trainables.png]
"""

import argparse
import json
import statistics
from pathlib import Path

from common.errors import InputError
from common.run import entry


def main(argv: list[str]) -> Path:
    """Draw mean and standard deviation over seeds of every arm; returns the picture's path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", help="report.json of a reproduction")
    parser.add_argument("--out", help="picture (default: accuracy_trainables.png beside the report)")
    given = parser.parse_args(argv)
    path = Path(given.report)
    arms = read_arms(path)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("the plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, (trainables, accuracies) in arms.items():
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        axes.errorbar(trainables, statistics.mean(accuracies), spread, fmt="o", capsize=3)
        axes.annotate(name, (trainables, statistics.mean(accuracies)), xytext=(5, 4), textcoords="offset points")
    axes.set(xscale="log", xlabel="trained numbers of the converted layers", ylabel="clip top-1 [%]")
    out = Path(given.out) if given.out else path.with_name("accuracy_trainables.png")
    figure.savefig(out, dpi=150)
    print(out)
    return out


def read_arms(path: Path) -> dict[str, tuple[int, list[float]]]:
    """Arm -> (trained numbers, accuracy of each seed that ran). Errors: InputError for another file."""
    try:
        arms = json.loads(path.read_text(encoding="utf-8"))["projects"]["winograd3d"]["arms"]
        found = {}
        for name, arm in arms.items():
            runs = [metrics for metrics in arm["metrics"] if metrics]
            if runs:
                accuracies = [metrics["clip_top1"] for metrics in runs]
                found[name] = (int(runs[0]["winograd_trainables"]), accuracies)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not the report of a reproduction of winograd3d ({error})") from error
    if not found:
        raise InputError(f"{path}: holds no run that ended well")
    return found


if __name__ == "__main__":
    entry(main)
