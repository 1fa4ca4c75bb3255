"""Reading weights: nothing in a file is ever executed, and a model is changed whole or not at all."""

import argparse
from os import PathLike
from pathlib import Path

from common.errors import CheckpointError

import numpy as np
import safetensors.torch
import torch
from torch import nn

# What the released checkpoints hold besides tensors: their options, and accuracies that may be numpy scalars.
# numpy 1 and 2 pickle a scalar under different module names.
INERT = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(t)) for t in ("float32", "float64", "int64")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]
SHOWN = 5  # names of each kind in an error message


def load_weights(model: nn.Module, path: str | PathLike) -> None:
    """Load a checkpoint's weights into the model, strictly by name and shape; see read_weights for the file.

    CheckpointError if it is unreadable, unsafe or belongs to another network; the model is then as it was.
    """
    fit_weights(model, read_weights(path), path)


def fit_weights(model: nn.Module, given: dict[str, torch.Tensor], path: str | PathLike) -> None:
    """Load a state dict read from path, strictly by name and shape, all of it or nothing.

    For files whose names or layout were first translated to the model's. CheckpointError as load_weights.
    """
    name = getattr(model, "architecture", type(model).__name__)
    own = model.state_dict()
    problems = []
    # Weights saved before torch 0.4.1 lack the batch counter, which nothing here uses.
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing, unexpected = own.keys() - given.keys() - counters, given.keys() - own.keys()
    for what, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            problems.append(f"{what} {_first(sorted(keys))}")
    differing = [key for key in own if key in given and given[key].shape != own[key].shape]
    if differing:
        shapes = [f"{key} {list(given[key].shape)} for {list(own[key].shape)}" for key in differing]
        problems.append(f"of another shape {_first(shapes)}")
    if problems:
        raise CheckpointError(
            f"{path} does not fit {name}: {'; '.join(problems)}; give weights of {name}, or choose"
            " the model and number of classes they were trained with"
        )
    try:
        ready = {key: torch.empty_like(own[key]).copy_(given.get(key, own[key])) for key in own}
    except (RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path} holds tensors {name} cannot take: {error}; save them again") from error
    model.load_state_dict(ready)


def _first(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"({len(items)}): {', '.join(items[:SHOWN])}{more}"


def read_weights(path: str | PathLike, key: str | None = None) -> dict[str, torch.Tensor]:
    """The file's parameters and buffers on the CPU, without a `module.` prefix.

    The file is .safetensors or torch.save's: a bare state dict, a dict that holds one under `model` or `state_dict`
    (or under the given key), or a checkpoint of this repository. CheckpointError if it is missing, damaged, holds
    more than tensors, or none.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; give a .pth or .safetensors checkpoint")
    try:
        if Path(path).suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(INERT):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the readers raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as weights ({reason}): it is damaged, or holds code or objects besides"
            " tensors, which are never executed; download or save it again"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state"), dict):  # a checkpoint of our own
        content = content["state"]
    for name in [key] if key else ["model", "state_dict"]:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    items = content.items() if isinstance(content, dict) else ()
    if not items or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in items):
        raise CheckpointError(f"{path} holds no state dict, bare or under '{key or 'model'}'; give a network's weights")
    return {key.removeprefix("module."): value for key, value in items}
