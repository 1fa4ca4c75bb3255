"""Translate images or folders of images of any size with a trained generator.

    python predict.py horse.jpg photos/ --weights runs/horse2zebra/distil/last.pt --out translated
    python predict.py photos/ --weights best_net_G.pth --config configs/horse2zebra.yaml --out translated

Writes OUT/NAME.png for each image and OUT/index.html, a page of sources beside results.
"""

from pathlib import Path

from common.gan import apply
from common.run import entry

from dcd.eval import load_generator


def main(argv: list[str]) -> list[Path]:
    """Translate all inputs; returns the paths of the results."""
    return apply.predict(argv, __doc__, load_generator)


if __name__ == "__main__":
    entry(main)
