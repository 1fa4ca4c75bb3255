"""The commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import json
import os
import signal
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, Interrupted, NonFiniteError
from common.finite import FiniteWatch
from common.gan.perceptual import VGGFeatures
from common.gan.teachers import TEACHERS
from common.images import write_image
from common.run import Run
from common.testing import assert_same, domain_images, log, state

import numpy as np
import pytest
import torch

from crd import bench, eval, export, models, predict, student, train
from crd.config import Config

PROJECT = Path(train.__file__).parent
# Two steps a pix2pix epoch, four a CycleGAN one.
TINY = {
    "data.limit": 4,
    "data.batch_size": 2,
    "data.load_size": 36,
    "data.crop_size": 32,
    "networks.teacher_width": 4,
    "networks.student_width": 2,
    "networks.discriminator_width": 4,
    "optim.epochs": 2,
    "optim.decay_epochs": 1,
    "judging.every_epochs": 2,
    "run.log_every": 1,
}
CYCLE = {
    "model": "cyclegan",
    "student_gan_weight": 1.0,
    "data.name": "photos_unpaired",
    "data.direction": "AtoB",
    "data.batch_size": 1,
    "teaching.gan": "lsgan",
    "teaching.pool_size": 2,
    "optim.student_share": 1,
}
MODELS = {"pix2pix": {}, "cyclegan": CYCLE}
SHORT = {"optim__epochs": 1, "optim__decay_epochs": 0, "judging__every_epochs": 1}
SETS = {"row", "column", "patch"}


def options(model: str = "pix2pix", **overrides) -> list[str]:
    return testing.options(TINY | MODELS[model], **overrides)


def arguments(out: Path, model: str = "pix2pix", **overrides) -> list[str]:
    return testing.arguments(PROJECT / "cfg.yaml", TINY | MODELS[model], out, **overrides)


def experiment(model: str, **overrides) -> Config:
    return config.override(config.load(Config, PROJECT / "cfg.yaml"), options(model, **overrides))


command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)


@pytest.fixture(scope="session", params=sorted(MODELS))
def straight(request, tmp_path_factory) -> tuple[str, Path]:
    """A whole run of each model that was never interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp(request.param)
    train.main(arguments(out, request.param))
    return request.param, out / "distil"


@pytest.mark.smoke
def test_smoke(tmp_path):
    """Two steps and an evaluation, as typed."""
    short = ["--optim.epochs=1", "--optim.decay_epochs=0", "--data.limit=8"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "distil"
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "env.json", "log.jsonl", "last.pt", "best.pt", "samples"} <= files
    assert checkpoint.load(folder / "last.pt")["step"] == 2
    done = command(["eval.py", "--checkpoint", str(folder / "last.pt")])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["fd_random"] > 0 and metrics["images"] == 8 and "fid" not in metrics
    assert "relation_error" in done.stdout


def test_the_order_of_a_run(straight):
    model, folder = straight
    lines = [line for line in log(folder) if line["split"] != "test"]
    kinds, progress = [line["split"] for line in lines], state(folder)["state"]["progress"]
    if model == "pix2pix":
        assert kinds == ["both"] * 6 and progress["teacher_steps"] == progress["student_steps"] == 6
        assert "gan" not in lines[0]
    else:  # blocks of two teacher epochs of 4 steps and two student epochs; the last one has one and two
        assert kinds == ["teacher"] * 8 + ["student"] * 8 + ["teacher"] * 4 + ["student"] * 8
        assert {line["lr"] for line in lines[:16]} == {1e-3} and {line["lr"] for line in lines[16:]} == {5e-4}
        assert "gan" in lines[8]
    assert {"style", "feature", *SETS} <= lines[-1].keys()
    names = {"pix2pix": {"teacher_AtoB"}, "cyclegan": {"teacher_AtoB", "teacher_BtoA"}}[model]
    assert progress["best"].keys() == names | {"student"}


