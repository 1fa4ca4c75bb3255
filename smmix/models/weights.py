"""Weights in and out: official checkpoints, timm's files and our own are read, timm's are written."""

import math
from os import PathLike
from pathlib import Path

from common.errors import CheckpointError, InputError
from common.weights import fit_weights, read_weights

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = ("head.", "head_dist.", "token_head.")
TOKEN_HEAD = "token_head."


def load_weights(network: nn.Module, path: str | PathLike) -> None:
    """Load a checkpoint (official, of timm or of ours) strictly by name and shape, all of it or nothing.

    Only the token head may be absent on one side: then the network's stays as it is, or the file's is left out. An
    official file's `model_ema`, which holds the untouched initialisation, is never looked at. CheckpointError if
    the file is unreadable, unsafe or of another network.
    """
    fit(network, read_weights(path), path)


def fit(network: nn.Module, given: dict[str, Tensor], path: str | PathLike) -> None:
    """`load_weights` for weights that have been read from path."""
    fit_weights(network, _with_token_head(network, given), path)


def load_for_finetuning(network: nn.Module, path: str | PathLike) -> list[str]:
    """Load a checkpoint for another task: another number of classes, another image size; returns what stayed fresh.

    Heads of another number of classes keep their initialisation, position embeddings are resized bicubically
    (align_corners False) with the class token's row kept. Everything else is strict. CheckpointError as above.
    """
    given, own = _with_token_head(network, read_weights(path)), network.state_dict()
    fresh = [key for key in own if key.startswith(HEADS) and key in given and given[key].shape != own[key].shape]
    for key in fresh:
        given[key] = own[key]
    for key in own:
        if key.startswith("pos_embed") and key in given and given[key].shape != own[key].shape:
            given[key] = _resized(given[key], own[key], _grid(network, key), f"{path}: {key}")
    fit_weights(network, given, path)
    return fresh


def write_timm(network: nn.Module, path: str | PathLike) -> Path:
    """Write the weights without the token head: exactly what timm's model of that name loads; returns the path.

    The suffix decides: .safetensors, or .pth for torch.save's format. A PVT version 1 keeps the official names.
    Errors: InputError for another suffix or a place that cannot be written.
    """
    path = Path(path)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items() if not k.startswith(TOKEN_HEAD)}
    if path.suffix not in (".safetensors", ".pth"):
        raise InputError(f"cannot write weights to {path}: the suffix must be .safetensors or .pth")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(state, temporary)
        else:
            torch.save(state, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot write weights to {path}: {error}; check the folder, its space and rights") from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return path


def _with_token_head(network: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The given weights, with the network's own token head where they have none, without theirs where it has none."""
    own = network.state_dict()
    if not any(key.startswith(TOKEN_HEAD) for key in given):
        return {**given, **{key: value for key, value in own.items() if key.startswith(TOKEN_HEAD)}}
    if not any(key.startswith(TOKEN_HEAD) for key in own):
        return {key: value for key, value in given.items() if not key.startswith(TOKEN_HEAD)}
    return dict(given)


def _resized(given: Tensor, own: Tensor, grid: tuple[int, int], where: str) -> Tensor:
    """A position embedding [1, P + N, D] of a square grid for the network's own grid; P rows of class tokens stay."""
    prefix = own.shape[1] - math.prod(grid)
    side = math.isqrt(max(0, given.shape[1] - prefix)) if given.ndim == 3 else 0
    if side < 1 or given.shape[1] != prefix + side**2 or given.shape[2] != own.shape[2]:
        raise CheckpointError(
            f"{where} of shape {[*given.shape]} cannot be resized to {[*own.shape]}; it must be of a square grid, "
            f"{prefix} more for class tokens, and of width {own.shape[2]}"
        )
    image = given[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
    resized = F.interpolate(image, grid, mode="bicubic").flatten(2).transpose(1, 2)
    return torch.cat([given[:, :prefix].float(), resized], 1).to(given.dtype)


def _grid(network: nn.Module, key: str) -> tuple[int, int]:
    """Rows and columns of the tokens that a position embedding is added to: of a PVT's stage, or of the patches."""
    return network.grids[int(key[-1]) - 1] if hasattr(network, "grids") else network.patch_embed.grid_size
