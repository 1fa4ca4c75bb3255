"""Weights from elsewhere: full-precision networks, the release's quantised checkpoints, and runs of this project.

The release's layout is that of section 8: below a layer's name lie `weight`, `bias`, the bounds `uW lW uA lA`, the flag
`init`, and, with the scratcher, `prev_Qweight distance unchange_step saved_weight`.
"""

import re
from os import PathLike
from typing import NamedTuple

from common import checkpoint
from common.config import from_dict
from common.errors import CheckpointError
from common.weights import fit_weights, read_weights

import torch
from torch import Tensor, nn

from lts.config import Config
from lts.experiment import build
from lts.method import Quantised, Scratcher, quantised_layers

BOUNDS = {
    "uW": "weight_quantiser.upper",
    "lW": "weight_quantiser.lower",
    "uA": "activation_quantiser.upper",
    "lA": "activation_quantiser.lower",
}
SCRATCH = ("prev_Qweight", "distance", "unchange_step", "saved_weight")
OFFICIAL = re.compile(rf"(.+)\.({'|'.join((*BOUNDS, 'init', *SCRATCH))})")
OWN_QUANTISER = re.compile(r".+\.(weight|activation)_quantiser\.\w+")
LAST_LAYER = {"fc": "linear"}  # torchvision's name of a ResNet's last layer, and the release's


class Loaded(NamedTuple):
    """What a file held beside the network: whether it set the quantisers, and the release's scratcher by layer.

    scratch: {layer: {name of SCRATCH: tensor like the weight}}, empty without a scratcher.
    """

    quantised: bool
    scratch: dict[str, dict[str, Tensor]]


def load_weights(model: nn.Module, path: str | PathLike) -> Loaded:
    """Load a file into a plain or a quantised model; all of it or nothing.

    The file holds a plain network (by name, or what has no namesake by order, with shapes and kinds compared; the
    model's quantisers then stay as they are), the same with the release's quantisers, with or without its scratcher,
    or a run of this project. Frozen weights of a release's file take their saved value.
    Errors: CheckpointError for a file that is unreadable, of another network, or of another bit width.
    """
    given = read_weights(path)
    layers = quantised_layers(model)
    plain, extra = split(given)
    scratch = {name: part for name, part in extra.items() if all(key in part for key in SCRATCH)}
    for name, part in scratch.items():
        if plain.get(f"{name}.weight", torch.empty(0)).shape != part["saved_weight"].shape:
            raise CheckpointError(f"{path}: {name}.saved_weight does not belong to {name}.weight; save it again")
        check_bits(path, name, part["prev_Qweight"], layers.get(name))
        plain[f"{name}.weight"] = torch.where(part["unchange_step"] != 0, part["saved_weight"], plain[f"{name}.weight"])
    own = model.state_dict()
    own_quantisers = {key: value for key, value in own.items() if OWN_QUANTISER.fullmatch(key)}
    found = {key: value for key, value in plain.items() if OWN_QUANTISER.fullmatch(key)}
    plain = {key: value for key, value in plain.items() if key not in found}
    for name, part in extra.items():
        # The release's full-precision checkpoints may hold quantisers, which were never used.
        if name in layers and not part.get("init", torch.zeros(1)).any():
            found |= {f"{name}.{key}": part[short] for short, key in BOUNDS.items() if short in part}
    if any(OWN_QUANTISER.fullmatch(key) for key in given):
        check_own_bits(path, layers)
    matched = match(plain, {key: value for key, value in own.items() if key not in own_quantisers}, path)
    fit_weights(model, matched | (found or own_quantisers), path)
    return Loaded(bool(found), scratch if layers else {})