def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, straight):
    model, folder = straight
    step = {"pix2pix": 4, "cyclegan": 19}[model]  # of CycleGAN's teachers, in the second block, in mid-epoch
    words = arguments(tmp_path, model, run__save_every=2)
    assert interrupted(words, 9, step).returncode == -9
    assert state(tmp_path / "distil")["step"] == {"pix2pix": 2, "cyclegan": 18}[model]
    train.main([*words, "--resume", "auto"])
    assert_same(state(folder), state(tmp_path / "distil"))
    assert log(folder) == log(tmp_path / "distil")


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path, straight, monkeypatch):
    model, folder = straight
    step = {"pix2pix": 5, "cyclegan": 11}[model]  # inside an epoch; of CycleGAN's students'
    words, watch, pending = arguments(tmp_path, model), Run.watch, [signal.SIGTERM]

    def watch_and_signal(run, at, *rest):
        if at == step and pending:
            os.kill(os.getpid(), pending.pop())
        return watch(run, at, *rest)

    monkeypatch.setattr(Run, "watch", watch_and_signal)
    with pytest.raises(Interrupted, match="--resume auto") as stopped:
        train.main(words)
    assert stopped.value.code == 143 and state(tmp_path / "distil")["step"] == step
    train.main([*words, "--resume", "auto"])
    assert_same(state(folder), state(tmp_path / "distil"))


def test_workers_do_not_change_a_bit_and_seeds_do(tmp_path, straight):
    model, folder = straight
    train.main(arguments(tmp_path / "workers", model, data__workers=2))
    train.main(arguments(tmp_path / "seed", model, seed=1))
    assert_same(state(folder)["state"], state(tmp_path / "workers" / "distil")["state"])
    weights = [state(path)["state"]["model"]["model.1.weight"] for path in (folder, tmp_path / "seed" / "distil")]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("batch", ["mean", "sum"])
def test_micro_batches_add_up_to_the_batch(batch):
    """Gradients of a batch of three in one part, and in parts of two and one, whatever relations do over the batch."""
    conf = experiment("pix2pix", relations__batch=batch, student_gan_weight=1.0)
    source, answer = (torch.rand(3, 3, 32, 32, dtype=torch.float64) * 2 - 1 for _ in range(2))
    torch.manual_seed(0)
    networks = {name: network.double() for name, network in train.build(conf).items()}
    learner = student.Student(conf, networks["student"], VGGFeatures(16).double())
    found = []
    learner.optimiser.step = lambda: None
    for cut in ([3], [2, 1]):
        parts = list(zip(source.split(cut), answer.split(cut)))
        batches = [(a, None, None, len(a) / 3) for a, _ in parts]
        keep = lambda _terms, parameters: found.append([p.grad.clone() for p in parameters])
        learner.step(batches, [b for _, b in parts], networks["D"], keep)
    assert all(torch.allclose(*pair, rtol=1e-8, atol=1e-8) for pair in zip(*found))


@pytest.mark.parametrize("model", sorted(MODELS))
def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path, model):
    # Three images leave a last batch of one, which only one process has. In float32 Adam turns rounding into steps of
    # full size where a gradient is zero but for rounding: these are biases before a normalisation.
    shared = {**SHORT, "data__batch_size": 2, "data__limit": 3, "run__device": "cpu", "optim__lr": 1e-4}
    shared |= {"teaching__pool_size": 50, "relations__batch": "sum"}
    train.main(arguments(tmp_path / "one", model, run__micro_batches=2, **shared))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", model, **shared))
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "distil") for name in ("one", "two"))
    assert one["step"] == two["step"] == {"pix2pix": 2, "cyclegan": 4}[model]
    for network in ("model", "teacher"):
        for key, value in one["state"][network].items():
            if key.endswith("weight"):
                assert torch.allclose(value, two["state"][network][key], rtol=0, atol=2e-5), (network, key)


def test_a_student_of_a_given_teacher(tmp_path, straight):
    model, folder = straight
    train.main(arguments(tmp_path, model, teacher__checkpoint=folder / "last.pt", student_gan_weight=1.0))
    found, given = state(tmp_path / "distil")["state"], state(folder)["state"]
    assert_same(found["teacher"], given["teacher"])
    discriminator = {"pix2pix": "D", "cyclegan": "D_A"}[model]
    assert_same(found[discriminator], given[discriminator])
    assert {line["split"] for line in log(tmp_path / "distil")} == {"student", "test"}
    assert found["progress"]["teacher_steps"] == 0


