"""The paper's two figures from the log of a run: weight oscillation over time, and histograms of latent weights.

    python figures.py runs/cfg                            oscillation.png, latent_weights.png in runs/cfg/step2/samples
    python figures.py runs/paper runs/none --out FOLDER   the oscillation of several runs in one picture

Oscillation is the share of signs that change from one iteration to the next, averaged over an epoch, in the first, the
middle and the last binary layer (the 1st, 8th and 16th of ResNet-18, as in the paper). matplotlib is needed.
"""

import argparse
import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from common.errors import InputError
from common.run import entry

LABELS = {
    "flip_ratio": "from one iteration to the next",
    "sequential_ratio": "and back at once",
    "epoch_flip_ratio": "from one epoch's end to the next",
}
"""what is drawn of a single run, by its name in the log"""
ROWS = 9
"""epochs shown in the picture of latent weights: the paper has 0, 32, … 256"""


def main(argv: list[str]) -> list[Path]:
    """Draw the figures of one run, or the oscillation of several; returns the files written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or their folders step2")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: samples of the first run)")
    given = parser.parse_args(argv)
    folders = [stage_folder(run) for run in given.runs]
    logs = {run.name: read_log(folder) for run, folder in zip(given.runs, folders)}
    if len(logs) < len(folders):
        raise InputError(f"{', '.join(map(str, given.runs))}: runs are told apart by their names; give each its own")
    out = given.out or folders[0] / "samples"
    out.mkdir(parents=True, exist_ok=True)
    if len(logs) > 1:
        written = {out / "oscillation.png": compare_oscillation(logs, out / "oscillation.png")}
    else:
        (lines,) = logs.values()
        draw = {"oscillation.png": draw_oscillation, "latent_weights.png": draw_latent}
        written = {out / name: function(lines, out / name) for name, function in draw.items()}
    if not all(written.values()):
        raise InputError("pictures need matplotlib: pip install matplotlib")
    for path in written:
        print(path)
    return [*written]


def stage_folder(run: Path) -> Path:
    """The folder of step 2 of a run (BERT: of its student). InputError if it has no log."""
    folder = next((f for f in (run / "step2", run / "student", run) if (f / "log.jsonl").is_file()), None)
    if folder is None:
        raise InputError(f"{run}: holds no step2/log.jsonl; give the folder of a run that has reached step 2")
    return folder


def read_log(folder: Path) -> list[dict]:
    """The lines of a stage's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def draw_oscillation(lines: Iterable[dict], path: str | PathLike) -> bool:
    """A run's flip ratios of three layers over the epochs; False, and nothing, where matplotlib is absent.

    lines: of log.jsonl; those of split `oscillation` count. InputError if there is none.
    """
    lines = of_split(lines, "oscillation")
    curves = {label: [line[key] for line in lines] for key, label in LABELS.items()}
    return _draw_layers(lines[-1]["layers"], {name: (lines, values) for name, values in curves.items()}, path)


def compare_oscillation(logs: dict[str, Iterable[dict]], path: str | PathLike) -> bool:
    """The flip ratio of three layers in several runs, by name; they must have the same layers. As draw_oscillation."""
    runs = {name: of_split(lines, "oscillation") for name, lines in logs.items()}
    layers = {tuple(lines[-1]["layers"]) for lines in runs.values()}
    if len(layers) > 1:
        raise InputError(f"runs {', '.join(runs)} have different networks; give runs of one")
    curves = {name: (lines, [line["flip_ratio"] for line in lines]) for name, lines in runs.items()}
    return _draw_layers([*layers.pop()], curves, path)


def draw_latent(lines: Iterable[dict], path: str | PathLike) -> bool:
    """Histograms of the first binary layer's latent weights, an epoch below the other; as draw_oscillation.

    Left its first output channel, as in the paper, right the whole layer. Lines of split `latent` count.
    """
    lines = of_split(lines, "latent")
    figure = _figure((9, 6), left=0.08, right=0.99, bottom=0.08, top=0.95, wspace=0.02)
    if figure is None:
        return False
    shown = [lines[i] for i in spread(len(lines), ROWS)]
    for axes, (key, title) in zip(
        figure.subplots(1, 2, sharey=True), {"counts": "first channel", "layer_counts": "all channels"}.items()
    ):
        for row, line in enumerate(shown):
            tallest = max(line[key]) or 1
            heights = [-row + 0.9 * count / tallest for count in line[key]]
            axes.stairs(heights, line["edges"], baseline=-row, fill=True, color="C0")
        axes.set_title(f"{line['layer']}, {title}", fontsize=9)
        axes.set_xlabel("latent weight w")
        axes.set_yticks([-row for row in range(len(shown))], [f"epoch {line['epoch']}" for line in shown])
        axes.spines[["left", "right", "top"]].set_visible(False)
    figure.savefig(path)
    return True


def of_split(lines: Iterable[dict], split: str) -> list[dict]:
    """The lines of a split. InputError if there is none."""
    found = [line for line in lines if line.get("split") == split]
    if not found:
        raise InputError(f"the log has no line of split {split!r}: no epoch of step 2 has ended yet")
    return found


def spread(n: int, most: int) -> list[int]:
    """At most so many positions of 0 … n - 1, evenly spread, with both ends."""
    if n <= most:
        return [*range(n)]
    return [round(i * (n - 1) / (most - 1)) for i in range(most)]


def first_middle_last(n: int) -> list[int]:
    """Positions of the layers that are shown: 0, 7 and 15 of 16."""
    return sorted({0, max(0, n // 2 - 1), n - 1})


def _draw_layers(layers: list[str], curves: dict[str, tuple[list[dict], list[list[float]]]], path) -> bool:
    """A panel a layer; curves: {label: (lines, values [epoch][layer])}."""
    figure = _figure((10, 3.2), left=0.08, right=0.99, bottom=0.15, top=0.86, wspace=0.05)
    if figure is None:
        return False
    positions = first_middle_last(len(layers))
    panels = figure.subplots(1, len(positions), sharey=True, squeeze=False)[0]
    for axes, position in zip(panels, positions):
        for label, (lines, values) in curves.items():
            axes.plot([line["epoch"] for line in lines], [value[position] for value in values], label=label, marker=".")
        axes.set_title(f"binary layer {position + 1}\n{layers[position]}", fontsize=9)
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True, nbins=8)
        axes.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)  # shared, and only now that every panel has its curves
    panels[0].set_ylabel("share of signs that change")
    panels[-1].legend(fontsize=7)
    figure.savefig(path)
    return True


def _figure(size: tuple[float, float], **margins: float):
    """An empty figure, without touching what else the process draws; None where matplotlib is absent.

    The margins are fixed, since to lay the figure out anew takes matplotlib as long as to draw it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=size, dpi=120)
    figure.subplots_adjust(**margins)
    return figure


if __name__ == "__main__":
    entry(main)