def split(given: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A file's plain entries, and {layer: {official name of quantiser or scratcher: tensor}}."""
    plain, extra = {}, {}
    for key, value in given.items():
        if found := OFFICIAL.fullmatch(key):
            extra.setdefault(found[1], {})[found[2]] = value
        else:
            plain[key] = value
    return plain, extra


def check_bits(path: str | PathLike, name: str, level: Tensor, layer: Quantised | None) -> None:
    """Compare a layer's bits with the levels that a scratcher left; CheckpointError if they differ.

    level: w̄ in 0, 1/n, …, 1. One that was never used is all 0 and fits every width.
    """
    if not level.any():
        return
    fits = (b for b in range(1, 9) if torch.allclose(level * (2**b - 1), (level * (2**b - 1)).round(), atol=1e-3))
    bits, own = next(fits, None), 32 if layer is None else layer.weight_bits
    if bits is None:
        raise CheckpointError(f"{path}: the levels of {name} fit no width of 1 to 8 bits; the file is damaged")
    if bits != own:
        wanted = "in full precision" if own == 32 else f"at {own} bits"
        raise CheckpointError(f"{path}: {name} was trained at {bits} bits, here it is {wanted}; choose {bits} bits")


def check_own_bits(path: str | PathLike, layers: dict[str, Quantised]) -> None:
    """Compare the model's bits with those of the run of ours that wrote the file; CheckpointError if they differ."""
    content = checkpoint.load(path)
    if "config" not in content:
        return  # a bare state dict
    with torch.device("meta"):
        theirs = quantised_layers(build(from_dict(Config, content["config"])))
    for name, layer in layers.items():
        bits = [f"W{x.weight_bits}A{x.activation_bits}" for x in (theirs.get(name, layer), layer)]
        if bits[0] != bits[1]:
            raise CheckpointError(f"{path}: {name} was trained as {bits[0]}, here it is {bits[1]}; choose {bits[0]}")


def match(given: dict[str, Tensor], own: dict[str, Tensor], path: str | PathLike) -> dict[str, Tensor]:
    """Give a plain network's entries the model's names: by name, else by order.

    CheckpointError where an entry paired by order has another kind (weight, bias, running_mean …) or shape.
    """
    is_counter = lambda key: key.endswith("num_batches_tracked")
    given = {key: value for key, value in given.items() if not is_counter(key)}
    renamed = {}
    for key, value in given.items():
        layer, _, kind = key.rpartition(".")
        alias = f"{LAST_LAYER.get(layer, layer)}.{kind}"
        renamed[alias if alias in own and key not in own else key] = value
    matched = {key: value for key, value in renamed.items() if key in own}
    left = [key for key in renamed if key not in own]
    free = [key for key in own if key not in matched and not is_counter(key)]
    if len(left) != len(free):
        return renamed  # which fit_weights refuses, naming what is missing and what is too much
    for theirs, ours in zip(left, free):
        shapes = [list(renamed[theirs].shape), list(own[ours].shape)]
        if theirs.rpartition(".")[2] != ours.rpartition(".")[2] or shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{path}: entries were matched by order, and {theirs} {shapes[0]} met {ours} {shapes[1]}; "
                "give weights of this network, in the order of its layers"
            )
        matched[ours] = renamed[theirs]
    return matched


def load_scratch(scratcher: Scratcher, loaded: Loaded, step: int | None = None, legacy_resume: bool = False) -> None:
    """Go on with a release's scratcher after `load_weights`: distances, levels, frozen weights.

    step: the step counter, which the file does not hold; None takes the last step at which a weight froze.
    legacy_resume: start the counter anew at -1, as the release does, which overwrites the distances at the second step
    and starts the warm-up again. Errors: CheckpointError for a file without a scratcher or with other layers.
    """
    if loaded.scratch.keys() != scratcher.layers.keys():
        different = sorted(loaded.scratch.keys() ^ scratcher.layers.keys())
        raise CheckpointError(f"the checkpoint's scratcher and the model's differ in the layers {', '.join(different)}")
    state = scratcher.state_dict()
    last = max(int(part["unchange_step"].max()) for part in loaded.scratch.values())
    state["step"] = (last or -1) if step is None else step
    for name, part in loaded.scratch.items():
        frozen, n = part["unchange_step"] != 0, 2 ** state["bits"][name] - 1
        distance = part["distance"].abs()
        state["tickets"][name] |= {
            "distance": torch.where(frozen, -distance, distance),
            "level": (part["prev_Qweight"] * n).round().to(torch.uint8),
            "frozen_step": part["unchange_step"].to(torch.int32),
        }
    scratcher.load_state_dict(state, legacy_resume)
