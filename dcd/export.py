"""A trained generator as an ONNX file, compared with torch on random images.

python export.py --checkpoint runs/cfg/distil/last.pt [--out generator.onnx] [--size 256]
"""

from common.gan import apply
from common.run import entry

from dcd.eval import load_generator


def main(argv: list[str]) -> dict:
    """Export and compare; returns path and largest difference."""
    return apply.export(argv, __doc__, load_generator)


if __name__ == "__main__":
    entry(main)
