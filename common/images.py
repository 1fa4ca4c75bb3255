"""Image files to uint8 RGB arrays [H, W, 3] and back; what cannot be read is an InputError, never None.

The rules, with which a file has the pixels that the field's own loaders give it wherever they agree:
- the EXIF orientation is applied; of several frames the first is taken; colour profiles are ignored;
- grey is repeated; a palette, CMYK and other colour spaces are converted;
- alpha is dropped, not composited: the stored colour is what was measured, a background would be invented;
- 16 bits per channel keep their high byte (a 16-bit colour PPM: scaled); float and 32-bit pixels are refused.
"""

import io
import os
import uuid
import warnings
from pathlib import Path

from common.errors import InputError

import numpy as np
from PIL import Image, ImageOps

# Plain picture formats only: Pillow knows others that start outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
READABLE = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
# How each suffix is written: without loss, except JPEG, which at least keeps the colour's resolution.
WRITABLE = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".bmp": {"format": "BMP"},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
    ".webp": {"format": "WEBP", "lossless": True},
    ".ppm": {"format": "PPM"},
}


def _decode(data: bytes) -> np.ndarray:
    """The first frame by the rules above; raises whatever the decoder raises."""
    with warnings.catch_warnings():
        # Pillow only warns up to twice its limit on the number of pixels.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("float and 32-bit pixels have no range that could be known")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, in 32 bits when it comes from a PGM file
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
    image.info.pop("transparency", None)  # dropped like any alpha; Pillow would warn about it
    return np.array(image.convert("RGB"))


def decode_image(data: bytes, name: str = "image") -> np.ndarray:
    """An encoded image held in memory as uint8 RGB [H, W, 3]; `name` says in messages where it is from."""
    if not len(data):
        raise InputError(f"{name} is empty (0 bytes); replace or remove it")
    try:
        return _decode(bytes(data))
    except Exception as error:  # on broken bytes a decoder may raise nearly anything
        raise InputError(f"{name} cannot be read as an image: {error}; replace or remove it") from error


def read_image(path: str | os.PathLike) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3]."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"image {path} cannot be opened: {error.strerror}; check the path") from error
    return decode_image(data, f"image {path}")


def write_image(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB or [H, W] grey in the format of the suffix, whole or not at all; makes folders."""
    path, array = Path(path), np.asarray(array)
    if path.suffix.lower() not in WRITABLE:
        raise InputError(f"cannot write {path}: the suffix must be one of {', '.join(WRITABLE)}")
    if array.dtype != np.uint8 or not array.size or not (array.ndim == 2 or array.shape[2:] == (3,)):
        raise InputError(f"cannot write {path} from {array.dtype} {[*array.shape]}; give uint8 [H, W, 3] or [H, W]")
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(temporary, **WRITABLE[path.suffix.lower()])
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}; check the folder, its space and its rights") from error
    finally:
        # After a failure only; mkdir may have failed because a part of the path is a file.
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def list_images(folder: str | os.PathLike) -> list[Path]:
    """The image files of a folder by suffix, sorted by name; hidden files and subfolders are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder {folder} {'is a file' if folder.exists() else 'does not exist'}; give a folder")
    paths = (p for p in folder.iterdir() if p.suffix.lower() in READABLE and not p.name.startswith("."))
    found = sorted(p for p in paths if p.is_file())
    if not found:
        raise InputError(f"folder {folder} holds no image; looked for {', '.join(READABLE)}")
    return found
