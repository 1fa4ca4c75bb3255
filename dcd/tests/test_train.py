"""The commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import functools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, NonFiniteError
from common.finite import FiniteWatch
from common.gan.perceptual import VGGFeatures
from common.gan.teachers import TEACHERS
from common.images import read_image, write_image
from common.testing import assert_same, domain_images, log, state

import numpy as np
import pytest
import torch

from dcd import bench, cityscapes, drn, eval, export, models, predict, student, train
from dcd.config import Config
from dcd.method import tapped

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
    "data.name": "photos_unpaired",
    "data.batch_size": 1,
    "teaching.gan": "lsgan",
    "teaching.pool_size": 2,
    "optim.student_share": 1,
}
MODELS = {"pix2pix": {}, "cyclegan": CYCLE}


def arguments(out: Path, model: str = "pix2pix", **overrides) -> list[str]:
    return testing.arguments(PROJECT / "cfg.yaml", TINY | MODELS[model], out, **overrides)


command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """From a model to the folder of its whole run, which was never interrupted and is made once."""

    @functools.cache
    def run(model: str) -> Path:
        torch.set_num_threads(1)
        out = tmp_path_factory.mktemp(model)
        train.main(arguments(out, model))
        return out / "distil"

    return run


@pytest.fixture(params=sorted(MODELS))
def straight(request, whole) -> tuple[str, Path]:
    return request.param, whole(request.param)


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
    assert "fd_random" in done.stdout


def test_the_order_of_a_run(straight):
    model, folder = straight
    lines = [line for line in log(folder) if line["split"] != "test"]
    kinds = [line["split"] for line in lines]
    progress = state(folder)["state"]["progress"]
    if model == "pix2pix":
        assert kinds == ["both"] * 6 and progress["teacher_steps"] == progress["student_steps"] == 6
    else:  # two teacher epochs of 4 steps, two student epochs; the last block has one and two
        assert kinds == ["teacher"] * 8 + ["student"] * 8 + ["teacher"] * 4 + ["student"] * 8
        assert [line["lr"] for line in lines[:16]] == [1e-3] * 16
        assert {line["lr"] for line in lines[16:]} == {5e-4}
    names = {"pix2pix": {"teacher_AtoB"}, "cyclegan": {"teacher_AtoB", "teacher_BtoA"}}[model]
    assert progress["best"].keys() == names | {"student"}


def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, straight):
    model, folder = straight
    step = {"pix2pix": 4, "cyclegan": 20}[model]  # of CycleGAN in a teacher's epoch of the second block
    words = arguments(tmp_path, model, run__save_every=3)
    assert interrupted(words, 9, step).returncode == -9
    assert state(tmp_path / "distil")["step"] == {"pix2pix": 3, "cyclegan": 18}[model]  # inside an epoch
    train.main([*words, "--resume", "auto"])
    assert_same(state(folder), state(tmp_path / "distil"))
    assert log(folder) == log(tmp_path / "distil")


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path, straight):
    model, folder = straight
    step = {"pix2pix": 5, "cyclegan": 11}[model]  # inside an epoch; of CycleGAN's students'
    words = arguments(tmp_path, model)
    done = interrupted(words, 15, step)
    assert done.returncode == 143 and "--resume auto" in done.stderr
    assert state(tmp_path / "distil")["step"] == step
    train.main([*words, "--resume", "auto"])
    assert_same(state(folder), state(tmp_path / "distil"))
    assert log(folder) == log(tmp_path / "distil")


def test_workers_do_not_change_a_bit_and_seeds_do(tmp_path, whole):
    folder = whole("pix2pix")
    train.main(arguments(tmp_path / "workers", data__workers=2))
    train.main(arguments(tmp_path / "seed", seed=1))
    assert_same(state(folder)["state"], state(tmp_path / "workers" / "distil")["state"])
    weights = [state(path)["state"]["model"]["model.1.weight"] for path in (folder, tmp_path / "seed" / "distil")]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path, model):
    # Three images leave a last batch of one, which only one process has.
    options = {"data__batch_size": 2, "data__limit": 3, "run__device": "cpu", "optim__epochs": 1}
    options |= {"optim__decay_epochs": 0, "judging__every_epochs": 1, "teaching__pool_size": 50}
    train.main(arguments(tmp_path / "one", model, run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", model, **options))
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "distil") for name in ("one", "two"))
    assert one["step"] == two["step"] == {"pix2pix": 2, "cyclegan": 4}[model]
    # Moments and not weights: Adam turns a gradient that is zero but for rounding into a step of full size.
    for path in (("generators",), ("discriminators",), ("student", "optimiser")):
        moments = []
        for content in (one["state"], two["state"]):
            for key in path:
                content = content[key]
            moments.append(torch.cat([part["exp_avg"].flatten() for part in content["state"].values()]))
        assert moments[0].abs().max() > 0
        assert (moments[0] - moments[1]).abs().max() <= 1e-4 * moments[0].abs().max(), path
    if model == "cyclegan":
        pools = two["state"]["pools"]
        assert len(pools) == 2 and [len(pool["A"]["images"]) for pool in pools] == [2, 1]


def test_a_student_of_a_given_teacher(tmp_path, straight):
    model, folder = straight
    words = arguments(tmp_path, model, teacher__checkpoint=folder / "last.pt")
    train.main(words)
    found, given = state(tmp_path / "distil")["state"], state(folder)["state"]
    assert_same(found["teacher"], given["teacher"])
    discriminator = {"pix2pix": "D", "cyclegan": "D_A"}[model]
    assert_same(found[discriminator], given[discriminator])
    assert {line["split"] for line in log(tmp_path / "distil")} == {"student", "test"}
    assert found["progress"]["teacher_steps"] == 0


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


def test_evaluation(tmp_path, straight):
    _, folder = straight
    weights = str(folder / "last.pt")
    words = ["--checkpoint", weights, "--gallery", str(tmp_path / "page"), "--out", str(tmp_path / "m.json")]
    words += ["--latency", "1"]
    metrics = eval.main(words)
    assert all(metrics[f"latency_{layout}_1_threads"] > 0 for layout in ("contiguous", "channels_last"))
    last = [line for line in log(folder) if line["split"] == "test" and "fd_random" in line][-1]
    assert metrics["fd_random"] == last["fd_random"] and metrics["images"] == 4
    assert metrics["best_student"] <= metrics["fd_random"] and metrics["teacher_l1"] > 0
    assert (tmp_path / "page" / "index.html").read_text().count("<tr>") == 5
    # The last column is where the discriminator sees a difference between student and teacher.
    shown = read_image(tmp_path / "page" / "images" / "00000_difference.png")
    assert shown.shape == (32, 32, 3) and shown.max() == 255 and len(np.unique(shown)) > 2
    names = {path.name.split("_")[1] for path in (tmp_path / "page" / "images").iterdir()}
    assert names == {f"{name}.png" for name in ("source", "real", "teacher", "student", "difference")}
    # A released student is a bare state dict.
    torch.save(state(folder)["state"]["model"], tmp_path / "best_net_G.pth")
    released = ["--checkpoint", str(tmp_path / "best_net_G.pth")]
    again = eval.main([*released, "--config", str(folder / "config.yaml"), "--out", str(tmp_path / "r.json")])
    assert again["fd_random"] == metrics["fd_random"] and "teacher_l1" not in again
    with pytest.raises(CheckpointError, match="needs --config"):
        eval.main(released)
    with pytest.raises(CheckpointError, match="width 5"):
        eval.main([*released, "--config", str(folder / "config.yaml"), "--networks.student_width=5"])
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        eval.main(["--checkpoint", str(tmp_path / "none.pt")])


def test_prediction_and_export(tmp_path, whole):
    folder = whole("pix2pix")
    weights = str(folder / "last.pt")
    write_image(tmp_path / "in" / "odd size.png", np.full((21, 34, 3), 90, np.uint8))
    (result,) = predict.main([str(tmp_path / "in"), "--weights", weights, "--out", str(tmp_path / "out")])
    assert result.is_file() and (tmp_path / "out" / "index.html").is_file()
    found = export.main(["--checkpoint", weights, "--out", str(tmp_path / "student.onnx"), "--size", "32"])
    assert found["difference"] < 1e-4
    with pytest.raises(InputError, match="multiples of 4"):
        export.main(["--checkpoint", weights, "--size", "30"])


def test_statistics_of_own_images_stand_in_for_them(tmp_path, whole):
    folder = whole("pix2pix")
    path, conf = tmp_path / "real.npz", ["--config", str(folder / "config.yaml")]
    assert eval.main([*conf, "--statistics", str(path)])["images"] == 4
    words = ["--checkpoint", str(folder / "last.pt"), "--out", str(tmp_path / "m.json")]
    assert eval.main([*words, f"--judging.statistics={path}"])["fd_random"] == eval.main(words)["fd_random"]


@pytest.fixture
def cityscapes_like(tmp_path, monkeypatch) -> tuple[list[str], dict[str, np.ndarray]]:
    """Options of a run on pictures with label maps, and the label map of each test image; the DRN is a thin one."""
    monkeypatch.setattr(drn, "PLANES", (2, 2, 4, 4, 8, 8, 8, 8))
    rng, labels, lines = np.random.default_rng(0), {}, []
    for part, names in (("train", ("1", "2", "3")), ("val", ("10", "9", "town_000019_leftImg8bit"))):
        for name in names:
            write_image(tmp_path / part / f"{name}.png", rng.integers(0, 256, (40, 80, 3), dtype=np.uint8))
    for index, name in (("9", "9"), ("10", "10"), ("77", "town_000019_leftImg8bit")):
        # Ten labels that are ignored, and names of other rows inside those of this one.
        labels[name] = np.where(rng.random((24, 48)) < 0.1, 255, rng.integers(0, 19, (24, 48))).astype(np.uint8)
        write_image(tmp_path / "gt" / f"{index}.png", labels[name][..., None].repeat(3, 2))
        lines.append(f"{index} gt/{index}.png photos/{name if index == '77' else f'x{index}9'}.png")
    (tmp_path / "table.txt").write_text("\n".join(lines))
    torch.manual_seed(0)
    network = drn.DRNSeg()
    with torch.no_grad():
        network.seg.weight.normal_(0, 5)
    torch.save(network.state_dict(), tmp_path / "drn.pth")
    words = [f"--data.root={tmp_path}", "--data.name=aligned", "--data.direction=BtoA", "--data.limit=0"]
    return [
        *words,
        f"--segmentation.weights={tmp_path / 'drn.pth'}",
        f"--segmentation.table={tmp_path / 'table.txt'}",
    ], labels


def test_miou_is_measured_and_can_make_a_student_the_best(tmp_path, cityscapes_like):
    words, labels = cityscapes_like
    short = {"optim__epochs": 1, "optim__decay_epochs": 1, "judging__every_epochs": 1, "data__batch_size": 1}
    train.main([*arguments(tmp_path / "run", **short), *words])
    folder = tmp_path / "run" / "distil"
    metrics = eval.main(["--checkpoint", str(folder / "last.pt"), "--gallery", str(tmp_path / "page")])
    judged = [line for line in log(folder) if "fd_random" in line]
    assert len(judged) == 2 and judged[-1]["miou"] == metrics["miou"]
    assert metrics["best_student_miou"] == max(line["miou"] for line in judged)
    assert metrics["best_student"] == min(line["fd_random"] for line in judged)
    # By hand: the gallery's files are in the test set's order, which is that of the names, not of the table.
    network = drn.load_drn(tmp_path / "drn.pth")
    matrix = 0
    for i, name in enumerate(sorted(labels)):
        image = torch.from_numpy(read_image(tmp_path / "page" / "images" / f"{i:05d}_student.png")).permute(2, 0, 1)
        scores = network(cityscapes.normalise(image[None] / 255))[0].numpy()
        prediction = cityscapes.resize_scores(scores, (48, 24)).argmax(0)
        matrix = matrix + cityscapes.confusion(labels[name], prediction)
    assert matrix.sum() == sum((label < 19).sum() for label in labels.values())
    assert metrics["miou"] == cityscapes.mean_iou(matrix) > 0
    # Either criterion makes a best one.
    asked = train.Experiment._improved
    judge = SimpleNamespace(judges={"AtoB": SimpleNamespace(name="fid")}, progress={"best": {}})
    found = [asked(judge, "student", {"fid": fid, "miou": miou}) for fid, miou in ((9, 5), (10, 6), (8, 5), (9, 5))]
    assert found == [True, True, True, False] and judge.progress["best"] == {"student": 8, "student_miou": 6}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--data.direction=AtoB"], "direction BtoA"),
        (["--segmentation.table=null"], "segmentation.table with"),
        (["--segmentation.table=none.txt"], "cannot be read"),
        (["--segmentation.weights=none.pth"], "no such file"),
    ],
)
def test_miou_without_what_it_needs_is_refused(tmp_path, cityscapes_like, change, words):
    given, _ = cityscapes_like
    with pytest.raises(InputError, match=words):
        train.main([*arguments(tmp_path / "run"), *given, "--data.batch_size=1", *change])
    assert not (tmp_path / "run" / "distil" / "last.pt").exists()


VARIANTS = {
    "bf16": {"run__precision": "bf16"},
    "perceptual alone": {"distill__lambda_cd": 0, "distill__student_gan": "none"},
    "direct features": {"distill__through": "identity"},
    "teacher's image": {"distill__student_gan": "teacher_image"},
    "as the scripts": {"distill__perceptual_weights": "as_script", "distill__pairing": "sorted"},
    "other connectors": {"distill__train_teacher_connector": "false"},
    "OMGD": {"distill__through": "pooled", "distill__student_gan": "none", "distill__ssim": 10, "distill__tv": 1e-5},
    "batch norm": {"networks__norm": "batch"},
    "steps": {"optim__policy": "step", "optim__step_epochs": 1, "judging__every_steps": 1},
    "sparing teacher": {"optim__student_share": 2},
    "no identity": {"teaching__identity": 0, "teacher__legacy_best": "true"},
}


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_run(tmp_path, model, name):
    short = {"optim__epochs": 1, "optim__decay_epochs": 0, "data__limit": 2, "judging__every_epochs": 1}
    train.main(arguments(tmp_path, model, **{**short, **VARIANTS[name]}))
    lines = log(tmp_path / "distil")
    student_lines = [line for line in lines if "style" in line]
    assert student_lines and all(np.isfinite(line["style"]) for line in student_lines)
    if name == "perceptual alone":
        assert not {"dcd", "gan"} & student_lines[0].keys()
    if name == "OMGD":
        assert {"ssim", "tv", "dcd"} <= student_lines[0].keys() and student_lines[0]["tv"] > 0
    if name == "steps":
        assert sum("fd_random" in line for line in lines) > len({line["epoch"] for line in student_lines})


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_step_never_waits_for_the_device(model):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    meta, conf = torch.device("meta"), experiment(model)
    with meta:
        networks = train.build(conf)
        own, connectors = networks.pop("student"), networks.pop("connectors")
        teacher = TEACHERS[model](networks, conf.teaching, conf.optim)
        learner = student.Student(conf, own, connectors, VGGFeatures(8))
        a, b = torch.zeros(2, 2, 3, 64, 64)
    batch, finite = [(a, b, None, 1.0)], FiniteWatch()

    def check(terms, parameters):
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite.note(1, {**terms, "gradient": norm})

    generator, discriminator = (networks[name] for name in teacher.main)
    answer = tapped(generator, learner.layers, a)
    teacher.step(batch, *(([[answer[0]]]) if model == "pix2pix" else []), check)
    learner.step(batch, [(answer[0].detach(), [x.detach() for x in answer[1]])], discriminator, check)
    with pytest.raises(NotImplementedError, match="meta"):
        finite.require("a read", "of the device")


def experiment(model: str) -> Config:
    words = [f"--{key}={value}" for key, value in (TINY | MODELS[model]).items()]
    return config.override(config.load(Config, PROJECT / "cfg.yaml"), words)


def test_the_student_learns_what_it_is_given():
    """L_DCD falls on one image when it alone is followed."""
    torch.manual_seed(0)
    conf = config.override(experiment("pix2pix"), ["--perceptual.style=0", "--perceptual.feature=0", "--optim.lr=2e-3"])
    conf = config.override(conf, ["--distill.student_gan=none", "--distill.train_teacher_connector=false"])
    networks = train.build(conf)
    own = student.Student(conf, networks["student"], networks["connectors"], torch.nn.Identity())
    source = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        answer = tapped(networks["G"], own.layers, source)
    batch = [(source, source, None, 1.0)]
    terms = [own.step(batch, [answer], networks["D"], lambda *_: None)["dcd"] for _ in range(40)]
    assert terms[-1] < 0.7 * terms[0]


def test_a_second_run_moves_the_first_aside(tmp_path):
    short = {"optim__epochs": 1, "optim__decay_epochs": 0}
    for _ in range(2):
        train.main(arguments(tmp_path, **short))
    assert_same(state(tmp_path / "distil-1"), state(tmp_path / "distil"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    terms_of, calls = student.Student.terms, []

    def spoiled(self, *inputs):
        terms = terms_of(self, *inputs)
        calls.append(1)
        return {**terms, "dcd": terms["dcd"] * float("nan")} if len(calls) == 4 else terms

    monkeypatch.setattr(student.Student, "terms", spoiled)
    with pytest.raises(NonFiniteError, match=r"step 4 of stage distil: gradient, dcd"):
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
    "no domain folders": (
        {"model": "cyclegan", "data__name": "unaligned", "data__root": "{empty}"},
        "trainA does not exist",
    ),
    "crop larger than image": ({"data__crop_size": 40}, "below data.crop_size"),
    "smaller than a batch": ({"data__batch_size": 8}, "fewer than data.batch_size 8"),
    "sides not divisible": ({"data__crop_size": 34}, "multiple of 4"),
    "sides too small": ({"data__crop_size": 8}, "at least 12"),
    "no pairs": ({"data__name": "photos_unpaired"}, "pix2pix needs pairs"),
    "teacher of another width": ({"teacher__checkpoint": "{wide.pth}"}, "does not fit"),
    "hostile teacher": ({"teacher__checkpoint": "{hostile.pt}"}, "never executed"),
    "no teacher": ({"teacher__checkpoint": "{none.pt}"}, "no such file"),
    "no feature weights": ({"perceptual__network": "vgg16", "perceptual__weights": "{none.pt}"}, "no such file"),
    "no judge's weights": ({"judging__network": "inception", "judging__weights": "{none.pt}"}, "no such file"),
    "no statistics": ({"judging__statistics": "{none.pt}"}, "no readable statistics"),
    "unknown layer": ({"distill__layers": "[model.99]"}, "no such module"),
    "too few blocks": ({"networks__blocks": 2}, "at least 3 blocks"),
    "unknown key": ({"optim__learing_rate": 1}, "not an option"),
    "unknown network": ({"networks__generator": "unet_128"}, "unet_128"),
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


def test_bad_input_exits_with_2():
    done = command(["train.py", "--config", "cfg.yaml", "--distill.lambda_cd", "-1"])
    assert done.returncode == 2 and "lambda_cd" in done.stderr and "Traceback" not in done.stderr


def test_resume_refuses_another_experiment(tmp_path, straight):
    model, folder = straight
    words = arguments(folder.parent, model)
    with pytest.raises(InputError, match=r"distill.lambda_cd: 1.0 -> 0.5"):
        train.main([*words, "--distill.lambda_cd=0.5", "--resume=auto"])


def test_bench_writes_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "bench.py"))
    rows = bench.main(["--rounds", "1", "--size", "64"])
    assert {"step", "step_without_adversarial"} == rows.keys() and rows["step"]["memory"] > 0
    assert json.loads((tmp_path / "runs" / "bench.json").read_text())["step"]["cost"] > 0


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_a_step(tmp_path, path):
    conf = config.load(Config, path)
    root = domain_images(tmp_path, conf.data.name, max(2, conf.data.batch_size))
    words = ["--config", str(path), "--out", str(tmp_path / "run"), f"--data.root={root}", "--optim.epochs=1"]
    words += ["--optim.decay_epochs=0", "--optim.student_share=1", "--judging.every_epochs=1", "--data.workers=0"]
    words += ["--perceptual.network=random", "--judging.network=random", "--networks.teacher_width=8"]
    words += ["--networks.student_width=4", "--networks.discriminator_width=8"]
    train.main([*words, f"--data.limit={max(2, conf.data.batch_size)}"])
    assert checkpoint.load(tmp_path / "run" / "distil" / "last.pt")["step"] >= 1
