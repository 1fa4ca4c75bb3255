"""The commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import contextlib
import json
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, NonFiniteError
from common.finite import FiniteWatch
from common.testing import assert_same, log, state

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from winograd3d import eval, models, network, train
from winograd3d.config import Config, Optim, Prune, Stage
from winograd3d.masks import MaskLearner
from winograd3d.tests import videos

PROJECT = Path(train.__file__).parent
# Four steps an epoch; masks move in most steps of stage 1.
TINY = {
    "data.limit": 64,
    "data.batch_size": 16,
    "model.width": 4,
    "winograd.rank": 4,
    "prune.sparsity": 0.75,
    "pretrain.epochs": 2,
    "stage1.epochs": 2,
    "stage2.epochs": 1,
    "run.log_every": 1,
}


arguments = partial(testing.arguments, PROJECT / "cfg.yaml", TINY)
command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)


@pytest.fixture(scope="session")
def dense(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dense")
    torch.set_num_threads(1)
    train.main([*arguments(out), "--stage", "pretrain"])
    return out / "pretrain" / "last.pt"


@pytest.mark.smoke
def test_smoke(tmp_path):
    """Two steps of all stages and an evaluation, as typed."""
    short = ["--pretrain.epochs=1", "--stage1.epochs=1", "--stage2.epochs=1", "--data.limit=100"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    for stage in train.STAGES:
        files = {path.name for path in (tmp_path / "run" / stage).iterdir()}
        assert {"config.yaml", "env.json", "log.jsonl", "last.pt"} <= files
        assert any(name.startswith("events.out.tfevents") for name in files)
        assert checkpoint.load(tmp_path / "run" / stage / "last.pt")["step"] == 2
    assert (tmp_path / "run" / "stage2" / "samples" / "kept.png").exists()
    done = command(["eval.py", "--checkpoint", str(tmp_path / "run" / "stage2" / "last.pt")])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "stage2" / "metrics.json").read_text())
    assert 0 <= metrics["clip_top1"] <= metrics["clip_top5"] <= 100
    assert metrics["column_sparsity"] == 0.5 and metrics["winograd_trainables"] == 5120
    assert "clip_top1" in done.stdout and "conv2" in done.stdout


@pytest.mark.parametrize(
    ("stage", "options", "step"),
    [
        ("stage1", {}, 1),
        ("stage1", {}, 6),
        ("stage1", {"winograd__mode": "factor", "prune__granularity": "channel", "prune__score": "taylor_abs"}, 4),
        ("stage2", {"run__micro_batches": 2, "optim__optimiser": "sgd"}, 2),
    ],
    ids=["before any checkpoint", "inside an epoch", "channels at its end", "stage 2"],
)
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, dense, stage, options, step):
    """The mask and its scores are part of the state, and so is every other tensor of it."""
    options = {**options, "model__checkpoint": dense, "run__save_every": 3}
    train.main([*arguments(tmp_path / "straight", **options)])
    words = arguments(tmp_path / "killed", **options)
    if stage == "stage2":
        train.main([*words, "--stage", "stage1"])
    assert interrupted([*words, "--stage", stage], 9, step).returncode == -9
    done = command(["train.py", *words, "--resume", "auto"])
    assert done.returncode == 0, done.stderr
    for name in ("stage1", "stage2"):
        straight, killed = state(tmp_path / "straight" / name), state(tmp_path / "killed" / name)
        assert_same(straight, killed)
        assert {"conv2.mask", "conv2.score"} <= straight["state"]["model"].keys()
        assert log(tmp_path / "straight" / name) == log(tmp_path / "killed" / name)


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path, dense):
    train.main([*arguments(tmp_path / "straight", model__checkpoint=dense), "--stage", "stage1"])
    words = [*arguments(tmp_path / "stopped", model__checkpoint=dense), "--stage", "stage1"]
    done = interrupted(words, 15, 6)
    assert done.returncode == 143 and "--resume auto" in done.stderr
    assert state(tmp_path / "stopped" / "stage1")["step"] == 6
    assert command(["train.py", *words, "--resume", "auto"]).returncode == 0
    assert_same(state(tmp_path / "straight" / "stage1"), state(tmp_path / "stopped" / "stage1"))


def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path, dense):
    # 34 clips leave a last batch of 2, one clip a process.
    options = {"model__checkpoint": dense, "data__limit": 34, "run__device": "cpu"}
    train.main(arguments(tmp_path / "one", run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", **options))
    assert done.returncode == 0, done.stderr
    for stage in ("stage1", "stage2"):
        one, two = (state(tmp_path / name / stage)["state"]["model"] for name in ("one", "two"))
        for key, value in one.items():
            if value.is_floating_point():
                assert torch.allclose(value, two[key], rtol=0, atol=1e-5), key
            else:
                assert torch.equal(value, two[key]), key
    metrics = [log(tmp_path / name / "stage2")[-1] for name in ("one", "two")]
    assert metrics[0]["clip_top1"] == metrics[1]["clip_top1"]


def test_workers_do_not_change_a_bit_and_seeds_do(tmp_path, dense):
    for name, options in {"a": {}, "workers": {"data__workers": 2}, "seed": {"seed": 1}}.items():
        train.main([*arguments(tmp_path / name, model__checkpoint=dense, **options), "--stage", "stage1"])
    a, workers, other = (state(tmp_path / name / "stage1") for name in ("a", "workers", "seed"))
    assert_same(a, workers)
    assert not torch.equal(a["state"]["model"]["conv2.Q"], other["state"]["model"]["conv2.Q"])


# -- what the stages do ----------------------------------------------------------------------------------------------


def test_masks_grow_sparse_then_stay(tmp_path, dense):
    train.main(arguments(tmp_path, model__checkpoint=dense, stage1__epochs=3))
    kept = [line["kept/conv2"] for line in log(tmp_path / "stage1") if line["split"] == "test"]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1] == 0.25
    first, second = (state(tmp_path / stage)["state"]["model"] for stage in ("stage1", "stage2"))
    assert torch.equal(first["conv2.mask"], second["conv2.mask"])
    assert torch.equal(first["conv2.score"], second["conv2.score"])
    assert not torch.equal(first["conv2.P"], second["conv2.P"]) and torch.equal(first["conv2.W0"], second["conv2.W0"])


def test_sparsity_follows_the_cubic_from_the_first_step():
    conf = Config(prune=Prune(sparsity=0.8, first=0.2, ramp=0.5))
    assert train.sparsity_at(conf, 0, 100) == pytest.approx(0.2)
    assert train.sparsity_at(conf, 25, 100) == pytest.approx(0.8 - 0.6 / 8)
    assert train.sparsity_at(conf, 50, 100) == train.sparsity_at(conf, 100, 100) == 0.8


def test_learning_rates():
    step = Stage(50, 1e-3, "step")
    assert [train.learning_rate(step, 0, 1, epoch) for epoch in (20, 21, 41)] == pytest.approx([1e-3, 1e-4, 1e-5])
    cosine = Stage(2, 1e-3, "cosine")
    assert [train.learning_rate(cosine, i, 10, 1) for i in (0, 5)] == pytest.approx([1e-3, 5e-4])
    assert train.learning_rate(Stage(2, 0.5, "constant"), 9, 10, 1) == 0.5


@pytest.mark.parametrize("keep", [True, False])
def test_stage_2_goes_on_with_the_momentum(tmp_path, dense, keep, monkeypatch):
    words, found = arguments(tmp_path, model__checkpoint=dense, optim__keep_momentum=str(keep).lower()), []
    train.main([*words, "--stage", "stage1"])
    monkeypatch.setattr(train, "fit", lambda run, c, s, a, b, n, optimiser, *rest: found.append(optimiser))
    train.main([*words, "--stage", "stage2"])
    assert bool(found[0].state_dict()["state"]) == keep


def test_groups_of_the_optimiser():
    net = network.build(config.load(Config, PROJECT / "cfg.yaml"))
    base = {"weight_decay": 0.1, "head_lr": 10.0}
    conf = Config(optim=Optim(decay_factors=False, **base))
    names = {id(p): name for name, p in net.named_parameters()}
    groups = train.optimiser_of(conf, net).param_groups
    found = {names[id(p)]: (g["factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    assert found["fc.weight"] == (10.0, 0.1) and found["conv2.P"] == (1.0, 0.0) and found["conv2.bias"] == (1.0, 0.1)
    groups = train.optimiser_of(Config(optim=Optim(**base)), net).param_groups
    assert all(g["weight_decay"] == 0.1 for g in groups)


def test_the_start_of_stage_1_is_the_dense_network(tmp_path, dense):
    for mode, rank in (("residual", 4), ("factor", 27)):
        words = arguments(tmp_path / mode, model__checkpoint=dense, winograd__mode=mode, winograd__rank=rank)
        train.main([*words, "--stage", "stage1"])
        progress = state(tmp_path / mode / "stage1")["state"]["progress"]
        assert progress["logit_gap"] < 1e-5 and progress["weight_gap"] < 1e-6
    gaps = []
    for rank in (2, 8, 16):
        words = arguments(tmp_path / f"{rank}", model__checkpoint=dense, winograd__mode="factor", winograd__rank=rank)
        train.main([*words, "--stage", "stage1", "--stage1.epochs=1"])
        gaps.append(state(tmp_path / f"{rank}" / "stage1")["state"]["progress"]["weight_gap"])
    assert gaps == sorted(gaps, reverse=True) and len(set(gaps)) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"run__precision": "bf16"},
        {"winograd__mode": "vanilla", "winograd__precondition": "true", "prune__granularity": "channel_balanced"},
        {"winograd__mode": "spatial", "prune__granularity": "element"},
        {"winograd__mode": "factor", "prune__score": "gram", "prune__scope": "global"},
        {"winograd__tile": "4", "winograd__points": "half", "prune__score": "l2_comp"},
        {"winograd__tile": "auto", "winograd__view": "filter", "prune__granularity": "channel"},
        {"optim__optimiser": "sgd", "optim__clip": 1.0, "optim__decay_factors": "false", "stage1__schedule": "cosine"},
    ],
    ids=["bf16", "vanilla", "spatial", "gram", "half points", "auto", "sgd"],
)
def test_variants_run_and_evaluate(tmp_path, dense, options):
    train.main(arguments(tmp_path, model__checkpoint=dense, stage1__epochs=1, **options))
    assert all(np.isfinite(line.get("loss", 0)) for line in log(tmp_path / "stage2"))
    metrics = eval.main(["--checkpoint", str(tmp_path / "stage2" / "last.pt"), "--rounds=1"])
    last = log(tmp_path / "stage2")[-1]["clip_top1"]
    assert abs(metrics["clip_top1"] - last) < (8 if "run__precision" in options else 2)
    if options.get("prune__granularity") == "element":
        # Scattered zeros leave something in most columns: 3/4 of the weights are gone, less than half of the columns.
        assert metrics["zeros"] == pytest.approx(0.75, abs=0.01) and metrics["column_sparsity"] < 0.5
    else:
        assert metrics["column_sparsity"] == pytest.approx(0.75, abs=0.1)


def test_a_step_never_waits_for_the_device(monkeypatch):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown to that device
    conf = config.override(config.load(Config, PROJECT / "cfg.yaml"), ["--optim.clip=1"])
    for score, scope, granularity in (("taylor", "layer", "channel_balanced"), ("taylor_abs", "global", "position")):
        with torch.device("meta"):
            net = network.build(config.override(conf, [f"--prune.granularity={granularity}"]))
        learner = MaskLearner(net, score, 0.9, scope, train.mean_over_ranks)
        learner.start()
        optimiser, finite = train.optimiser_of(conf, net), FiniteWatch()
        trained = list(net.parameters())
        loss = F.cross_entropy(
            net(torch.zeros(4, 1, 8, 12, 12, device="meta")), torch.zeros(4, dtype=torch.long, device="meta")
        )
        loss.backward()
        gradient = torch.nn.utils.get_total_norm([p.grad for p in trained])
        finite.note(1, {"loss": loss.detach(), "gradient": gradient})
        torch.nn.utils.clip_grad_norm_(trained, conf.optim.clip)
        learner.update(0.5)
        optimiser.step()
        with pytest.raises(NotImplementedError, match="meta"):
            finite.require("a read", "of the device")


def test_it_learns(tmp_path):
    words = ["--config", str(PROJECT / "cfg.yaml"), "--out", str(tmp_path), "--stage", "pretrain"]
    train.main([*words, "--pretrain.epochs=5"])
    assert eval.main(["--checkpoint", str(tmp_path / "pretrain" / "last.pt")])["clip_top1"] > 60


def test_a_second_run_moves_the_first_aside(tmp_path, dense):
    words = [*arguments(tmp_path, model__checkpoint=dense), "--stage", "stage1"]
    train.main(words)
    first = (tmp_path / "stage1" / "last.pt").read_bytes()
    train.main(words)
    assert (tmp_path / "stage1-1" / "last.pt").read_bytes() == first


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, dense, monkeypatch):
    forward, calls = nn.Linear.forward, []

    def spoiled(self, x):
        if self.training:
            calls.append(1)
        return forward(self, x) * (float("nan") if len(calls) == 6 else 1.0)

    monkeypatch.setattr(nn.Linear, "forward", spoiled)
    with pytest.raises(NonFiniteError, match=r"step 6 of stage stage1: loss, gradient"):
        train.main([*arguments(tmp_path, model__checkpoint=dense), "--stage", "stage1"])
    saved = checkpoint.load(tmp_path / "stage1" / "last.pt")
    assert saved["step"] == 4
    floats = [value for value in saved["state"]["model"].values() if value.is_floating_point()]
    assert all(value.isfinite().all() for value in floats)


def test_weights_for_other_pixels_are_refused(tmp_path, monkeypatch):
    loaded = models.Loaded("sports1m", (), "c3d_bgr")
    monkeypatch.setattr(models, "load_weights", lambda net, path: loaded)
    words = [*arguments(tmp_path, model__init="c3d.pth"), "--stage", "pretrain"]
    with pytest.raises(InputError, match=r"expect --data.normalisation c3d_bgr, not kinetics"):
        train.main(words)
    assert not (tmp_path / "pretrain").exists()


# -- what is refused -------------------------------------------------------------------------------------------------


def bad_inputs(folder: Path, dense: Path) -> dict[str, tuple[dict, str]]:
    """name -> (overrides, words of the message)."""
    truncated, malicious = folder / "truncated.pt", testing.hostile(folder / "malicious.pt", folder / "canary")
    truncated.write_bytes(dense.read_bytes()[:2000])
    torch.save({"model": models.build("digits3d", 20, 6, channels=1).state_dict()}, folder / "wide.pth")
    return {
        "missing data": ({"data__name": "ucf101", "data__root": folder / "nowhere"}, "nowhere"),
        "another width": ({"model__checkpoint": folder / "wide.pth"}, "conv1.weight"),
        "truncated": ({"model__checkpoint": truncated}, "cannot be read as weights"),
        "malicious": ({"model__checkpoint": malicious}, "never executed"),
        "no dense network": ({"model__checkpoint": folder / "none.pt"}, "there is no trained network"),
        "rank above the limit": ({"winograd__rank": 33}, "conv2: rank 33 is above 32"),
        "rank 0": ({"winograd__rank": 0}, "winograd.rank"),
        "sparsity above 1": ({"prune__sparsity": 1.1}, "prune.sparsity"),
        "unknown tile": ({"winograd__tile": "3"}, "winograd.tile"),
        "gram without factors": ({"prune__score": "gram"}, "needs mode factor"),
        "global balanced": ({"prune__scope": "global", "prune__granularity": "channel_balanced"}, "channel_balanced"),
        "precondition of spatial": (
            {"winograd__mode": "spatial", "winograd__precondition": "true"},
            "leave precondition",
        ),
        "smaller than a batch": ({"data__limit": 10}, "fewer than data.batch_size 16"),
        "unknown key": ({"optim__learing_rate": 1}, "not an option"),
        "unknown network": ({"model__name": "r3d_18"}, "did you mean r3d18"),
        "factorised network": ({"model__name": "r2plus1d18"}, "nothing three-dimensional is left"),
    }


BAD = [
    "missing data",
    "another width",
    "truncated",
    "malicious",
    "no dense network",
    "rank above the limit",
    "rank 0",
    "sparsity above 1",
    "unknown tile",
    "gram without factors",
    "global balanced",
    "precondition of spatial",
    "smaller than a batch",
    "unknown key",
    "unknown network",
    "factorised network",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written_over(tmp_path, dense, name):
    overrides, words = bad_inputs(tmp_path, dense)[name]
    kept = tmp_path / "run" / "stage1" / "last.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"an earlier result")
    given = {"model__checkpoint": dense, "winograd__rank": 4, **overrides}
    with pytest.raises(InputError, match=words):
        train.main([*arguments(tmp_path / "run", **given), "--stage", "stage1"])
    assert kept.read_bytes() == b"an earlier result" and list(kept.parent.iterdir()) == [kept]
    assert not (tmp_path / "canary").exists()


def test_a_mask_that_empties_a_layer_is_refused(tmp_path, dense):
    words = arguments(tmp_path, model__checkpoint=dense)
    train.main([*words, "--stage", "stage1"])
    path = tmp_path / "stage1" / "last.pt"
    saved = checkpoint.load(path)
    saved["state"]["model"]["conv2.mask"].fill_(False)
    checkpoint.save(path, saved)
    with pytest.raises(InputError, match="empties the layer"):
        train.main([*words, "--stage", "stage2"])
    assert not (tmp_path / "stage2").exists()


def test_another_conversion_is_refused(tmp_path, dense):
    words = arguments(tmp_path, model__checkpoint=dense, winograd__tile="4")
    train.main([*words, "--stage", "stage1"])
    with pytest.raises(InputError, match=r"gauge lavin \(here half\)"):
        train.main([*words, "--winograd.points=half", "--stage", "stage2"])
    with pytest.raises(CheckpointError, match="does not fit this network and conversion"):
        train.main([*words, "--winograd.mode=vanilla", "--stage", "stage2"])


def test_bad_input_exits_with_2(tmp_path):
    done = command(["train.py", "--config", "cfg.yaml", "--prune.sparsity", "7"])
    assert done.returncode == 2 and done.stderr.startswith("error: --prune.sparsity") and "Traceback" not in done.stderr
    done = command(["eval.py", "--checkpoint", str(tmp_path / "none.pt")])
    assert done.returncode == 2 and "there is no such checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_resume_refuses_another_experiment(tmp_path, dense):
    copied = checkpoint.load(dense)
    checkpoint.save(tmp_path / "dense.pt", copied)
    words = [*arguments(tmp_path, model__checkpoint=tmp_path / "dense.pt"), "--stage", "stage1"]
    train.main(words)
    before = state(tmp_path / "stage1")
    with pytest.raises(InputError, match=r"prune.sparsity: 0.75 -> 0.5"):
        train.main([*words, "--prune.sparsity=0.5", "--resume=auto"])
    copied["state"]["model"]["conv1.weight"] += 1
    checkpoint.save(tmp_path / "dense.pt", copied)
    with pytest.raises(InputError, match="the network has changed"):
        train.main([*words, "--resume=auto"])
    assert_same(before, state(tmp_path / "stage1"))
    train.main([*words, "--resume=auto", "--resume_force=true"])


def test_eval_of_a_dense_networks_weights(tmp_path):
    net = models.build("digits3d", 20, 4, channels=1)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "dense.pth")
    config_file = tmp_path / "tiny.yaml"
    config_file.write_text(config.dump(config.override(config.load(Config, PROJECT / "cfg.yaml"), ["--model.width=4"])))
    words = ["--checkpoint", str(tmp_path / "dense.pth")]
    metrics = eval.main([*words, "--config", str(config_file)])
    assert metrics["params"] == sum(p.numel() for p in net.parameters())
    with pytest.raises(CheckpointError, match="need --config"):
        eval.main(words)


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_a_step(tmp_path, path):
    experiment = config.load(Config, path)
    root = getattr(videos, experiment.data.name)(tmp_path / "data")
    words = ["--config", str(path), "--out", str(tmp_path / "run"), f"--data.root={root}", "--data.batch_size=2"]
    words += ["--data.limit=2", "--data.workers=0", *(f"--{stage}.epochs=1" for stage in train.STAGES)]
    train.main([*words, "--model.width=16"])
    saved = checkpoint.load(tmp_path / "run" / "stage2" / "last.pt")
    assert saved["step"] == 1
    assert any(key.endswith(".mask") for key in saved["state"]["model"])
