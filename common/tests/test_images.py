"""Every kind of file has stated pixels or an InputError that names it."""

import io
import os
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

from common.errors import InputError
from common.images import decode_image, list_images, read_image, write_image

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def noise(height=6, width=9, channels=3, dtype=np.uint8, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def by_opencv(array, suffix):
    """Encode with OpenCV, which writes 16-bit colour (from BGR)."""
    done, data = cv2.imencode(suffix, array)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_colour_is_rgb(image_format):
    pixels = noise()
    assert np.array_equal(decode_image(encoded(pixels, image_format)), pixels)


def test_grey_and_bilevel_are_repeated():
    grey = noise(channels=0)
    assert np.array_equal(decode_image(encoded(grey)), np.repeat(grey[..., None], 3, 2))
    bits = grey > 127
    assert np.array_equal(decode_image(encoded(Image.fromarray(bits))), np.repeat(bits[..., None], 3, 2) * 255)


@pytest.mark.filterwarnings("error")
def test_palette_is_looked_up():
    colours = np.uint8([[250, 0, 7], [1, 2, 3], [90, 80, 70]])
    index = noise(channels=0) % 3
    image = Image.fromarray(index).convert("P")
    image.putpalette(colours.tobytes())
    for options in ({}, {"transparency": 1}, {"transparency": b"\x00\x80\xff"}):
        assert np.array_equal(decode_image(encoded(image, **options)), colours[index])


def test_alpha_is_dropped():
    pixels = noise(channels=4)
    pixels[0, 0] = 200, 100, 50, 0
    assert np.array_equal(decode_image(encoded(pixels)), pixels[..., :3])
    pair = Image.fromarray(pixels[..., 0]).convert("LA")
    pair.putalpha(Image.fromarray(pixels[..., 3]))
    assert np.array_equal(decode_image(encoded(pair)), np.repeat(pixels[..., :1], 3, 2))


def test_sixteen_bits_keep_the_high_byte():
    colour, grey = noise(channels=4, dtype=np.uint16), noise(channels=0, dtype=np.uint16)
    for suffix in (".png", ".tiff"):
        assert np.array_equal(decode_image(by_opencv(colour[..., :3], suffix)), colour[..., 2::-1] >> 8)
        assert np.array_equal(decode_image(by_opencv(colour, suffix)), colour[..., 2::-1] >> 8)
    for suffix in (".png", ".tiff", ".pgm"):
        assert np.array_equal(decode_image(by_opencv(grey, suffix)), np.repeat(grey[..., None] >> 8, 3, 2))


def test_cmyk_is_converted():
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # leaves no red
    pixels = decode_image(encoded(cyan, "JPEG", quality=100))
    assert np.abs(pixels.astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    pixels = noise(4, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = [
        pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1],
        pixels.swapaxes(0, 1), np.rot90(pixels, -1), pixels[::-1, ::-1].swapaxes(0, 1), np.rot90(pixels),
    ]  # fmt: skip
    assert np.array_equal(decode_image(encoded(pixels, exif=exif)), turned[orientation - 1])


def test_the_first_frame_is_taken():
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_image(data), np.asarray(frames[0]))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(dtype):
    with pytest.raises(InputError, match="no range"):
        decode_image(encoded(noise(channels=0).astype(dtype), "TIFF"))


def files(folder):
    """Unreadable files: name to what the message must say."""
    png, jpeg = encoded(noise(60, 80)), encoded(noise(60, 80), "JPEG")
    (folder / "empty.png").touch()
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.png").write_text("not an image\n" * 20)
    (folder / "folder.png").mkdir()
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    return {
        "missing.png": "No such file", "empty.png": "0 bytes", "truncated.png": "truncated",
        "truncated.jpg": "truncated", "text.png": "identify", "folder.png": "directory", "script.png": "identify",
    }  # fmt: skip


def test_unreadable_files_are_named(tmp_path):
    for name, cause in files(tmp_path).items():
        with pytest.raises(InputError, match=cause) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def bomb(side):
    """A PNG of a few hundred bytes that claims side x side pixels."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])  # Pillow's warning, and Pillow's error
def test_decompression_bombs_are_refused(side):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"^upload\.png .*decompression bomb"):
            decode_image(bomb(side), "upload.png")


KINDS = st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
SIZES = st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([(1, 1), (1, 5000), (5000, 1)]))
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=40)
FORMATS = {"CMYK": "JPEG", "I;16": "PNG"}


@settings(max_examples=60, deadline=None)
@given(kind=KINDS, size=SIZES, name=NAMES, seed=st.integers(0, 9))
def test_any_picture_keeps_its_size(kind, size, name, seed):
    if kind == "I;16":
        image = Image.fromarray(noise(*size, channels=0, dtype=np.uint16, seed=seed))
    else:
        image = Image.fromarray(noise(*size, seed=seed)).convert(kind)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / f"{name}.png"
        path.write_bytes(encoded(image, FORMATS.get(kind, "PNG")))
        pixels = read_image(path)
    assert (pixels.shape, pixels.dtype) == ((*size, 3), np.uint8)
    assert pixels.flags.c_contiguous and pixels.flags.writeable


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(
    image_format=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF"]),
    cut=st.floats(0, 1), changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
)  # fmt: skip
def test_broken_bytes_give_pixels_or_an_input_error(image_format, cut, changes):
    data = bytearray(encoded(noise(16, 16), image_format))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        pixels = decode_image(bytes(data[: int(cut * len(data))]), "x")
    except InputError as error:
        assert str(error).startswith("x ")
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


@settings(max_examples=40, deadline=None)
@given(
    size=SIZES,
    name=NAMES,
    suffix=st.sampled_from([".png", ".PNG", ".bmp", ".tif", ".webp", ".ppm"]),
    grey=st.booleans(),
)
def test_written_images_are_read_back(size, name, suffix, grey):
    pixels = noise(*size, channels=0 if grey else 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / f"a{name}{suffix}"
        write_image(path, pixels)
        assert np.array_equal(read_image(path), np.repeat(pixels[..., None], 3, 2) if grey else pixels)
        assert [path] == list_images(path.parent) == [*path.parent.iterdir()]


def test_jpeg_keeps_the_resolution_of_colour(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, ::2] = 255, 0, 0
    pixels[:, 1::2] = 0, 0, 255
    write_image(tmp_path / "stripes.jpg", pixels)
    assert np.abs(read_image(tmp_path / "stripes.jpg").astype(int) - pixels).max() < 60


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, noise(seed=1))

    def fail(self, file, **options):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(InputError, match="No space left"):
        write_image(path, noise(seed=2))
    assert np.array_equal(read_image(path), noise(seed=1))
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_cannot_be_written_is_refused(tmp_path):
    for array in (noise().astype(np.float32), noise(channels=4), noise()[..., :0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="give uint8"):
            write_image(tmp_path / "a.png", array)
    with pytest.raises(InputError, match=r"\.png, \.jpg"):
        write_image(tmp_path / "a.xyz", noise())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        write_image(tmp_path / "file" / "a.png", noise())


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "é ü.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.PNG", "é ü.png"]
    with pytest.raises(InputError, match="does not exist"):
        list_images(tmp_path / "missing")
    with pytest.raises(InputError, match="is a file"):
        list_images(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="holds no image"):
        list_images(tmp_path / "folder.png")
