"""Write the weights of a run for use elsewhere: half precision, safetensors, with the config as metadata.

python export.py --checkpoint runs/cfg/train/last.pt --out weights.safetensors
"""

import argparse
import json
from pathlib import Path

from common import checkpoint, config
from common.errors import InputError
from common.run import entry

import safetensors.torch
import torch

from labnet.config import Config


def main(argv: list[str]) -> Path:
    """Export one checkpoint; returns the file. Errors: InputError for weights that half precision cannot hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run")
    parser.add_argument("--out", required=True, type=Path, help="file to write, .safetensors")
    given = parser.parse_args(argv)
    if given.out.suffix != ".safetensors":
        raise InputError(f"--out {given.out}: give a name that ends in .safetensors")
    own = checkpoint.load_own(given.checkpoint, "labnet")
    stored = config.to_dict(config.from_dict(Config, own["config"]))
    weights = {name: value.contiguous().half() for name, value in own["state"]["model"].items()}
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"{given.checkpoint}: {broken[0]} has values beyond half precision; keep the checkpoint")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights, given.out, {"config": json.dumps(stored)})
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.2f} MB")
    return given.out


if __name__ == "__main__":
    entry(main)
