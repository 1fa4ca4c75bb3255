"""Files for a phone: equal to the networks they were made of, and routed in numpy as in torch."""

import json
from pathlib import Path

from common.errors import InputError
from common.images import read_image, write_image
from common.testing import python

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dda import bench, export, models, predict
from dda.inference import Demoirer
from dda.method.prior import moire_prior
from dda.method.routing import by_rank
from dda.metrics import to_uint8
from dda.models.weights import save_supernet
from dda.tests.oracle_networks import rule_weights

ROOT = Path(__file__).parent.parent
TILE = (32, 48)


def weights(folder: Path, name: str) -> Path:
    save_file(rule_weights(models.build(name, channels=8), 1).state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Path]:
    """(weights, ONNX folder) of a small DMCNN."""
    pytest.importorskip("onnxruntime")
    path = weights(tmp_path_factory.mktemp("dmcnn"), "dmcnn")
    return path, export.main(["--weights", str(path), "--tile", "32x48", "--out", str(path.parent / "phone")])


def check_files(path: Path, folder: Path, widths: list[float]) -> None:
    """Each ONNX file gives what the supernet of `path` gives at its width."""
    onnxruntime = pytest.importorskip("onnxruntime")
    routing = json.loads((folder / "routing.json").read_text())
    assert routing["tile"] == [*TILE] and [entry["width"] for entry in routing["widths"]] == widths
    network = models.restore(path)
    x = torch.rand(1, 3, *TILE)
    for entry in routing["widths"]:
        session = onnxruntime.InferenceSession(folder / entry["file"], providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"moire": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), network(x, entry["width"])[-1], atol=1e-5, rtol=0)
        assert entry["macs"] == models.macs(network, entry["width"], TILE)


def test_onnx_files_hold_the_sub_networks(exported):
    check_files(*exported, [0.75, 0.5, 0.25])


def test_an_onnx_file_holds_mbcnn_folded(tmp_path: Path):
    path = weights(tmp_path, "mbcnn")
    words = ["--weights", str(path), "--tile", "32x48", "--widths", "0.5", "--out", str(tmp_path / "phone")]
    check_files(path, export.main(words), [0.5])


def test_torchscript_files_hold_the_sub_networks(tmp_path: Path):
    words = ["--weights", str(weights(tmp_path, "dmcnn")), "--tile", "32x48", "--out", str(tmp_path / "phone")]
    folder = export.main([*words, "--format", "torchscript", "--widths", "0.5", "0.25"])
    network, x = models.restore(tmp_path / "w.safetensors"), torch.rand(1, 3, *TILE)
    with torch.no_grad():
        found = torch.jit.load(folder / "w025.pt")(x)
        torch.testing.assert_close(found, network(x, 0.25)[-1], atol=1e-6, rtol=0)


def test_the_phone_restores_a_picture_as_torch_does(exported, tmp_path: Path):
    path, folder = exported
    picture = bench.picture(64, 144)
    write_image(tmp_path / "photo.png", picture.permute(1, 2, 0).contiguous().numpy())
    done = python(ROOT, ["phone.py", str(folder), str(tmp_path / "photo.png"), str(tmp_path / "clean.png")])
    assert done.returncode == 0, done.stderr
    assert "[2, 2, 2]" in done.stdout
    result = Demoirer(models.restore(path), (0.75, 0.5, 0.25), tile=TILE)(picture)
    expected = to_uint8(result.image, "round").permute(1, 2, 0).numpy()
    found = read_image(tmp_path / "clean.png")
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_phones_prior_and_ranks_are_the_methods():
    phone = pytest.importorskip("dda.phone")
    tiles = torch.randint(0, 256, (7, 3, 40, 72), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    tiles = (tiles * torch.linspace(0.1, 1, 7)[:, None, None, None]).to(torch.uint8)
    arrays = tiles.permute(0, 2, 3, 1).numpy()
    found = [phone.colourfulness(tile) * phone.frequency(tile) for tile in arrays]
    np.testing.assert_allclose(found, moire_prior(tiles).numpy(), rtol=2e-3)
    for count, widths in ((4, 3), (6, 3), (7, 3), (5, 2), (1, 3)):
        scores = torch.rand(count, generator=torch.Generator().manual_seed(count))
        assert phone.choose(scores.tolist(), widths).tolist() == by_rank(scores, widths).tolist()


def test_the_phone_takes_a_picture_that_tiles_do_not_fill(exported):
    phone = pytest.importorskip("dda.phone")
    restored, choice = phone.Demoirer(exported[1])(bench.picture(50, 20).permute(1, 2, 0).numpy())
    assert restored.shape == (50, 20, 3) and len(choice) == 2


def test_a_stored_supernet_knows_its_head_and_widths(tmp_path: Path):
    network = rule_weights(models.build("dmcnn", channels=8, head="residual"), 1)
    save_supernet(network, (0.8, 0.5, 0.3), tmp_path / "w.safetensors")
    words = ["--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out"), "--format", "supernet"]
    restored, widths = predict.load(export.main(words) / "dmcnn_dda.safetensors", None)
    assert widths == (0.8, 0.5, 0.3)
    x = torch.rand(1, 3, *TILE)
    with torch.no_grad():
        torch.testing.assert_close(restored(x, 0.5)[-1], network(x, 0.5)[-1], atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    "words", [["--tile", "40x48"], ["--widths", "0.5", "0.75"], ["--widths", "1.5"], ["--widths", "0"]]
)
def test_words_that_do_not_fit_are_refused(words, tmp_path: Path):
    with pytest.raises(InputError):
        export.main(["--weights", str(weights(tmp_path, "dmcnn")), "--out", str(tmp_path / "phone"), *words])
    assert not (tmp_path / "phone").exists()


def test_the_phone_says_what_is_missing(tmp_path: Path):
    done = python(ROOT, ["phone.py", str(tmp_path), "a.png", "b.png"])
    assert done.returncode == 2 and done.stderr.startswith("error:") and "Traceback" not in done.stderr


def test_the_bench_writes_the_rows_that_are_asked_for(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "bench.py"))
    monkeypatch.setattr(bench, "PATCH", {"mbcnn": 16, "dmcnn": 16})
    monkeypatch.setattr(bench, "build", lambda name: models.build(name, channels=8))
    rows = bench.main(["--rounds", "1", "--size", "64", "--memory", "false"])
    wanted = {"infer_mbcnn_64", "infer_dmcnn_64", "prior", "step_mbcnn", "step_dmcnn"}
    assert wanted <= rows.keys() and all(row["cost"] > 0 for row in rows.values())
    assert json.loads((tmp_path / "runs" / "bench.json").read_text()).keys() == rows.keys()
    with pytest.raises(InputError):
        bench.main(["--size", "100"])
