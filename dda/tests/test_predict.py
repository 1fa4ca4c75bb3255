"""predict.py on files as people have them: formats, sizes, rotation, folders; and what it refuses."""

from pathlib import Path

from common import testing
from common.errors import InputError
from common.images import read_image, write_image

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dda import models, predict

PROJECT = Path(predict.__file__).parent


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    network = models.build("dmcnn", channels=4)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    safetensors.torch.save_file({k: v.half() for k, v in network.state_dict().items()}, path)
    return str(path)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(weights: str, out: Path, *words: str) -> list[Path]:
    return predict.main([*words, "--weights", weights, "--out", str(out), "--tile", "32x48"])


def test_it_is_typed(tmp_path, weights):
    write_image(tmp_path / "photo.png", noise(50, 70))
    words = ["predict.py", str(tmp_path / "photo.png"), "--weights", weights, "--out", str(tmp_path / "out"), "--map"]
    done = testing.python(PROJECT, [*words, "--tile", "32"])
    assert done.returncode == 0, done.stderr
    for name in ("photo.png", "photo_map.png"):
        assert read_image(tmp_path / "out" / name).shape == (50, 70, 3)
    assert "GMAC" in done.stdout and "at 0.75" in done.stdout


def test_odd_images_come_out_at_their_size(tmp_path, weights):
    pixels, folder = noise(41, 60), tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) << 8).save(folder / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned photo ü.jpg", exif=turned)
    Image.fromarray(pixels[:1, :1]).save(folder / "one.png")
    written = run(weights, tmp_path / "out", str(folder))
    sizes = {path.stem: read_image(path).shape[:2] for path in written}
    assert sizes == {
        "grey": (41, 60),
        "alpha": (41, 60),
        "sixteen": (41, 60),
        "turned photo ü": (60, 41),
        "one": (1, 1),
    }


def test_results_never_cover_each_other_or_an_input(tmp_path, weights):
    for name in ("a.png", "a.bmp", "a_map.png"):
        write_image(tmp_path / name, noise(32, 48))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    written = run(weights, tmp_path, str(tmp_path), "--map")
    assert len(set(written)) == 6 and not set(written) & before.keys()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_routes_overlap_and_precision(tmp_path, weights):
    write_image(tmp_path / "a.png", noise(64, 96))
    photo = str(tmp_path / "a.png")
    plain = read_image(run(weights, tmp_path / "1", photo)[0])
    assert np.array_equal(plain, read_image(run(weights, tmp_path / "2", photo)[0]))
    for words in (
        ("--route", "inverse"),
        ("--route", "fixed", "--fixed", "2"),
        ("--overlap", "16"),
        ("--route", "threshold", "--thresholds", "1e9", "1e8"),
        ("--route", "budget", "--budget", "0.7"),
    ):
        assert not np.array_equal(plain, read_image(run(weights, tmp_path / "3", photo, *words)[0])), words
    half = read_image(run(weights, tmp_path / "4", photo, "--precision", "bf16")[0]).astype(int)
    assert np.abs(half - plain).max() <= 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.png"], "no such file"),
        (["IMAGE", "--widths", "0.5", "1.5"], "widths"),
        (["IMAGE", "--widths", "0.25", "0.5", "0.75"], "widths"),
        (["IMAGE", "--budget", "0"], "budget"),
        (["IMAGE", "--route", "budget", "--budget", "0.01"], "below the narrowest"),
        (["IMAGE", "--route", "threshold"], "need 2 thresholds"),
        (["IMAGE", "--route", "threshold", "--thresholds", "1", "2"], "must fall"),
        (["IMAGE", "--fixed", "-1"], "position"),
        (["IMAGE", "--overlap", "40"], "overlap"),
        (["BROKEN"], "cannot be read"),
        (["EMPTY"], "no image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_refused(tmp_path, weights, words, message):
    write_image(tmp_path / "a.png", noise(64, 96))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "empty").mkdir()
    places = {"IMAGE": "a.png", "BROKEN": "broken.png", "EMPTY": "empty"}
    words = [str(tmp_path / places[word]) if word in places else word for word in words]
    with pytest.raises(InputError, match=message):
        run(weights, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_tile_must_suit_the_network(tmp_path, weights):
    write_image(tmp_path / "a.png", noise(64, 96))
    with pytest.raises(InputError, match="multiple of 16"):
        predict.main([str(tmp_path / "a.png"), "--weights", weights, "--out", str(tmp_path / "out"), "--tile", "40"])


def test_hostile_weights_are_not_executed(tmp_path):
    write_image(tmp_path / "a.png", noise(32, 48))
    path = testing.hostile(tmp_path / "weights.pth", tmp_path / "canary")
    with pytest.raises(InputError, match="cannot be read"):
        run(str(path), tmp_path / "out", str(tmp_path / "a.png"))
    assert not (tmp_path / "canary").exists()
