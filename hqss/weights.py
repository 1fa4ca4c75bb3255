"""Weights as they are shipped and found: one .safetensors of several networks in half precision, or single files.

    python weights.py runs/photos/removal/last.pt weights/hqss.safetensors

gathers E, G, G1 and G2 of a finished run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common import checkpoint
from common.errors import CheckpointError
from common.run import entry
from common.weights import fit_weights, read_weights

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hqss import models

SHIPPED = Path(__file__).parent / "weights" / "hqss.safetensors"
FIRST = "conv1_b.1.weight"  # [outputs, inputs, 7, 7], from which a network's width is read
Parts = dict[str, dict[str, Tensor]]


class Removers(NamedTuple):
    """G1 and G2, and whether they were trained with removal.clear."""

    coarse: nn.Module
    refine: nn.Module
    clear: bool


def removers(paths: Sequence[str] | None, clear: bool = False) -> Removers:
    """G1 and G2 from a run's checkpoint of stage removal, a shipped file, or the release's two files.

    None: the shipped file. Ours say how they were trained; of the release's, `clear` does. Errors: CheckpointError.
    """
    paths = chosen(paths)
    if len(paths) == 2:
        parts = dict(zip(("coarse", "refine"), map(read_weights, paths)))
    else:
        parts, clear = split(paths[0]), trained_clear(paths[0])
    coarse = models.Remover(len(first(parts, "coarse", paths[0])))
    refine = models.Refiner(len(first(parts, "refine", paths[0])))
    return Removers(filled(coarse, parts["coarse"], paths[0]), filled(refine, parts["refine"], paths[0]), clear)


def painters(paths: Sequence[str] | None) -> tuple[nn.Module, nn.Module]:
    """E and G from a run's checkpoint of stage synthesis, a shipped file (None), or the release's two files.

    Errors: CheckpointError.
    """
    paths = chosen(paths)
    two = len(paths) == 2
    parts = dict(zip(("encoder", "generator"), map(read_weights, paths))) if two else split(paths[0])
    encoder = models.Encoder(len(first(parts, "encoder", paths[0])))
    inner, inputs = first(parts, "generator", paths[0]).shape[:2]
    generator = models.Generator(inputs - 3, inner)
    return filled(encoder, parts["encoder"], paths[0]), filled(generator, parts["generator"], paths[0])


def chosen(paths: Sequence[str] | None) -> list[Path]:
    """The files, by default the shipped one. Errors: CheckpointError where this copy has none."""
    found = [Path(path) for path in paths or [SHIPPED]]
    if found[0] == SHIPPED and not SHIPPED.exists():
        raise CheckpointError(f"{SHIPPED}: no weights are shipped with this copy; give --weights (a run's last.pt)")
    return found


def first(parts: Parts, name: str, path: Path) -> Tensor:
    """The first convolution of a network. Errors: CheckpointError where the file holds no such network."""
    weight = parts.get(name, {}).get(FIRST)
    if weight is None or weight.ndim != 4:
        stage = "removal" if name in ("coarse", "refine") else "synthesis"
        raise CheckpointError(f"{path}: holds no network `{name}`; give the checkpoint of stage {stage}")
    return weight


def filled(network: nn.Module, part: dict[str, Tensor], path: Path) -> nn.Module:
    """The network with these weights, ready to be used."""
    fit_weights(network, part, path)
    return network.eval().requires_grad_(False)


def split(path: Path) -> Parts:
    """{network: state_dict} of a checkpoint of ours or of a shipped file. Errors: CheckpointError."""
    if path.suffix != ".safetensors":
        state = checkpoint.load_own(path, "hqss")["state"]
        return {name: value for name, value in state.items() if isinstance(value, dict) and FIRST in value}
    parts: Parts = {}
    for key, value in read_weights(path).items():
        network, _, name = key.partition(".")
        parts.setdefault(network, {})[name] = value
    return parts


def trained_clear(path: Path) -> bool:
    """What removal.clear was in the run that a checkpoint of ours or a shipped file comes from."""
    if path.suffix != ".safetensors":
        return bool(checkpoint.load_own(path, "hqss")["config"]["removal"]["clear"])
    with safetensors.safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("clear") == "true"


def gather(removal: Path) -> Parts:
    """E, G, G1 and G2 of a run: its removal checkpoint and the stage before it, where there is one."""
    parts = split(removal)
    synthesis = removal.parent.parent / "synthesis" / "last.pt"
    return {**(split(synthesis) if synthesis.exists() else {}), **parts}


def main(argv: list[str]) -> Path:
    """Write the shipped form of a run. Errors: CheckpointError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="removal/last.pt of a run")
    parser.add_argument("out", type=Path, help=".safetensors to write")
    given = parser.parse_args(argv)
    parts = gather(given.checkpoint)
    first(parts, "coarse", given.checkpoint)
    tensors = {
        f"{network}.{key}": value.to(torch.float16).contiguous()
        for network, part in parts.items()
        if not network.startswith("critic")
        for key, value in part.items()
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, given.out, {"clear": str(trained_clear(given.checkpoint)).lower()})
    print(f"{given.out}: {len(tensors)} tensors, {given.out.stat().st_size:,} bytes")
    return given.out


if __name__ == "__main__":
    entry(main)
