"""The commands as a user runs them: train, kill, resume, distribute, evaluate, predict; and what they refuse."""

import contextlib
import json
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, NonFiniteError
from common.finite import FiniteWatch
from common.images import read_image, write_image
from common.testing import assert_same, log, state

import numpy as np
import pytest
import torch

from labnet import data, eval, export, predict, train
from labnet.config import Config
from labnet.method import losses
from labnet.tests.test_data import triplet_folder

PROJECT = Path(train.__file__).parent
# Three steps an epoch; dilations up to 8.
TINY = {
    "data.count": 6,
    "data.test_count": 2,
    "data.picture": 64,
    "data.load_size": 40,
    "data.upper": 56,
    "data.crop": 32,
    "data.batch_size": 2,
    "model.channels": 4,
    "model.reach": 8,
    "model.lsa_size": 24,
    "optim.flat": 1,
    "optim.decay": 2,
    "run.log_every": 1,
}


arguments = partial(testing.arguments, PROJECT / "cfg.yaml", TINY)
command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    train.main(arguments(out))
    return out / "train"


@pytest.mark.smoke
def test_smoke(tmp_path):
    """Two steps and an evaluation, as typed."""
    short = ["--data.count=8", "--data.test_count=2", "--optim.flat=1", "--optim.decay=0"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "train"
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "env.json", "log.jsonl", "last.pt", "best.pt", "samples"} <= files
    assert checkpoint.load(folder / "last.pt")["step"] == 2
    done = command(["eval.py", "--checkpoint", str(folder / "last.pt")])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["error_s_full_d50"] > 0 and metrics["input_error_s_full_d50"] > 0 and metrics["params"] == 62_203
    assert "error_s" in done.stdout


@pytest.mark.parametrize(
    ("options", "step"),
    [({}, 1), ({"data__workers": 2}, 5), ({"data__validation": 0.34, "eval__every": 1}, 4)],
    ids=["before any checkpoint", "two workers, inside an epoch", "with validation"],
)
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, trained, options, step):
    straight, killed = trained, tmp_path / "killed" / "train"
    if "data__validation" in options:
        straight = train.main(arguments(tmp_path / "straight", **options)) / "train"
    words = arguments(tmp_path / "killed", run__save_every=2, **options)
    assert interrupted(words, 9, step).returncode == -9
    train.main([*words, "--resume", "auto"])
    assert_same(state(straight), state(killed))
    assert log(straight) == log(killed)


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path, trained):
    words = arguments(tmp_path / "stopped")
    done = interrupted(words, 15, 4)
    assert done.returncode == 143 and "--resume auto" in done.stderr
    assert state(tmp_path / "stopped" / "train")["step"] == 4
    assert command(["train.py", *words, "--resume", "auto"]).returncode == 0
    assert_same(state(trained), state(tmp_path / "stopped" / "train"))
    assert log(trained) == log(tmp_path / "stopped" / "train")


def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path):
    # Five pictures leave a last batch of one, so that a process has nothing of its own.
    options = {"data__count": 5, "run__device": "cpu"}
    train.main(arguments(tmp_path / "one", run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", **options))
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "train")["state"] for name in ("one", "two"))
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], rtol=0, atol=1e-5), key


def test_another_seed_is_another_run(tmp_path, trained):
    other = train.main(arguments(tmp_path, seed=1)) / "train"
    one, two = (state(folder)["state"]["model"]["convst.conv2d.weight"] for folder in (trained, other))
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    "options",
    [
        {"run__precision": "bf16"},
        {"model__space": "rgb", "data__fill": "ignored", "data__turned": "swapped"},
        {"model__branches": "one", "model__lab": "float"},
    ],
    ids=str,
)
def test_variants_run(tmp_path, options):
    train.main(arguments(tmp_path, optim__decay=0, **options))
    assert all(np.isfinite(line.get("squared", 0)) for line in log(tmp_path / "train"))


