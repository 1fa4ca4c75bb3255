"""Weights as they are shipped and found: one .safetensors of several networks in half precision, or single files.

    python weights.py runs/photos/removal/last.pt weights/hqss.safetensors

gathers E, G, G1 and G2 of a finished run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common import checkpoint
from common.errors import CheckpointError
from common.run import entry
from common.weights import fit_weights, read_weights

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hqss import models

SHIPPED = Path(__file__).parent / "weights" / "hqss.safetensors"
Parts = dict[str, dict[str, Tensor]]


def removers(paths: Sequence[str] | None) -> tuple[nn.Module, nn.Module]:
    """G1 and G2 from a run's checkpoint of stage removal, a shipped file, or the release's two files.

    None: the shipped file. Widths are read from the tensors. Errors: CheckpointError.
    """
    paths = [Path(path) for path in paths or [SHIPPED]]
    if not paths[0].exists() and paths[0] == SHIPPED:
        raise CheckpointError(
            f"{SHIPPED}: no weights are shipped with this copy; give --weights (a run's removal/last.pt)"
        )
    parts = dict(zip(("coarse", "refine"), map(read_weights, paths))) if len(paths) == 2 else split(paths[0])
    found = []
    for name, network in (("coarse", models.Remover), ("refine", models.Refiner)):
        first = parts.get(name, {}).get("conv1_b.1.weight")
        if first is None or first.ndim != 4:
            raise CheckpointError(f"{paths[0]}: holds no network `{name}`; give the checkpoint of stage removal")
        built = network(len(first))
        fit_weights(built, parts[name], paths[0])
        found.append(built.eval().requires_grad_(False))
    return found[0], found[1]


def split(path: Path) -> Parts:
    """{network: state_dict} of a checkpoint of ours or of a shipped file. Errors: CheckpointError."""
    if path.suffix != ".safetensors":
        state = checkpoint.load_own(path, "hqss")["state"]
        return {name: value for name, value in state.items() if isinstance(value, dict) and "conv1_b.1.weight" in value}
    parts: Parts = {}
    for key, value in read_weights(path).items():
        network, _, name = key.partition(".")
        parts.setdefault(network, {})[name] = value
    return parts


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
    tensors = {
        f"{network}.{key}": value.to(torch.float16).contiguous()
        for network, part in gather(given.checkpoint).items()
        if not network.startswith("critic")
        for key, value in part.items()
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, given.out)
    print(f"{given.out}: {len(tensors)} tensors, {given.out.stat().st_size:,} bytes")
    return given.out


if __name__ == "__main__":
    entry(main)
