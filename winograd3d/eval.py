"""The protocol on a checkpoint: clip and video accuracy, and what the network costs before and after packing.

    python eval.py --checkpoint runs/cfg/stage2/last.pt [--data.root DIR]
    python eval.py --checkpoint c3d.pth --config configs/c3d_ucf101_50.yaml                  (a dense network's weights)

Accuracy is that of the merged and packed network, which is what a user deploys. Clip accuracy: one centre clip of each
video; video accuracy: the mean over uniform clips of probabilities (`prob`) or logits (`logit`). Times are of one clip
on one thread; the number to report is that of last.pt, best.pt is chosen on the test set and for information only.
"""

import argparse
import copy
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import checkpoint, config, cost, distributed
from common.environment import environment
from common.report import print_metrics, write_metrics
from common.run import entry

import torch
from torch import nn

from winograd3d import data, models
from winograd3d.api import merge, pack
from winograd3d.config import Config
from winograd3d.convolution import WinogradConv3d
from winograd3d.costs import report
from winograd3d.evaluation import evaluate
from winograd3d.masks import warnings, winograd_layers
from winograd3d.network import build, build_dense, load_converted


def main(argv: list[str]) -> dict:
    """Evaluate one checkpoint; prints tables, writes metrics.json beside it and returns its content."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", required=True, help="last.pt or best.pt of a run, or weights of a dense network"
    )
    parser.add_argument("--config", help="the experiment of weights that do not carry it")
    parser.add_argument("--out", help="metrics file (default: metrics.json beside the checkpoint)")
    parser.add_argument("--clips", type=int, help="clips of a video (default: 10; moving digits are one clip long)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of every time (default: 7)")
    given, overrides = parser.parse_known_args(argv)
    path = Path(given.checkpoint)

    hint = "weights of a dense network need --config as well"
    own = {} if given.config else checkpoint.load_own(path, "winograd3d", hint=hint)
    conf = config.load(Config, given.config) if given.config else config.from_dict(Config, own["config"])
    conf = config.override(conf, overrides)
    _, test = data.load(conf.data, conf.seed)
    device = distributed.start(conf.run.device)
    network = load(conf, own, path, len(test.classes)).to(device).eval()

    example = torch.zeros(1, *data.shape_of(conf.data), device=device)
    clip = test.clips(torch.arange(1), 1)[:, 0].to(device)
    metrics: dict = {"params": cost.parameters(network).total}
    metrics["macs_direct"] = cost.macs(direct_copy(network), example)
    deployed = copy.deepcopy(network)
    if winograd_layers(network):
        with one_thread():
            metrics |= winograd_metrics(network, clip, given.rounds)
        metrics |= {key: own["state"]["progress"][key] for key in ("weight_gap", "logit_gap") if own}
        deployed = pack(merge(deployed))
    low = conf.run.precision == "bf16"
    count = given.clips or (1 if conf.data.name == "moving_digits" else 10)
    metrics |= evaluate(deployed, test, conf.data, device, low, clips=count)
    if own:
        metrics["train_seconds"] = own["seconds"]

    metrics["_meta"] = {"checkpoint": path.name, "network": conf.model.name, "data": conf.data.name}
    metrics["_meta"]["environment"] = environment(conf, own.get("data", {}))
    out = Path(given.out) if given.out else path.with_name("metrics.json")
    write_metrics(out, metrics)
    print_metrics(metrics)
    return metrics


def load(conf: Config, own: dict, path: Path, classes: int) -> nn.Module:
    """The dense network, or the converted one of stage 1 or 2, with its weights."""
    if own and own["stage"] != "pretrain":
        network = build(conf, classes)
        load_converted(network, path, own["stage"])
        for warning in warnings(network):
            print(f"warning: {warning}")
        return network
    network = build_dense(conf, classes)
    models.load_weights(network, path)
    return network


# -- what the Winograd domain costs ----------------------------------------------------------------------------------


def winograd_metrics(network: nn.Module, clip: torch.Tensor, rounds: int) -> dict[str, float]:
    """Trainables, columns, multiply-adds and times of the layers and of the network; prints the table of layers.

    packed_cost and packed_cost_direct are paired ratios of the network's time to that with all columns and to torch's
    own convolutions.
    """
    rows = report(network, clip, rounds)
    print(cost.table({row.name: row.row() for row in rows}))
    total = lambda key: sum(getattr(row, key) for row in rows)
    kept, columns = total("kept"), total("columns")
    metrics = {
        "winograd_trainables": total("trainables"),
        "winograd_stored": total("stored"),
        "columns": columns,
        "kept_columns": kept,
        "column_sparsity": 1 - kept / columns,
        "winograd_macs": total("macs"),
        "winograd_macs_direct": total("macs_direct"),
        "mac_reduction": total("macs_direct") / total("macs"),
        "zeros": zeros(network),
    }
    sparse, dense = pack(merge(copy.deepcopy(network))), pack(merge(dense_copy(network)))
    direct = direct_copy(network)
    calls = {"packed": lambda: sparse(clip), "dense": lambda: dense(clip), "direct": lambda: direct(clip)}
    with torch.no_grad():
        times = cost.interleaved(calls, rounds, warmup=2)
        wide = copy.deepcopy(network).double()(clip.double())
        error = (sparse(clip) - wide).abs().max() / wide.abs().max()
    for name, seconds in times.items():
        metrics |= {f"{name}_ms": 1e3 * statistics.median(seconds), f"{name}_ms_min": 1e3 * min(seconds)}
    metrics["packed_cost"] = cost.compare(times, "dense")["packed"].cost
    metrics["packed_cost_direct"] = cost.compare(times, "direct")["packed"].cost
    return metrics | {"float64_error": float(error)}


def zeros(network: nn.Module) -> float:
    """Share of zeros in all Winograd-domain weights, whether or not they make a column."""
    weights = [layer.effective_weight().detach() for layer in winograd_layers(network).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def dense_copy(network: nn.Module) -> nn.Module:
    """The network with every column kept."""
    whole = copy.deepcopy(network)
    for layer in winograd_layers(whole).values():
        layer.mask.fill_(True)
    return whole


def direct_copy(network: nn.Module) -> nn.Module:
    """The network with torch's convolution in the place of every Winograd layer, for time only: weights are random."""
    plain = copy.deepcopy(network)
    for name, layer in winograd_layers(plain).items():
        plain.set_submodule(name, as_conv(layer))
    return plain


def as_conv(layer: WinogradConv3d) -> nn.Conv3d:
    """A Conv3d of the layer's shape."""
    conv = nn.Conv3d(layer.in_channels, layer.out_channels, 3, padding=layer.padding, bias=layer.bias is not None)
    return conv.to(layer.mask.device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Times are quoted for one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    entry(main)
