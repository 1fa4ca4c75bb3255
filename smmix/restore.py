"""A trained network with its experiment, for the commands that look at one without its training data."""

import argparse
from pathlib import Path

from common import checkpoint, config
from common.errors import CheckpointError, InputError
from common.weights import read_weights

from torch import nn

from smmix import models
from smmix.config import Config
from smmix.train import build

CLASS_BIASES = ("token_head.bias", "head.bias", "head.fc.bias")


def add_options(parser: argparse.ArgumentParser) -> None:
    """--checkpoint, --config and --weights."""
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or an official or timm file")
    parser.add_argument("--config", help="the experiment of an official checkpoint, which does not carry it")
    parser.add_argument("--weights", choices=("model", "ema"), default="model", help="which weights of a run")


def restore(given: argparse.Namespace, overrides: list[str]) -> tuple[Config, nn.Module]:
    """The config and the network, in evaluation mode on the CPU, that the options name; classes are the file's.

    Errors: CheckpointError for an unreadable file, or one that belongs to another network; InputError for options
    that do not go with it.
    """
    path = Path(given.checkpoint)
    if given.config:
        conf = config.load(Config, given.config)
    else:
        own = checkpoint.load_own(path, "smmix", hint="an official checkpoint needs --config as well")
        conf = config.from_dict(Config, own["config"])
    conf = config.override(conf, overrides)
    if given.weights == "ema":
        weights = checkpoint.load_own(path, "smmix")["state"].get("ema")
        if weights is None:
            raise InputError(f"{path}: holds no mean weights; train with --optim.ema, or take --weights model")
    else:
        weights = read_weights(path)
    bias = next((weights[key] for key in CLASS_BIASES if key in weights), None)
    if bias is None:
        raise CheckpointError(
            f"{path}: has no classifier ({', '.join(CLASS_BIASES)}); give a network for classification"
        )
    network = build(conf, len(bias))
    models.fit(network, weights, path)
    return conf, network.eval()
