"""The commands as a user runs them: train, kill, resume, distribute, evaluate, predict; and what they refuse."""

import json
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError
from common.images import read_image, write_image
from common.testing import assert_same, log, state

import numpy as np
import pytest
import torch

from hqss import eval, predict, train, video, weights
from hqss.config import Config
from hqss.tests.test_data import istd

PROJECT = Path(train.__file__).parent
# Three steps an epoch with a last batch of one item; the replay buffers are full after the first epoch.
TINY = {
    "data.count": 5,
    "data.batch_size": 2,
    "data.side": 40,
    "data.size": 36,
    "data.crop": 32,
    "data.test_count": 4,
    "data.test_side": 36,
    "data.min_pixels": 1,
    "networks.generator": 4,
    "networks.remover": 2,
    "networks.discriminator": 2,
    "synthesis.pool": 3,
    "optim.synthesis_epochs": 3,
    "optim.removal_epochs": 3,
    "optim.decay": 1,
    "run.log_every": 1,
}


arguments = partial(testing.arguments, PROJECT / "cfg.yaml", TINY)
command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return train.main(arguments(tmp_path_factory.mktemp("straight")))


@pytest.mark.smoke
def test_smoke(tmp_path):
    """Two steps of both stages and an evaluation, as typed."""
    short = ["--optim.synthesis_epochs=1", "--optim.removal_epochs=1", "--data.count=8", "--data.min_pixels=0"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    for stage in train.STAGES:
        files = {path.name for path in (tmp_path / "run" / stage).iterdir()}
        assert {"config.yaml", "env.json", "log.jsonl", "last.pt", "samples"} <= files
        assert checkpoint.load(tmp_path / "run" / stage / "last.pt")["step"] == 2
        done = command(["eval.py", "--checkpoint", str(tmp_path / "run" / stage / "last.pt")])
        assert done.returncode == 0, done.stderr
        metrics = json.loads((tmp_path / "run" / stage / "metrics.json").read_text())
        assert ("error_s" if stage == "removal" else "synth_error") in metrics


@pytest.mark.parametrize(("stage", "step"), [("synthesis", 1), ("synthesis", 5), ("synthesis", 7), ("removal", 5)])
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, straight, stage, step):
    if stage == "removal":  # both stages number their steps alike
        train.main([*arguments(tmp_path), "--stage", "synthesis"])
    words = [*arguments(tmp_path, run__save_every=2), "--stage", stage]
    killed = interrupted(words, 9, step)
    assert killed.returncode == -9, killed.stderr
    train.main([*words, "--resume", "auto"])
    assert_same(state(straight / stage), state(tmp_path / stage))
    assert log(straight / stage) == log(tmp_path / stage)


def test_sigterm_finishes_the_step_and_saves(tmp_path):
    done = interrupted(arguments(tmp_path), 15, 2)
    assert done.returncode == 143 and "--resume auto" in done.stderr
    assert state(tmp_path / "synthesis")["step"] == 2


def test_workers_do_not_change_a_bit_and_seeds_do(tmp_path, straight):
    short = {"optim__synthesis_epochs": 1}
    runs = {"none": {}, "workers": {"data__workers": 2}, "seed": {"seed": 1}}
    for name, options in runs.items():
        train.main([*arguments(tmp_path / name, **short, **options), "--stage", "synthesis"])
    weights = {name: state(tmp_path / name / "synthesis")["state"]["generator"] for name in runs}
    assert_same(weights["none"], weights["workers"])
    assert not torch.equal(weights["none"]["conv1_b.1.weight"], weights["seed"]["conv1_b.1.weight"])