def test_released_teachers_are_two_files(tmp_path, straight):
    model, folder = straight
    given = state(folder)["state"]
    discriminator = {"pix2pix": "D", "cyclegan": "D_A"}[model]
    torch.save(given["teacher"], tmp_path / "netG.pth")
    torch.save(given[discriminator], tmp_path / "netD.pth")
    files = {"teacher__checkpoint": tmp_path / "netG.pth", "teacher__discriminator": tmp_path / "netD.pth"}
    train.main(arguments(tmp_path, model, **SHORT, **files))
    assert_same(state(tmp_path / "distil")["state"][discriminator], given[discriminator])
    del files["teacher__discriminator"]
    with pytest.raises(CheckpointError, match=f"under '{discriminator}'|does not fit"):
        train.main(arguments(tmp_path / "lone", model, **SHORT, student_gan_weight=1.0, **files))


def test_stage_teacher_trains_no_student(tmp_path, straight):
    model, folder = straight
    train.main([*arguments(tmp_path, model), "--stage", "teacher"])
    assert not (tmp_path / "distil").exists()
    alone, together = state(tmp_path / "teacher")["state"], state(folder)["state"]
    assert alone["progress"]["student_steps"] == 0
    if model == "pix2pix":  # CycleGAN's student epochs come between, and with them other orders of images
        assert_same(alone["G"], together["G"])
        assert_same(alone["D"], together["D"])
    assert eval.main(["--checkpoint", str(tmp_path / "teacher" / "last.pt")])["_meta"]["role"] == "teacher"


@pytest.mark.parametrize(("legacy", "kept"), [("false", False), ("true", True)])
def test_which_teacher_is_best(tmp_path, monkeypatch, legacy, kept):
    """The second block improves one direction alone, BtoA: only the released code's rule then replaces G_A."""
    values = iter([5.0, 5.0, 9.0, 6.0, 4.0, 9.0])  # AtoB, BtoA, student of each block
    monkeypatch.setattr(train.Experiment, "_evaluate", lambda *_: {"fd_random": next(values)})
    train.main(arguments(tmp_path, "cyclegan", teacher__legacy_best=legacy))
    found = state(tmp_path / "distil")["state"]
    assert torch.equal(found["teacher"]["model.1.weight"], found["G_A"]["model.1.weight"]) == kept
    assert found["progress"]["best"]["teacher_AtoB"] == 5.0


def test_evaluation_prediction_and_export(tmp_path, straight):
    model, folder = straight
    weights = str(folder / "last.pt")
    words = ["--checkpoint", weights, "--gallery", str(tmp_path / "page"), "--out", str(tmp_path / "m.json")]
    metrics = eval.main([*words, "--relations", str(tmp_path / "maps"), "--latency", "1"])
    assert all(metrics[f"latency_{layout}_1_threads"] > 0 for layout in ("contiguous", "channels_last"))
    last = [line for line in log(folder) if line["split"] == "test" and "fd_random" in line][-1]
    assert metrics["fd_random"] == last["fd_random"] and metrics["images"] == 4
    parts = sum(metrics[f"relation_{name}"] for name in SETS)
    assert metrics["relation_error"] == pytest.approx(parts) and parts > 0 and metrics["teacher_l1"] > 0
    assert {path.stem for path in (tmp_path / "maps").iterdir()} == SETS
    assert (tmp_path / "page" / "index.html").read_text().count("<tr>") == 5
    write_image(tmp_path / "in" / "odd size.png", np.full((21, 34, 3), 90, np.uint8))
    (result,) = predict.main([str(tmp_path / "in"), "--weights", weights, "--out", str(tmp_path / "out")])
    assert result.is_file() and (tmp_path / "out" / "index.html").is_file()
    if model == "pix2pix":  # the other's generator is the same
        found = export.main(["--checkpoint", weights, "--out", str(tmp_path / "student.onnx"), "--size", "32"])
        assert found["difference"] < 1e-4
    # A released student is a bare state dict.
    torch.save(state(folder)["state"]["model"], tmp_path / "best_net_G16.pth")
    released = ["--checkpoint", str(tmp_path / "best_net_G16.pth")]
    again = eval.main([*released, "--config", str(folder / "config.yaml"), "--out", str(tmp_path / "r.json")])
    assert again["fd_random"] == metrics["fd_random"] and "relation_error" not in again
    with pytest.raises(CheckpointError, match="needs --config"):
        eval.main(released)
    with pytest.raises(CheckpointError, match="width 5"):
        eval.main([*released, "--config", str(folder / "config.yaml"), "--networks.student_width=5"])


