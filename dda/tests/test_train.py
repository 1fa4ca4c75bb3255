"""The commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import contextlib
import json
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, NonFiniteError
from common.finite import FiniteWatch
from common.images import write_image
from common.testing import assert_same, log, state

import numpy as np
import pytest
import torch

from dda import classes, data, eval, evaluation, figures, models, train
from dda.config import Config, Stage

PROJECT = Path(train.__file__).parent
# Six steps an epoch, two epochs, four channels, pictures of 64 x 96 with six tiles each.
TINY = {
    "data.height": 64,
    "data.width": 96,
    "data.variants": 2,
    "data.test_variants": 1,
    "data.train_photos": "[astronaut, coffee]",
    "network.channels": 4,
    "tiles.train": "[32, 32]",
    "tiles.test": "[32, 32]",
    "first.epochs": 2,
    "first.patch": 16,
    "first.batch_size": 4,
    "first.validate_every": 1,
    "run.log_every": 1,
}
command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)
arguments = partial(testing.arguments, PROJECT / "cfg.yaml", TINY)


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight")
    torch.set_num_threads(1)
    train.main(arguments(out, second__epochs=1, second__patch=32, second__batch_size=2))
    return out


TWO_STAGES = {"second__epochs": 1, "second__patch": 32, "second__batch_size": 2}


@pytest.mark.smoke
def test_smoke(tmp_path):
    """One epoch and an evaluation of every route, as typed."""
    short = [f"--{key}={value}" for key, value in TINY.items()] + ["--first.epochs=1"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "run" / "first").iterdir()}
    assert {"config.yaml", "env.json", "log.jsonl", "last.pt", "best.pt", "samples"} <= files
    last = tmp_path / "run" / "first" / "last.pt"
    assert checkpoint.load(last)["step"] == 6
    done = command(["eval.py", "--checkpoint", str(last), "--compare"])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((last.parent / "metrics.json").read_text())
    assert 0 < metrics["reduction_percent"] < 100 and metrics["psnr_uint8"] > 5
    assert "prior - random" in done.stdout and "prior/minus_wide" in metrics


@pytest.mark.parametrize("step", [1, 4, 6, 9], ids=["before any checkpoint", "inside", "at the end", "second epoch"])
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, straight, step):
    words = arguments(tmp_path, run__save_every=3, **TWO_STAGES)
    assert interrupted(words, 9, step).returncode == -9
    done = command(["train.py", *words, "--resume", "auto"])
    assert done.returncode == 0, done.stderr
    for stage in ("first", "second"):
        assert_same(state(straight / stage), state(tmp_path / stage))
        assert log(straight / stage) == log(tmp_path / stage)


def test_sigterm_saves_and_resumes(tmp_path, straight):
    words = arguments(tmp_path, **TWO_STAGES)
    done = interrupted(words, 15, 4)
    assert done.returncode == 143 and "is saved" in done.stderr
    assert checkpoint.load(tmp_path / "first" / "last.pt")["step"] == 4
    assert command(["train.py", *words, "--resume", "auto"]).returncode == 0
    assert_same(state(straight / "second"), state(tmp_path / "second"))


def test_the_second_stage_starts_from_the_best_of_the_first(straight, tmp_path):
    best = checkpoint.load(straight / "first" / "best.pt")["state"]["model"]
    words = arguments(tmp_path, network__weights=straight / "first" / "best.pt", first__epochs=0)
    train.main(words)
    assert_same(checkpoint.load(tmp_path / "first" / "last.pt")["state"]["model"], best)
    depends = checkpoint.load(straight / "second" / "last.pt")["depends"]
    assert depends["starting weights"] == checkpoint.file_sha256(straight / "first" / "best.pt")


def test_two_processes_compute_the_step_of_one(tmp_path):
    one = {"first__epochs": 1, "run__micro_batches": 2}
    train.main(arguments(tmp_path / "one", **one))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", first__epochs=1))
    assert done.returncode == 0, done.stderr
    first, second = (checkpoint.load(tmp_path / n / "first" / "last.pt")["state"]["model"] for n in ("one", "two"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)


def test_a_step_never_waits_for_the_device():
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    meta = torch.device("meta")
    for name in models.NETWORKS:
        network = models.build(name, channels=4).to(meta)
        optimiser = torch.optim.Adam(network.parameters(), 1e-4)
        pictures = torch.empty(2, 3, 32, 32, dtype=torch.uint8, device=meta)
        run = type("Run", (), {"autocast": staticmethod(contextlib.nullcontext)})
        finite = FiniteWatch()
        for step, width in enumerate((0.75, 0.5, 0.25)):
            optimiser.zero_grad(set_to_none=True)
            terms = train.loss_terms(run, network, classes.Batch(pictures, pictures, 1.0), width, 0.25)
            sum(terms.values()).backward()
            gradient = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            finite.note(step, {**terms, "gradient": gradient})
            optimiser.step()
        with pytest.raises(NotImplementedError, match="meta"):
            finite.require("a read", "of the device")


# -- what the loop is made of ----------------------------------------------------------------------------------------


def experiment(**overrides) -> Config:
    words = [f"--{key}={value}" for key, value in (TINY | overrides).items()]
    return config.override(config.load(Config, PROJECT / "cfg.yaml"), words)


def test_every_class_gives_batches_for_its_width_and_short_ones_begin_again():
    conf = experiment()
    pairs, _ = data.load(conf.data)
    found = classes.split(classes.tile_scores(pairs, conf, torch.device("cpu")), conf)
    assert sum(map(len, found)) == 6 * len(pairs)
    short = [found[0], found[1][:2], found[2]]
    stage = Stage(epochs=1, patch=16, batch_size=4)
    steps = list(classes.batches(pairs, short, conf, stage, 1, 0, torch.device("cpu")))
    assert [number for number, _ in steps] == [0, 1, 2] * (len(found[0]) // 4)
    assert all(b.moire.shape == (4, 3, 16, 16) and b.weight == 1 for _, parts in steps for b in parts)
    rest = list(classes.batches(pairs, short, conf, stage, 1, 2, torch.device("cpu")))
    for (_, late), (_, full) in zip(rest, steps[2:], strict=True):
        assert torch.equal(late[0].moire, full[0].moire)
    other = next(iter(classes.batches(pairs, short, conf, stage, 2, 0, torch.device("cpu"))))[1][0]
    assert not torch.equal(other.moire, steps[0][1][0].moire)


def test_an_epoch_visits_every_tile_of_a_class_once():
    conf = experiment()
    pairs, _ = data.load(conf.data)
    found = classes.split(classes.tile_scores(pairs, conf, torch.device("cpu")), conf)
    places = []
    spy = type("Spy", (), {"crops": lambda self, *where: places.append(where) or (where[0], where[0])})()
    list(classes.batches(spy, found, conf, Stage(patch=32, batch_size=4), 1, 0, torch.device("cpu")))
    wide = torch.cat([torch.stack(where[:3], 1) for where in places[::3]])
    assert sorted(wide.tolist()) == sorted(found[0].tolist())


def test_one_width_trains_on_all_tiles(tmp_path):
    words = arguments(tmp_path, widths="[1.0]", routing__kind="fixed", first__epochs=1)
    train.main(words)
    assert {line["width"] for line in log(tmp_path / "first") if line["split"] == "train"} == {1.0}
    assert eval.main(["--checkpoint", str(tmp_path / "first" / "last.pt")])["reduction_percent"] == 0


def test_a_rate_below_the_lowest_ends_training(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "plateau", lambda rate, scores, rule: rate / 2)
    train.main(arguments(tmp_path, first__schedule="plateau", first__lr=3e-6, first__epochs=9))
    saved = checkpoint.load(tmp_path / "first" / "last.pt")
    assert saved["state"]["progress"]["rate"] == 0.75e-6 and saved["epoch"] == 3
    assert [line["lr"] for line in log(tmp_path / "first") if line["split"] == "train"][::6] == [3e-6, 1.5e-6]


def test_thresholds_are_calibrated_and_kept(tmp_path):
    train.main(arguments(tmp_path, routing__kind="threshold", first__epochs=1))
    kept = checkpoint.load(tmp_path / "first" / "last.pt")["state"]["thresholds"]
    assert len(kept) == 2 and kept[0] > kept[1] > 0
    metrics = eval.main(["--checkpoint", str(tmp_path / "first" / "last.pt")])
    assert metrics["psnr_uint8"] == log(tmp_path / "first")[-1]["psnr_uint8"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    terms_of, calls = train.loss_terms, []

    def spoiled(*inputs):
        calls.append(1)
        terms = terms_of(*inputs)
        return {**terms, "l1": terms["l1"] * float("nan")} if len(calls) == 8 else terms

    monkeypatch.setattr(train, "loss_terms", spoiled)
    with pytest.raises(NonFiniteError, match="step 8 of stage first: l1"):
        train.main(arguments(tmp_path))
    assert checkpoint.load(tmp_path / "first" / "last.pt")["step"] == 6


# -- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_repeats_the_run_s_own(straight):
    metrics = eval.main(["--checkpoint", str(straight / "second" / "last.pt")])
    line = log(straight / "second")[-1]
    for name in evaluation.NAMES[:-1]:
        assert metrics[name] == pytest.approx(line[name], abs=1e-9)


def test_scores_against_gains_are_drawn(straight, tmp_path):
    pytest.importorskip("matplotlib")
    path = straight / "first" / "last.pt"
    written = figures.main(["--checkpoint", str(path), "--out", str(tmp_path / "new" / "a.png")])
    assert written.read_bytes().startswith(b"\x89PNG")
    conf = config.from_dict(Config, checkpoint.load(path)["config"])
    test = data.load(conf.data, conf.seed)[1]

    class Same(torch.nn.Module):
        """A network that changes nothing gains nothing."""

        multiple = 16

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def slice(self, width):
            return torch.nn.Identity()

    found = figures.gains(Same(), test, conf)
    assert found.gain.shape == (3, len(test) * 6) and len(found.score) == len(test) * 6
    assert found.gain.abs().max() == 0 < found.score.std()


def test_every_route_can_be_asked_for(straight):
    path = str(straight / "first" / "last.pt")
    costs = {}
    for kind in ("rank", "released", "random", "inverse", "oracle", "threshold"):
        costs[kind] = eval.main(["--checkpoint", path, f"--routing.kind={kind}"])["gmac_image"]
    assert costs["rank"] == costs["random"] == costs["inverse"] == costs["oracle"]
    wide = eval.main(["--checkpoint", path, "--routing.kind=fixed"])["gmac_image"]
    budget = eval.main(["--checkpoint", path, "--routing.kind=budget", "--routing.budget=0.8"])["gmac_image"]
    assert budget <= 0.8 * wide < wide


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": "[0.25, 0.5, 0.75]"}, "widths"),
        ({"widths": "[0.75, 0.5]"}, "three classes"),
        ({"first__patch": 40}, "multiple of 16"),
        ({"first__patch": 48}, "fit tiles.train"),
        ({"first__batch_size": 999}, "fewer than a batch"),
        ({"tiles__train": "[512, 512]"}, "smaller than a tile"),
        ({"network__weights": "nothing.pth"}, "no such file"),
        ({"routing__kind": "budget", "routing__budget": 0.01}, "below the narrowest"),
        ({"routing__kind": "fixed", "routing__fixed": 3}, "only 3 widths"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        train.main(arguments(tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_a_changed_config_does_not_resume(tmp_path, straight):
    with pytest.raises(InputError, match=r"first\.lr"):
        train.main([*arguments(tmp_path, first__lr=0.5, **TWO_STAGES), "--resume", str(straight / "first" / "last.pt")])


def test_weights_of_the_other_network_are_refused(tmp_path, straight):
    with pytest.raises(CheckpointError, match="MBCNN"):
        weights = straight / "first" / "best.pt"
        train.main(arguments(tmp_path / "run", network__name="mbcnn", network__start="torch", network__weights=weights))


# -- every config ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_one_step_of_every_config(tmp_path, path):
    conf = config.load(Config, path)
    size = tuple(max(2 * a, b) for a, b in zip(conf.tiles.train, conf.tiles.test))  # tiles for every class
    size = (1080 if conf.data.name == "fhdmi" else size[0], size[1])
    root = tmp_path / "data"
    for number, side in enumerate(("train", "test")):
        for folder in ("moire", "clear") if conf.data.name != "photos" else ():
            write_image(root / side / folder / "0.png", np.full((*size, 3), 90 + 20 * number, np.uint8))
    words = ["--config", str(path), "--out", str(tmp_path / "run"), "--first.batch_size=1", "--network.channels=4"]
    words += ["--first.epochs=1", "--second.epochs=0", "--data.limit=1"]
    here = ["--data.test_photos=[chelsea]", "--data.whole_test=0", "--data.height=256", "--data.width=256"]
    here += ["--tiles.train=[128, 128]", "--first.patch=64"]
    words += [f"--data.root={root}"] if root.exists() else here
    train.main(words)
    assert checkpoint.load(tmp_path / "run" / "first" / "last.pt")["step"] >= 1
