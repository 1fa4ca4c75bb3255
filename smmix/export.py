"""A trained network as plain timm weights, without the token head that only training needs.

    python export.py --checkpoint runs/imagenet_deit_tiny/train/last.pt --out smmix_deit_tiny.safetensors

`timm.create_model("deit_tiny_patch16_224", checkpoint_path="smmix_deit_tiny.safetensors")` loads the result.
"""

import argparse
from pathlib import Path

from common.run import entry

from smmix import restore
from smmix.models.weights import write_timm


def main(argv: list[str]) -> Path:
    """Write the weights of one checkpoint; returns their path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    restore.add_options(parser)
    parser.add_argument("--out", required=True, help="file to write, .safetensors or .pth")
    given, overrides = parser.parse_known_args(argv)
    _, network = restore.restore(given, overrides)
    path = write_timm(network, given.out)
    print(f"{path} holds {network.architecture} with {network.num_classes} classes")
    return path


if __name__ == "__main__":
    entry(main)
