"""The whole method as a phone would run it: prior, ranks and routing in numpy, networks in onnxruntime; no torch.

    python phone.py FOLDER photo.jpg clean.png        FOLDER is what export.py has written

A template to be carried over to Kotlin, Swift or C++: what is needed there are a resize, a two-dimensional FFT and an
ONNX runtime. Tiles lie side by side; a picture that they do not fill is continued by reflection.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

D0 = 5.0  # cut-off of the high-pass in bins of the discrete Fourier transform
SIDE = 256  # colourfulness is taken at this size


def resize(tile: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to float [256, 256, 3]: bilinear between the two nearest pixels, no averaging (as OpenCV)."""
    values = tile.astype(np.float64)
    for axis in (0, 1):
        length = values.shape[axis]
        at = np.clip((np.arange(SIDE) + 0.5) * length / SIDE - 0.5, 0, length - 1)
        before = np.minimum(at.astype(int), length - 2)
        share = np.expand_dims(at - before, (1 - axis, 2))
        values = values.take(before, axis) * (1 - share) + values.take(before + 1, axis) * share
    return values


def colourfulness(tile: np.ndarray) -> float:
    """Spread and mean of the opponent colours of a tile uint8 [H, W, 3], at 256 x 256 (section 2.1)."""
    red, green, blue = np.moveaxis(np.rint(resize(tile)), 2, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue]).reshape(2, -1)
    return float(np.hypot(*opponents.std(1, ddof=1)) + 0.3 * np.hypot(*opponents.mean(1)))


def frequency(tile: np.ndarray) -> float:
    """Mean magnitude of what a Gaussian high-pass leaves of the grey tile (section 2.1)."""
    red, green, blue = np.moveaxis(tile.astype(np.int64), 2, 0)
    grey = (9798 * red + 19235 * green + 3735 * blue + 16384) >> 15
    rows, columns = (np.fft.fftfreq(n, 1 / n) for n in grey.shape)
    keep = 1 - np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * D0**2))
    left = np.abs(np.fft.ifft2(np.fft.fft2(grey) * keep))
    return float(np.minimum(255, np.rint(left)).mean())


def choose(scores: list[float], widths: int) -> np.ndarray:
    """The width of each tile, 0 the widest: the higher a tile ranks in its image, the wider (section 2.7)."""
    each, left = divmod(len(scores), widths)
    middle_first = sorted(range(widths), key=lambda i: (abs(2 * i - widths + 1), i))
    counts = [each + (i in middle_first[:left]) for i in range(widths)]
    choice = np.empty(len(scores), int)
    choice[np.argsort(scores, kind="stable")] = np.repeat(np.arange(widths)[::-1], counts[::-1])
    return choice


class Demoirer:
    """The networks of a folder that export.py has written."""

    def __init__(self, folder: Path):
        routing = json.loads((folder / "routing.json").read_text(encoding="utf-8"))
        self.height, self.width = routing["tile"]
        files = [folder / entry["file"] for entry in routing["widths"]]
        self.sessions = [onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files]

    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 RGB [H, W, 3] -> the restored picture, same shape, and the width index of each tile, row by row."""
        height, width = picture.shape[:2]
        down, right = -height % self.height, -width % self.width
        padded = np.pad(picture, ((0, down), (0, right), (0, 0)), "reflect")
        places = [
            (slice(top, top + self.height), slice(left, left + self.width))
            for top in range(0, height, self.height)
            for left in range(0, width, self.width)
        ]
        choice = choose([colourfulness(padded[p]) * frequency(padded[p]) for p in places], len(self.sessions))
        result = np.empty_like(padded)
        for place, index in zip(places, choice):
            tile = np.moveaxis(padded[place], 2, 0)[None].astype(np.float32) / 255
            (clean,) = self.sessions[index].run(None, {"moire": tile})
            result[place] = np.moveaxis(np.rint(np.clip(clean[0], 0, 1) * 255).astype(np.uint8), 0, 2)
        return result[:height, :width], choice


def main(words: list[str]) -> int:
    """Restore one picture; 2 if the words or files cannot be used."""
    if len(words) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    folder, source, target = map(Path, words)
    try:
        demoirer = Demoirer(folder)
        with Image.open(source) as image:
            picture = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}; give a folder of export.py --format onnx, and a picture", file=sys.stderr)
        return 2
    clean, choice = demoirer(picture)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(clean).save(target)
    print(f"{target}: tiles per width, widest first: {np.bincount(choice, minlength=len(demoirer.sessions)).tolist()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