def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path):
    options = {"run__device": "cpu", "optim__synthesis_epochs": 2, "optim__removal_epochs": 2, "synthesis__pool": 1}
    train.main(arguments(tmp_path / "one", run__micro_batches=2, data__count=6, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", data__count=6, **options))
    assert done.returncode == 0, done.stderr
    for stage, names in {"synthesis": ("encoder", "generator", "critic_lit"), "removal": ("coarse", "refine")}.items():
        one, two = (state(tmp_path / name / stage)["state"] for name in ("one", "two"))
        for name in names:
            for key, value in one[name].items():
                # Biases in front of InstanceNorm have no gradient but rounding, which Adam scales up to its rate.
                if key.endswith("weight"):
                    assert torch.allclose(value, two[name][key], rtol=0, atol=1e-4), (stage, name, key)


def test_a_step_without_usable_items_is_skipped(tmp_path):
    words = arguments(tmp_path, data__min_pixels=32 * 32 + 1, optim__synthesis_epochs=1)
    train.main([*words, "--stage", "synthesis"])
    assert all(line.get("usable", 0) == 0 and "self_lit" not in line for line in log(tmp_path / "synthesis"))
    assert not state(tmp_path / "synthesis")["state"]["optimiser"]["state"]


def test_the_control_needs_no_synthesis_and_test_selection_is_labelled(tmp_path):
    train.main(arguments(tmp_path, removal__pairs="gain", optim__select="test", optim__removal_epochs=2))
    assert not (tmp_path / "synthesis").exists() and (tmp_path / "removal" / "best.pt").exists()
    chosen = [line for line in log(tmp_path / "removal") if line["split"] == "test_selected"]
    best = checkpoint.load(tmp_path / "removal" / "best.pt")["state"]["best"]
    assert len(chosen) == 2 and best == min(line["error_s"] for line in chosen)


def test_the_rate_follows_the_schedule(straight):
    rates = {line["epoch"]: line["lr"] for line in log(straight / "removal") if line["split"] == "train"}
    assert rates == pytest.approx({1: 2e-4, 2: 2e-4, 3: 1e-4})


def test_stage_2_takes_weights_of_a_run_or_of_the_release(tmp_path, straight):
    last = straight / "synthesis" / "last.pt"
    train.main(arguments(tmp_path / "own", synthesis__checkpoint=last))
    assert_same(state(straight / "removal")["state"]["coarse"], state(tmp_path / "own" / "removal")["state"]["coarse"])
    content = checkpoint.load(last)["state"]
    for name in ("encoder", "generator"):
        torch.save(content[name], tmp_path / f"{name}.pth")
    files = {f"synthesis__{name}": tmp_path / f"{name}.pth" for name in ("encoder", "generator")}
    train.main(arguments(tmp_path / "release", **files))
    assert_same(*(state(x / "removal")["state"]["refine"] for x in (straight, tmp_path / "release")))
    with pytest.raises(InputError, match="go together"):
        train.main(arguments(tmp_path / "half", synthesis__encoder=tmp_path / "encoder.pth"))
    assert not (tmp_path / "half").exists()


def test_stage_2_without_stage_1_is_refused(tmp_path):
    with pytest.raises(InputError, match="stage synthesis first"):
        train.main([*arguments(tmp_path / "run"), "--stage", "removal"])


def test_bf16_trains(tmp_path):
    train.main(arguments(tmp_path, run__precision="bf16", optim__synthesis_epochs=1, optim__removal_epochs=1))
    lines = [line for line in log(tmp_path / "synthesis") if line["split"] == "train"]
    assert all(np.isfinite(line["self_lit"]) for line in lines)


def test_evaluation_and_its_comparisons(straight):
    metrics = eval.main(["--checkpoint", str(straight / "removal" / "last.pt")])
    assert metrics["error_ns"] == pytest.approx(metrics["input_error_ns"], abs=0.5)
    assert {"affine_error_s", "online_error_pp_ns", "psnr_all", "ssim_s"} <= metrics.keys()
    assert metrics["online_error_ns_official"] > metrics["online_error_ns"]
    learnt_from = metrics["synth_error"]
    words = ["--size", "full", "--white", "d65"]
    full = eval.main(["--checkpoint", str(straight / "removal" / "last.pt"), *words])
    assert full["error_s_full_d65"] == pytest.approx(full["online_error_s"], rel=1e-3), "8 bits and D65 in both"
    assert "error_s" not in full and "input_error_s_full_d65" in full
    metrics = eval.main(["--checkpoint", str(straight / "synthesis" / "last.pt")])
    assert metrics["synth_error"] == learnt_from
    assert metrics["copy_darkness"] == pytest.approx(0, abs=1e-5) and metrics["copy_detail"] == pytest.approx(
        1, abs=1e-4
    )


def test_predict_with_and_without_a_mask(tmp_path, straight):
    photograph = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    mask = np.zeros((30, 41), np.uint8)
    mask[5:20, 5:20] = 255
    write_image(tmp_path / "in" / "a.png", photograph)
    write_image(tmp_path / "masks" / "a.png", mask)
    removers = ["--weights", str(straight / "removal" / "last.pt"), "--out", str(tmp_path / "out")]
    for given in (["--mask", str(tmp_path / "masks" / "a.png")], ["--mask", str(tmp_path / "masks")]):
        (path,) = predict.main([str(tmp_path / "in"), *given, *removers])
        assert np.array_equal(read_image(path)[mask == 0], photograph[mask == 0])
    assert predict.main([str(tmp_path / "in" / "a.png"), *removers])
    painted = [str(tmp_path / "in" / "a.png"), "--mask", str(tmp_path / "masks" / "a.png"), "--synthesis"]
    painters = ["--weights", str(straight / "synthesis" / "last.pt"), *removers[2:]]
    (path,) = predict.main([*painted, *painters])
    row = read_image(path)
    assert row.shape == (28, 8 * 40, 3)  # eight pictures of the photograph cut to multiples of 4
    assert np.abs(row[:, :40].astype(int) - photograph[:28, :40]).max() <= 1
    copied = np.abs(row[:, 280:].astype(int) - photograph[:28, :40]).max(2) <= 1
    lit = (mask[:, ::-1] > mask)[:28, :40]
    assert copied[~lit].all() and not copied[lit].all()  # the shadow is pasted in the mirrored mask
    with pytest.raises(InputError, match="other masks"):  # a lit region inside the shadow is none
        predict.main([*painted, "--lit", str(tmp_path / "masks" / "a.png"), *painters])
    write_image(tmp_path / "ones.png", mask // 255)
    with pytest.raises(InputError, match="largest value is 1"):
        predict.main([str(tmp_path / "in" / "a.png"), "--mask", str(tmp_path / "ones.png"), *removers])
    write_image(tmp_path / "in" / "b.png", photograph)
    with pytest.raises(InputError, match="b"):
        predict.main([str(tmp_path / "in"), "--mask", str(tmp_path / "masks"), *removers])


def test_a_run_is_packed_in_half_precision_with_how_it_joins(tmp_path, straight):
    plain = str(weights.main([str(straight / "removal" / "last.pt"), str(tmp_path / "plain.safetensors")]))
    coarse, _, clear = weights.removers([plain])
    assert not clear
    stored = state(straight / "removal")["state"]["coarse"]
    assert_same({name: value.half().float() for name, value in stored.items()}, dict(coarse.state_dict()))
    encoder, generator = weights.painters([plain])
    stored = state(straight / "synthesis")["state"]
    assert torch.equal(encoder.conv1_b[1].bias, stored["encoder"]["conv1_b.1.bias"].half().float())
    assert generator.conv1_b[1].weight.shape == stored["generator"]["conv1_b.1.weight"].shape
    run = train.main(arguments(tmp_path / "run", removal__clear=True, removal__pairs="gain", optim__removal_epochs=1))
    packed = weights.main([str(run / "removal" / "last.pt"), str(tmp_path / "clear.safetensors")])
    assert weights.removers([str(packed)]).clear
    with pytest.raises(CheckpointError, match="encoder"):
        weights.painters([str(packed)])


def test_a_moving_shadow_is_judged_against_the_brightest_frame(tmp_path):
    for number in range(3):
        frame = np.full((32, 32, 3), 200, np.uint8)
        frame[8 * number : 8 * number + 8] = 60
        write_image(tmp_path / "videos" / "chair" / f"{number}.png", frame)
        write_image(tmp_path / "results" / "chair" / f"{number}.png", np.full((32, 32, 3), 200, np.uint8))
    found = video.main([str(tmp_path / "videos"), "--results", str(tmp_path / "results")])
    assert found["rmse"] == pytest.approx(0, abs=1e-9)
    assert video.main([str(tmp_path / "videos")])["rmse"] > 5
    with pytest.raises(InputError, match="nothing changes"):
        video.main([str(tmp_path / "videos"), "--threshold", "200"])


@pytest.mark.parametrize("path", sorted(PROJECT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_configs_build_on_the_meta_device(path):
    with torch.device("meta"):
        assert len(train.build(config.load(Config, path))) == 6


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(PROJECT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_one_epoch_of_every_config(tmp_path, path):
    """On four stand-in photographs, at small sizes and with narrow networks."""
    if path.stem == "photos":
        for i in range(6):
            write_image(tmp_path / f"{i}.png", np.random.default_rng(i).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    else:
        istd(tmp_path)
        (tmp_path / "test" / "test_C").symlink_to(tmp_path / "test" / "test_C_fixed_official")
    small = {key: value for key, value in TINY.items() if not key.startswith(("data.count", "data.test", "optim"))}
    small |= {"data.root": tmp_path, "data.count": 4, "data.workers": 0, "optim.synthesis_epochs": 1}
    words = [f"--{key}={value}" for key, value in {**small, "optim.removal_epochs": 1}.items()]
    run = train.main(["--config", str(path), "--out", str(tmp_path / "run"), *words])
    assert state(run / "synthesis")["step"] == state(run / "removal")["step"] == 2
