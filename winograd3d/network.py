"""The network of an experiment: dense, converted to the Winograd domain, and with the weights of an earlier stage."""

from pathlib import Path

from common import checkpoint
from common.errors import CheckpointError, InputError
from common.run import Run

import torch
from torch import nn

from winograd3d import data, models
from winograd3d.api import Conversion, convert
from winograd3d.config import Config
from winograd3d.masks import winograd_layers

TILES = {"2": (2, 2, 2), "4": (4, 4, 4), "2x4x4": (2, 4, 4), "1x2x2": (1, 2, 2), "1x4x4": (1, 4, 4), "auto": "auto"}


def build_dense(config: Config, classes: int | None = None) -> nn.Module:
    """The network as it is trained in stage pretrain; classes are the data set's own unless they are given.

    Errors: InputError for a network that there is not.
    """
    channels, *clip = data.shape_of(config.data)
    classes = classes or data.class_count(config.data)
    return models.build(config.model.name, classes, config.model.width, clip=tuple(clip), channels=channels)


def to_winograd(network: nn.Module, config: Config) -> Conversion:
    """Convert in place as the config says. Errors: InputError when no layer is eligible, and as `convert`."""
    w = config.winograd
    like = next(network.parameters())
    conversion = convert(
        network,
        tile=TILES[w.tile],
        example=like.new_zeros(1, *data.shape_of(config.data)) if w.tile == "auto" else None,
        mode=w.mode,
        rank=w.rank,
        points=w.points,
        view=w.view,
        granularity=config.prune.granularity,
        precondition=w.precondition,
    )
    if not conversion.converted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in conversion.refused.items())
        raise InputError(f"model {config.model.name} has no layer to convert ({reasons})")
    return conversion


def build(config: Config, classes: int | None = None) -> nn.Module:
    """The converted network with fresh weights."""
    network = build_dense(config, classes)
    to_winograd(network, config)
    return network


def pretrained_path(run: Run, config: Config) -> Path:
    """The trained dense network, whose bytes the stage depends on. Errors: InputError when it is not there."""
    path = Path(config.model.checkpoint or run.folder.parent / "pretrain" / "last.pt")
    if not path.exists():
        raise InputError(f"{path}: there is no trained network; run stage pretrain first, or give --model.checkpoint")
    run.require_same("network", checkpoint.file_sha256(path))
    return path


def load_converted(network: nn.Module, path: Path, stage: str) -> dict:
    """Load what stage 1 or 2 has saved into a converted network; returns the state of the checkpoint.

    Errors: CheckpointError for another network or other conventions; InputError for a mask that empties a layer.
    """
    own = checkpoint.load_own(path, "winograd3d", stage)
    weights, wanted = own["state"]["model"], network.state_dict()
    differing = sorted(weights.keys() ^ wanted.keys())
    common = sorted(wanted.keys() & weights.keys())
    differing += [f"{key} {[*weights[key].shape]}" for key in common if _differs(key, weights, wanted)]
    if differing:
        raise CheckpointError(f"{path} does not fit this network and conversion: {', '.join(differing[:5])}")
    network.load_state_dict(weights)
    for layer in winograd_layers(network).values():
        layer.set_mask(layer.mask.clone())
    return own["state"]


def _differs(key: str, weights: dict, wanted: dict) -> bool:
    return weights[key].shape != wanted[key].shape and not key.endswith("_extra_state")


@torch.no_grad()
def conversion_gap(dense: nn.Module, converted: nn.Module, clips: torch.Tensor) -> dict[str, float]:
    """What the start of stage 1 has lost against the dense network, both in eval mode.

    weight_gap: ‖Ŵ − G₃K‖ / ‖G₃K‖ over all layers; logit_gap: max |difference| / max |logit| on the clips.
    """
    lost = total = 0.0
    for name, layer in winograd_layers(converted).items():
        exact = layer.transformed(dense.get_submodule(name).weight)
        lost += float((layer.unmasked_weight() - exact).square().sum())
        total += float(exact.square().sum())
    modes = dense.training, converted.training
    before, after = dense.eval()(clips), converted.eval()(clips)
    dense.train(modes[0]), converted.train(modes[1])
    return {
        "weight_gap": (lost / total) ** 0.5,
        "logit_gap": float((after - before).abs().max() / before.abs().max()),
    }
