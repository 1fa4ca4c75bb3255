"""Weights of the official release and of this project: which network a file belongs to, and loading it."""

import json
from collections.abc import Sequence
from os import PathLike

from common.errors import CheckpointError
from common.weights import fit_weights, read_weights

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

# A key that only this network has, and how many channels its weight has for each of `channels`.
MARKS = {"mbcnn": ("conv_func1.conv.weight", 2), "dmcnn": ("s11.0.weight", 1)}


def detect(source: str | PathLike | dict[str, Tensor], path: str | PathLike = "the state dict") -> str:
    """Which network's weights a file or state dict holds, `mbcnn` or `dmcnn`, told from its keys.

    Needed because the release's two links for LCDMoire lead to one file. Errors: CheckpointError for neither or both.
    """
    if not isinstance(source, dict):
        source, path = read_weights(source), source
    found = [name for name, (key, _) in MARKS.items() if key in source]
    if len(found) != 1:
        first = ", ".join(sorted(source)[:4])
        raise CheckpointError(f"{path} holds weights of neither MBCNN nor DMCNN (keys {first}, …); give one of the two")
    return found[0]


def save_supernet(network: nn.Module, widths: Sequence[float], path: str | PathLike) -> None:
    """Write the whole network in half precision as .safetensors, with the options and widths it was trained with."""
    half = {key: value.detach().half().contiguous() for key, value in network.state_dict().items()}
    about = {"architecture": network.architecture, "options": json.dumps(network.options, sort_keys=True)}
    save_file(half, path, about | {"widths": json.dumps(list(widths))})


def stored_options(path: str | PathLike) -> tuple[dict, tuple[float, ...] | None]:
    """Options of `models.build` and widths that `save_supernet` noted; ({}, None) in a file of anyone else's.

    Errors: CheckpointError for a file that is no .safetensors, or notes that do not make sense.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        if "options" not in about:
            return {}, None
        options, widths = json.loads(about["options"]), tuple(float(w) for w in json.loads(about["widths"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); give a whole .safetensors file") from error
    if not isinstance(options, dict) or not options.keys() <= {"lbf", "head", "fix_conv5_cat"}:
        raise CheckpointError(f"{path} notes the unknown options {options}; export it again")
    return options, widths


def size_of(state: dict[str, Tensor], path: str | PathLike) -> int:
    """The `channels` of the network that a state dict belongs to. Errors: CheckpointError."""
    key, times = MARKS[detect(state, path)]
    if state[key].ndim != 4 or len(state[key]) < times:
        raise CheckpointError(f"{path}: {key} of shape {list(state[key].shape)} is no convolution's; save it again")
    return len(state[key]) // times


def load_weights(network: nn.Module, path: str | PathLike, state: dict[str, Tensor] | None = None) -> None:
    """Load a file (or the state dict read from it) into the network, all of it or nothing.

    Errors: CheckpointError if it is unreadable or unsafe, of the other network, or of another size.
    """
    state = read_weights(path) if state is None else state
    name = detect(state, path)
    if name != network.architecture.lower():
        raise CheckpointError(
            f"{path} holds weights of {name.upper()}, the network is {network.architecture}; choose that network,"
            " or the other file (the release's two links for LCDMoire are the same)"
        )
    fit_weights(network, state, path)