def test_statistics_of_own_images_stand_in_for_them(tmp_path, straight):
    _, folder = straight
    path, conf = tmp_path / "real.npz", ["--config", str(folder / "config.yaml")]
    assert eval.main([*conf, "--statistics", str(path)])["images"] == 4
    words = ["--checkpoint", str(folder / "last.pt"), "--out", str(tmp_path / "m.json")]
    assert eval.main([*words, f"--judging.statistics={path}"])["fd_random"] == eval.main(words)["fd_random"]


VARIANTS = {
    "bf16": {"run__precision": "bf16"},
    "perceptual alone": {"relations__rows": 0, "relations__columns": 0, "relations__patches": 0},
    "released pix2pix code": {"relations__batch": "sum", "relations__patch_mode": "reference"},
    "joint patches": {"relations__patch_mode": "joint", "relations__duplicates": "reference"},
    "angles alone": {"relations__distance": 0, "student_gan_weight": 1.0},
    "batch norm": {"networks__norm": "batch"},
    "steps": {"optim__policy": "step", "optim__step_epochs": 1, "judging__every_steps": 1},
    "sparing teacher": {"optim__student_share": 2},
}


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_run(tmp_path, model, name):
    train.main(arguments(tmp_path, model, **{**SHORT, "data__limit": 2, **VARIANTS[name]}))
    lines = [line for line in log(tmp_path / "distil") if "style" in line]
    assert lines and all(np.isfinite(line["style"]) for line in lines)
    assert SETS & lines[0].keys() == (set() if name == "perceptual alone" else SETS)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_step_never_waits_for_the_device(model):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    conf = experiment(model)
    with torch.device("meta"):
        networks = train.build(conf)
        own, _ = networks.pop("student"), networks.pop("relations")
        teacher = TEACHERS[model](networks, conf.teaching, conf.optim)
        learner = student.Student(conf, own, VGGFeatures(8))
        a, b = torch.zeros(2, 2, 3, 64, 64)
    batch, finite = [(a, b, None, 1.0)], FiniteWatch()

    def check(terms, parameters):
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite.note(1, {**terms, "gradient": norm})

    generator, discriminator = (networks[name] for name in teacher.main)
    answer = generator(a)
    teacher.step(batch, *([[answer]] if model == "pix2pix" else []), check)
    learner.step(batch, [answer], discriminator, check)
    with pytest.raises(NotImplementedError, match="meta"):
        finite.require("a read", "of the device")


def test_the_student_takes_on_the_teachers_relations():
    """They fall on one image when they alone are followed, and the discriminator stays as it was."""
    torch.manual_seed(0)
    conf = experiment("pix2pix", perceptual__style=0, perceptual__feature=0, optim__lr=2e-3)
    networks = train.build(conf)
    own = student.Student(conf, networks["student"], torch.nn.Identity())
    source = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        answer = networks["G"](source)
    batch = [(source, source, None, 1.0)]
    totals = [sum(own.step(batch, [answer], networks["D"], lambda *_: None)[name] for name in SETS) for _ in range(40)]
    assert totals[-1] < 0.7 * totals[0]
    assert all(p.grad is None and p.requires_grad for p in networks["D"].parameters())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    terms_of, calls = student.Student.terms, []

    def spoiled(self, *inputs):
        terms = terms_of(self, *inputs)
        calls.append(1)
        return {**terms, "row": terms["row"] * float("nan")} if len(calls) == 4 else terms

    monkeypatch.setattr(student.Student, "terms", spoiled)
    with pytest.raises(NonFiniteError, match=r"step 4 of stage distil: gradient, row"):
        train.main(arguments(tmp_path))
    saved = checkpoint.load(tmp_path / "distil" / "last.pt")
    assert saved["step"] == 2
    assert all(value.isfinite().all() for value in saved["state"]["model"].values())