def test_a_step_never_waits_for_the_device(monkeypatch):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    conf = config.override(config.load(Config, PROJECT / "cfg.yaml"), [f"--{k}={v}" for k, v in TINY.items()])
    network = train.build(conf)
    values = data.TrainingSet(data.load(conf)[0], conf, network).fetch(torch.arange(3), 1)
    values = {name: value.to("meta") for name, value in values.items()}
    step = train.Step(network.to("meta"), train.VGGFeatures((2,) * 13).to("meta"), conf)
    optimiser, finite = torch.optim.Adam(network.parameters()), FiniteWatch()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown to that device
    terms = step(values)
    sum(terms.values()).backward()
    finite.note(1, {**terms, "gradient": torch.nn.utils.get_total_norm([p.grad for p in network.parameters()])})
    optimiser.step()
    with pytest.raises(NotImplementedError, match="meta"):
        finite.require("a read", "of the device")


def test_it_learns(tmp_path):
    """The squared error on two pictures falls to a third, from the paper's random start."""
    train.main(arguments(tmp_path, data__count=2, optim__flat=40, optim__lr=2e-3, model__start="kaiming"))
    squared = [line["squared"] for line in log(tmp_path / "train") if "squared" in line]
    assert np.mean(squared[-8:]) < np.mean(squared[:8]) / 3


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    calls = []

    def spoiled(*inputs):
        calls.append(1)
        terms = losses(*inputs)
        return {**terms, "squared": terms["squared"] * float("nan")} if len(calls) == 5 else terms

    monkeypatch.setattr(train, "losses", spoiled)
    with pytest.raises(NonFiniteError, match=r"step 5 of stage train: squared, gradient"):
        train.main(arguments(tmp_path))
    saved = checkpoint.load(tmp_path / "train" / "last.pt")
    assert saved["step"] == 3 and all(value.isfinite().all() for value in saved["state"]["model"].values())


def test_best_is_the_lowest_sum_of_the_loss(trained):
    sums = [line["loss_sum"] for line in log(trained) if line["split"] == "epoch"]
    assert len(sums) == 3 and checkpoint.load(trained / "last.pt")["state"]["best"] == pytest.approx(min(sums))
    best = checkpoint.load(trained / "best.pt")
    assert best["epoch"] == int(np.argmin(sums)) + 2  # a checkpoint names the epoch that follows


def test_eval_names_its_protocols_and_survives_empty_and_full_masks(tmp_path, trained):
    root = triplet_folder(tmp_path / "set")
    for number, level in enumerate((0, 255)):
        write_image(root / "test_B" / f"{number}.png", np.full((60, 80), level, np.uint8))
    words = ["--checkpoint", str(trained / "last.pt"), "--out", str(tmp_path / "metrics.json")]
    words += ["--data.name=triplets", f"--data.root={root}", "--eval.protocols=[256_d50,full_d65]"]
    found = eval.main([*words, "--pictures", str(tmp_path / "pictures")])
    assert found["skipped_s_256_d50"] == 1 and found["skipped_ns_full_d65"] == 1
    for prefix in ("", "input_", "relight_"):
        assert {f"{prefix}{name}_{p}" for name in eval.COLUMNS[:3] for p in ("256_d50", "full_d65")} <= found.keys()
    # Shadow and shadow-free pictures are equal in this set: the input's PSNR is infinite and left out.
    assert "psnr_all_256_d50" in found and "input_psnr_all_256_d50" not in found
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert len([*(tmp_path / "pictures").iterdir()]) == 3


