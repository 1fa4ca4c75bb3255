"""Weights as others store them, under this project's names (section 8); nothing in a file is ever executed."""

import re
from os import PathLike
from typing import NamedTuple

from common.errors import CheckpointError
from common.weights import fit_weights, read_weights

from torch import Tensor, nn

# The convolutions of the sequential Sports-1M file by their place among its layers.
FEATURES = dict(zip((0, 3, 6, 8, 11, 13, 16, 18), ("1", "2", "3a", "3b", "4a", "4b", "5a", "5b")))
MMACTION = {"1a": "1", "2a": "2"}


class Loaded(NamedTuple):
    """What a file was: its layout, the parameters that kept their fresh values, and the pixels it was trained on."""

    layout: str
    fresh: tuple[str, ...]
    pixels: str | None


def load_weights(network: nn.Module, path: str | PathLike) -> Loaded:
    """Load a checkpoint into the network, all of it or nothing; a head of other classes keeps its fresh values.

    Known layouts: this project's and plain C3D, torchvision's r3d_18, C3D's sequential Sports-1M file (which has no
    head), mmaction2's C3D. CheckpointError if the file is unreadable, unsafe or of another network.
    """
    given = read_weights(path)
    layout, pixels = _layout(given)
    renamed = {_rename(key, layout): value for key, value in given.items()}
    if len(renamed) != len(given):
        raise CheckpointError(f"{path} names a parameter of its {layout} layout twice; save it again")
    own = network.state_dict()
    head = _head(own)
    fresh = tuple(key for key in head if key not in renamed or renamed[key].shape != own[key].shape)
    trunk = {key: value for key, value in own.items() if key not in head}
    # A file that differs in more than its head is of another network, and is told as one.
    if fresh and all(key in renamed and renamed[key].shape == trunk[key].shape for key in trunk if _counts(key)):
        renamed |= {key: own[key] for key in head}
        fresh = head
    else:
        fresh = ()
    fit_weights(network, renamed, path)
    return Loaded(layout, fresh, pixels)


def _layout(given: dict[str, Tensor]) -> tuple[str, str | None]:
    """The layout that a file's names follow, and the normalisation of clips.py that belongs to it, where known."""
    if any(key.startswith("features.") for key in given):
        return "sports1m", "c3d_bgr"
    if any(key.startswith(("backbone.", "cls_head.")) for key in given):
        return "mmaction", "mmaction"
    return ("torchvision", "kinetics") if "stem.0.weight" in given else ("plain", None)


def _rename(key: str, layout: str) -> str:
    """This project's name of a parameter; what has none keeps its own, so that the message can show it."""
    if layout == "sports1m":
        if (found := re.fullmatch(r"features\.(\d+)\.(weight|bias)", key)) and int(found[1]) in FEATURES:
            return f"conv{FEATURES[int(found[1])]}.{found[2]}"
        return re.sub(r"^classifier\.(0|3)\.", lambda found: {"0": "fc6.", "3": "fc7."}[found[1]], key)
    if layout == "mmaction":
        key = re.sub(r"^cls_head\.fc_cls\.", "fc8.", key)
        key = re.sub(r"^backbone\.(fc[67])\.", r"\1.", key)
        return re.sub(r"^backbone\.conv(\d[ab])\.conv\.", lambda found: f"conv{MMACTION.get(found[1], found[1])}.", key)
    return key


def _head(own: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of the last linear layer's weight and bias."""
    last = [key for key in own if key.endswith("weight")][-1].rpartition(".")[0]
    return tuple(key for key in own if key.rpartition(".")[0] == last)


def _counts(key: str) -> bool:
    """Whether a file must hold this entry; BatchNorm's batch counter is used by nothing here."""
    return not key.endswith("num_batches_tracked")