@pytest.fixture
def given_files(tmp_path) -> dict[str, Path]:
    """Things that a user might pass by mistake."""
    (tmp_path / "empty").mkdir()
    torch.save(models.generator_of(experiment("pix2pix").networks, 7).state_dict(), tmp_path / "wide.pth")
    testing.hostile(tmp_path / "hostile.pt", tmp_path / "canary")
    return {name: tmp_path / name for name in ("empty", "wide.pth", "hostile.pt", "none.pt")}


BAD = {
    "missing folder": ({"data__name": "aligned", "data__root": "{empty}"}, "does not exist"),
    "crop larger than image": ({"data__crop_size": 40}, "below data.crop_size"),
    "smaller than a batch": ({"data__batch_size": 8}, "fewer than data.batch_size 8"),
    "sides not divisible": ({"data__crop_size": 34}, "multiple of 4"),
    "no pairs": ({"data__name": "photos_unpaired"}, "pix2pix needs pairs"),
    "one patch": ({"relations__patch_size": 32}, "holds 1 patches of relations.patch_size 32"),
    "teacher of another width": ({"teacher__checkpoint": "{wide.pth}"}, "does not fit"),
    "hostile teacher": ({"teacher__checkpoint": "{hostile.pt}"}, "never executed"),
    "no teacher": ({"teacher__checkpoint": "{none.pt}"}, "no such file"),
    "no feature weights": ({"perceptual__network": "vgg16", "perceptual__weights": "{none.pt}"}, "no such file"),
    "no judge's weights": ({"judging__network": "inception", "judging__weights": "{none.pt}"}, "no such file"),
    "no statistics": ({"judging__statistics": "{none.pt}"}, "no readable statistics"),
    "unknown key": ({"relations__row": 1}, "not an option"),
    "unknown mode": ({"relations__patch_mode": "per_patch"}, "per_patch"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written_over(tmp_path, given_files, name):
    overrides, words = BAD[name]
    paths = {f"{{{key}}}": str(path) for key, path in given_files.items()}
    kept = tmp_path / "run" / "distil" / "last.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"an earlier result")
    with pytest.raises(InputError, match=words):
        train.main(arguments(tmp_path / "run", **{k: paths.get(v, v) for k, v in overrides.items()}))
    assert kept.read_bytes() == b"an earlier result" and list(kept.parent.iterdir()) == [kept]
    assert not (tmp_path / "canary").exists()


def test_bad_input_exits_with_2(tmp_path):
    done = command(["train.py", "--config", "cfg.yaml", "--relations.rows", "-1"])
    assert done.returncode == 2 and "rows" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        eval.main(["--checkpoint", str(tmp_path / "none.pt")])


def test_resume_refuses_another_experiment(straight):
    model, folder = straight
    words = arguments(folder.parent, model)
    with pytest.raises(InputError, match=r"relations.angle: 2.0 -> 1.0"):
        train.main([*words, "--relations.angle=1.0", "--resume=auto"])


def test_bench_writes_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "bench.py"))
    monkeypatch.setattr(bench, "SIZE", 64)
    monkeypatch.setattr(bench, "SLICES", 48)
    rows = bench.main(["--rounds", "1"])
    assert rows.keys() == {"step", "angle_256"} and rows["angle_256"]["memory"] < 0.5
    assert json.loads((tmp_path / "runs" / "bench.json").read_text())["step"]["cost"] > 0


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_a_step(tmp_path, path):
    conf = config.load(Config, path)
    root = domain_images(tmp_path, conf.data.name, max(2, conf.data.batch_size))
    words = ["--config", str(path), "--out", str(tmp_path / "run"), f"--data.root={root}", "--optim.epochs=1"]
    words += ["--optim.decay_epochs=0", "--optim.student_share=1", "--judging.every_epochs=1", "--data.workers=0"]
    words += ["--perceptual.network=random", "--judging.network=random", "--networks.teacher_width=8"]
    words += [
        "--networks.student_width=4",
        "--networks.discriminator_width=8",
        f"--data.limit={max(2, conf.data.batch_size)}",
    ]
    train.main(words)
    assert checkpoint.load(tmp_path / "run" / "distil" / "last.pt")["step"] >= 1