def test_predict_and_export(tmp_path, trained):
    folder = triplet_folder(tmp_path / "set", 2)
    exported = export.main(["--checkpoint", str(trained / "last.pt"), "--out", str(tmp_path / "w.safetensors")])
    photo, mask = folder / "test_A" / "0.png", folder / "test_B" / "0.png"
    results = []
    for number, weights in enumerate((trained / "last.pt", exported)):
        words = [str(photo), "--mask", str(mask), "--weights", str(weights), "--out", str(tmp_path / str(number))]
        (path,) = predict.main(words)
        results.append(read_image(path).astype(int))
    assert np.abs(results[0] - results[1]).mean() < 2  # half precision
    judged = ["--out", str(tmp_path / "metrics.json")]
    ours, packed = (eval.main(["--checkpoint", str(path), *judged]) for path in (trained / "last.pt", exported))
    assert packed["error_all_full_d50"] == pytest.approx(ours["error_all_full_d50"], rel=0.05)
    (path,) = predict.main([*words[:-1], str(tmp_path / "pasted"), "--paste"])
    lit = read_image(mask)[..., 0] == 0
    assert np.array_equal(read_image(path)[lit], read_image(photo)[lit])
    words = [str(folder / "test_A"), "--weights", str(exported), "--out", str(tmp_path / "all")]
    assert len(predict.main(words)) == 2  # without masks, by the stand-in for a detector
    assert len(predict.main([*words, "--mask", str(folder / "test_B")])) == 2
    write_image(tmp_path / "twins" / "0.png", read_image(photo))
    write_image(tmp_path / "twins" / "0.bmp", read_image(photo))
    with pytest.raises(InputError, match="several photographs are called 0"):
        predict.main([str(tmp_path / "twins"), *words[1:]])
    (path,) = predict.main([str(photo), *words[1:-1], str(tmp_path / "small"), "--longest", "40"])
    assert read_image(path).shape == (30, 40, 3)
    (folder / "test_B" / "1.png").unlink()
    with pytest.raises(InputError, match=r"no mask for 1\.png"):
        predict.main([*words, "--mask", str(folder / "test_B")])
    refused = ["--mask", str(folder / "test_B"), "--weights", str(exported), "--out", str(tmp_path / "none")]
    for levels, message in ((np.zeros((61, 80), np.uint8), "80x61.*80x60"), (np.eye(60, 80, dtype=np.uint8), "above")):
        write_image(folder / "test_B" / "1.png", levels)
        with pytest.raises(InputError, match=message):
            predict.main([str(folder / "test_A"), *refused])
    write_image(folder / "test_A" / "1.png", np.zeros((4, 80, 3), np.uint8))
    with pytest.raises(InputError, match="too small"):
        predict.main([str(folder / "test_A"), *refused[2:]])
    assert not (tmp_path / "none").exists()


def test_a_detector_can_be_given(trained):
    network, conf = predict.load(trained / "last.pt")
    dark = np.full((40, 50, 3), 200, np.uint8)
    dark[10:30, 10:30] = 40
    guess = predict.dark_regions(dark)
    assert guess[20, 20] == 255 and guess[2, 2] == 0
    asked = []
    predict.predict(network, conf, dark, detector=lambda p: asked.append(p) or guess)
    assert len(asked) == 1


def test_weights_of_others_are_refused_and_never_executed(tmp_path):
    bad = testing.hostile(tmp_path / "bad.pt", tmp_path / "canary")
    with pytest.raises(CheckpointError):
        predict.load(bad)
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        predict.load(tmp_path / "cut.safetensors")
    assert not (tmp_path / "canary").exists()
    done = command(["eval.py", "--checkpoint", str(tmp_path / "none.pt")])
    assert done.returncode == 2 and "there is no such checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_bad_input_exits_with_2_and_writes_nothing(tmp_path):
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), "--data.crop", "65"])
    assert done.returncode == 2 and done.stderr.startswith("error: data.crop 65") and "Traceback" not in done.stderr
    with pytest.raises(CheckpointError, match="no such file"):
        train.main(arguments(tmp_path / "run", loss__vgg="nowhere.pth"))
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_one_step_of_every_config(tmp_path, path):
    root = triplet_folder(tmp_path / "set", 2, (410, 420))
    for part in ("train", "test"):
        (root / f"{part}_C").rename(root / f"{part}_C_fixed_official")
        for file in (root / f"{part}_C_fixed_official").iterdir():
            write_image(root / f"{part}_C" / file.name, read_image(file))
    photographs = tmp_path / "photographs"
    for number in range(3):
        write_image(photographs / f"{number}.png", read_image(root / "train_A" / "0.png"))
    given = photographs if path.stem == "photographs" else root
    short = ["--optim.flat=1", "--optim.decay=0", "--model.channels=4", "--data.test_count=1", "--data.count=4"]
    train.main(["--config", str(path), "--out", str(tmp_path / "run"), f"--data.root={given}", *short])
    assert state(tmp_path / "run" / "train")["step"] >= 1
