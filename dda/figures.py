"""What the prior is worth: score of each test tile against what each width gains on it, as a picture.

    python figures.py --checkpoint runs/cfg/first/last.pt [--out score_gain.png] [--data.root DIR]

One point is a tile at a width; its gain is the PSNR of the restored tile minus that of the moiré tile. The rank
correlation of score and gain stands beside each width. matplotlib is needed.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import NamedTuple

from common import config, distributed
from common.errors import InputError
from common.run import entry

import torch
from torch import Tensor, nn

from dda import data, models
from dda.comparison import spearman
from dda.config import Config
from dda.eval import experiment
from dda.evaluation import demoirer
from dda.inference import COLOURS
from dda.method.prior import moire_prior
from dda.metrics import to_uint8
from dda.train import build, check


class Gains(NamedTuple):
    """score: float32 [N] of the tiles of all test images; gain: dB, float64 [widths, N]."""

    score: Tensor
    gain: Tensor


def main(argv: list[str]) -> Path:
    """Draw the picture of one checkpoint; returns its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or released weights")
    parser.add_argument("--config", help="the experiment of released weights, which do not carry it")
    parser.add_argument("--out", help="picture (default: score_gain.png beside the checkpoint)")
    given, overrides = parser.parse_known_args(argv)
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("the picture needs matplotlib; pip install matplotlib")
    path = Path(given.checkpoint)
    conf = config.override(experiment(given, path)[0], overrides)
    check(conf)
    network = build(conf)
    models.load_weights(network, path)
    found = gains(network.to(distributed.start(conf.run.device)).eval(), data.load(conf.data, conf.seed)[1], conf)
    out = Path(given.out) if given.out else path.with_name("score_gain.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(found, conf.widths, out)
    print(out)
    return out


@torch.inference_mode()
def gains(network: nn.Module, test, conf: Config) -> Gains:
    """Score and gain of every test tile at every width."""
    routed = demoirer(network=network, config=conf, thresholds=[0.0] * (len(conf.widths) - 1))
    score, gain = [], []
    for number in range(len(test)):
        image, clean = (torch.from_numpy(a).permute(2, 0, 1).to(routed.device) for a in test.read(number))
        grid = routed.grid(image.shape[1:])
        tiles, targets = routed.cut(image, grid), routed.cut(clean, grid)
        error = lambda given, targets=targets: (given.double() - targets.double()).square().mean((1, 2, 3)).clamp(1e-2)
        before, own = error(tiles), []
        for index in range(len(conf.widths)):
            restored = routed.restore(tiles, torch.full((len(tiles),), index))
            own.append(10 * (before / error(to_uint8(restored, conf.rounding))).log10())
        score.append(moire_prior(tiles, conf.prior.mode, conf.prior.relative_d0))
        gain.append(torch.stack(own))
    return Gains(torch.cat(score).cpu(), torch.cat(gain, 1).cpu())


def draw(found: Gains, widths: tuple[float, ...], out: Path) -> None:
    """The scatter plot, in the colours of the width map."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (width, gain) in enumerate(zip(widths, found.gain)):
        colour = [c / 255 for c in COLOURS[round(index * (len(COLOURS) - 1) / max(1, len(widths) - 1))]]
        label = f"width {width:g}: rank correlation {spearman(found.score, gain):+.2f}"
        axes.scatter(found.score, gain, s=9, color=colour, alpha=0.6, linewidths=0, label=label)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xscale="log", xlabel="moiré prior Ψ of the tile", ylabel="gain of the tile in dB PSNR")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    entry(main)
