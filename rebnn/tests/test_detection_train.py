"""The detection commands as a user runs them: train, stop, resume, distribute, evaluate; and what they refuse."""

import json
import math
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import InputError, NonFiniteError
from common.run import Run, entry
from common.testing import assert_same, log, state

import pytest
import torch

from rebnn import eval_detection, models, train_detection
from rebnn.detection import pair
from rebnn.detection.config import Config
from rebnn.detection.weights import load_detector
from rebnn.method import Balance, BinaryConv2d
from rebnn.tests.test_detection import coco_folder, voc_folder

PROJECT = Path(train_detection.__file__).parent
EMBEDDED = str(PROJECT / "configs" / "embedded_detection.yaml")
# Two steps an epoch on four small images.
SMALL = {
    "data.size": 64,
    "data.long_sides": [64],
    "data.short_sides": [64],
    "data.test_long": 64,
    "data.test_short": 64,
    "data.digits": 10,
    "data.train_images": 4,
    "data.test_images": 2,
    "data.batch_size": 2,
    "data.flip": 0.5,
    "detector.width": 1 / 16,
    "detector.anchor_scale": 4,
    "detector.proposals": 30,
    "detector.regions": 16,
    "step1.epochs": 0,
    "step2.epochs": 2,
    "step2.warmup": 2,
    "step2.milestones": [1],
    "run.log_every": 1,
}


arguments = partial(testing.arguments, EMBEDDED, SMALL)
command = partial(testing.python, PROJECT)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No curves, which take longer than these runs; test_smoke has them."""
    for name in ("draw_oscillation", "draw_latent"):
        monkeypatch.setattr(train_detection.figures, name, lambda *_: False)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A run of both steps."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("base")
    train_detection.main(arguments(out, step1__epochs=1, step1__milestones=[1], step1__warmup=0, eval_every=2))
    return out


@pytest.mark.smoke
def test_smoke(tmp_path, capsys):
    """Two steps as typed, and an evaluation."""
    words = arguments(tmp_path / "run", step2__epochs=1)
    words[1] = "configs/embedded_detection.yaml"
    done = command(["train_detection.py", *words])
    assert done.returncode == 0, done.stderr
    assert "train images:" in done.stderr and "background" in done.stderr
    files = {path.name for path in (tmp_path / "run" / "step2").iterdir()}
    assert {"config.yaml", "env.json", "log.jsonl", "last.pt", "samples"} <= files
    pictures = {path.name for path in (tmp_path / "run" / "step2" / "samples").iterdir()}
    assert pictures == {"detections.png", "oscillation.png", "latent_weights.png"}
    eval_detection.main(["--checkpoint", str(tmp_path / "run" / "step2" / "last.pt")])
    metrics = json.loads((tmp_path / "run" / "step2" / "metrics.json").read_text())
    assert 0 <= metrics["map_area"] <= 100 and metrics["flip_ratio"] > 0 and "ap50" in metrics
    assert "map_voc07" in capsys.readouterr().out and (tmp_path / "run" / "step2" / "metrics.png").is_file()


def test_step2_goes_on_from_step1_and_logs_what_it_saw(base):
    lines = log(base / "step2")
    counted = [line for line in lines if line["split"] == "data"]
    assert [line["part"] for line in counted] == ["train", "test"]
    assert all({"boxes", "clipped", "dropped", "images", "background"} <= line.keys() for line in counted)
    oscillation = [line for line in lines if line["split"] == "oscillation"]
    assert len(oscillation) == 2 and len(oscillation[0]["layers"]) == 8 + 8 + 1  # body, pyramid, proposal head
    tested = [line for line in lines if line["split"] == "test"]
    assert [line["epoch"] for line in tested] == [2]
    one, two = (state(base / name)["state"]["model"] for name in ("step1", "step2"))
    assert {key for key in two if key not in one} == {key for key in two if key.endswith("scaling_factor")}
    assert "flip_ratio" not in eval_detection.main(["--checkpoint", str(base / "step1" / "last.pt")])
    metrics = eval_detection.main(["--checkpoint", str(base / "step2" / "last.pt")])
    assert metrics["map_area"] == tested[-1]["map_area"] and metrics["dense_binary_macs"] > 0
    assert metrics["final_train_loss"] == pytest.approx(tested[-1]["train_loss"])


class Killed(Exception):
    """Stands for SIGKILL: nothing that follows in the run happens."""


def killed(monkeypatch, words: list[str], step: int) -> None:
    """Run until the gradient of a step is there, then stop dead."""
    watch = Run.watch

    def watch_and_die(run, at, *rest):
        if at == step:
            raise Killed
        return watch(run, at, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "watch", watch_and_die)
        with pytest.raises(Killed):
            train_detection.main(words)


@pytest.mark.parametrize(
    ("options", "step"),
    [({}, 4), ({"data__workers": 1, "data__repeat": 2, "step2__iterations": 3}, 3)],
    ids=["at an epoch's end", "inside an epoch, two workers, counted in iterations"],
)
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, monkeypatch, options, step):
    options = {**options, "run__save_every": 1 if step == 3 else 0, "eval_every": 9}
    train_detection.main(arguments(tmp_path / "straight", **options))
    words = arguments(tmp_path / "killed", **options)
    killed(monkeypatch, words, step)
    assert state(tmp_path / "killed" / "step2")["step"] == 2
    train_detection.main([*words, "--resume", "auto"])
    straight, resumed = tmp_path / "straight" / "step2", tmp_path / "killed" / "step2"
    kept = state(straight)
    assert kept["state"]["balance"]["gamma"].any() and kept["step"] == (3 if step == 3 else 4)
    assert_same(kept, state(resumed))
    assert log(straight) == log(resumed)


def test_a_signal_ends_the_run_after_its_step(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "should_stop", lambda run, step: step == 1)
    with pytest.raises(BaseException, match="--resume auto continues"):
        train_detection.main(arguments(tmp_path))
    assert state(tmp_path / "step2")["step"] == 1


def test_seeds_differ_and_micro_batches_are_parts_of_the_batch(tmp_path):
    options = {"step2__epochs": 1, "eval_every": 9, "detector__norm_eval": "true", "data__test_images": 1}
    runs = {"one": {}, "parts": {"run__micro_batches": 2}, "seed": {"seed": 1}}
    for name, more in runs.items():
        train_detection.main(arguments(tmp_path / name, **options, **more))
    weights = {name: state(tmp_path / name / "step2")["state"] for name in runs}
    first = "backbone.body.conv1.weight"
    assert not torch.equal(weights["one"]["model"][first], weights["seed"]["model"][first])
    # Each image of a part takes as many anchors and regions as in the batch, so that only sums are ordered differently.
    losses = [weights[name]["progress"]["history"][0]["loss"] for name in ("one", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path):
    options = {"run__device": "cpu", "step2__epochs": 1, "detector__norm_eval": "true"}
    train_detection.main(arguments(tmp_path / "one", run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", **options), script="train_detection.py")
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "step2")["state"] for name in ("one", "two"))
    for key, value in one["model"].items():
        assert torch.allclose(value.double(), two["model"][key].double(), rtol=0, atol=1e-5), key
    assert torch.allclose(one["balance"]["gamma"], two["balance"]["gamma"], rtol=1e-3, atol=1e-6)
    assert one["progress"]["history"][0]["loss"] == pytest.approx(two["progress"]["history"][0]["loss"], abs=1e-5)


VARIANTS = {
    "c4": {"detector__name": "bidet"},
    "ssd": {"detector__name": "ssd", "detector__width": 1 / 32, "data__test_images": 1, "step2__iterations": 1},
    "released": {"binary__gamma": "released", "binary__alpha_init": "randn", "detector__conv_bias": "true"},
    "bidet's scale": {"binary__gamma": "none", "binary__binarizer": "bidet", "detector__pad_value": -1},
    "bf16, sgd, frozen": {
        "run__precision": "bf16",
        "step2__optimiser": "sgd",
        "detector__frozen": 2,
        "detector__norm_eval": "true",
        "step2__clip": 0,
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run_and_are_evaluated(tmp_path, name):
    train_detection.main(arguments(tmp_path, step2__epochs=1, **VARIANTS[name]))
    lines = log(tmp_path / "step2")
    terms = [value for line in lines if line["split"] == "train" for key, value in line.items() if "loss" in key]
    assert terms and all(math.isfinite(value) for value in terms)
    metrics = eval_detection.main(["--checkpoint", str(tmp_path / "step2" / "last.pt")])
    assert metrics["map_area"] == [line["map_area"] for line in lines if line["split"] == "test"][-1]
    assert metrics["binary_params"] > 0.5 * metrics["params"] * (name == "c4")


def test_a_few_images_are_learned_by_heart(tmp_path):
    """Binary weights and activations from the first step on; mAP on the training images themselves."""
    options = {"data__batch_size": 4, "data__repeat": 40, "data__flip": 0.0, "detector__width": 1 / 8}
    steps = {"step2__iterations": 80, "step2__lr": 1e-2, "step2__milestones": [64], "step2__warmup": 10}
    train_detection.main(arguments(tmp_path, **options, **steps, detector__regions=32, eval_every=9, run__log_every=20))
    metrics = eval_detection.main(["--checkpoint", str(tmp_path / "step2" / "last.pt"), "--split", "train"])
    assert metrics["_meta"]["counts"]["boxes"] >= 4
    assert metrics["map_area"] > 90 and metrics["ap50"] > 90


def test_what_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    step = Balance.step

    def spoil(self, *words):
        step(self, *words)
        next(iter(self.layers.values())).weight.data.view(-1)[0] = torch.nan

    monkeypatch.setattr(Balance, "step", spoil)
    with pytest.raises(NonFiniteError, match="step 2 of stage step2"):
        train_detection.main(arguments(tmp_path))


def test_weights_are_taken_from_a_run_and_from_outside(tmp_path, base):
    start = base / "step2" / "last.pt"
    train_detection.main(arguments(tmp_path, step2__start=start, step2__lr=1e-9, step2__epochs=1))
    given, found = (state(folder / "step2")["state"]["model"] for folder in (base, tmp_path))
    assert all(torch.allclose(found[key], given[key], atol=1e-5) for key in given if key.endswith("weight"))
    experiment = config.from_dict(Config, checkpoint.load_own(start, "rebnn")["config"])
    network = pair.detector(experiment, "paper")
    load_detector(network, start)
    torch.save(network.state_dict(), tmp_path / "foreign.pth")
    (tmp_path / "c.yaml").write_text(config.dump(experiment))
    words = ["--checkpoint", str(tmp_path / "foreign.pth"), "--config", str(tmp_path / "c.yaml")]
    metrics = eval_detection.main(words)
    assert metrics["params"] == sum(p.numel() for p in network.parameters()) and "flip_ratio" not in metrics


BAD = {
    "no data": ({"data__name": "voc", "data__root": "nowhere"}, "holds neither VOC2007"),
    "no start": ({"step2__start": "none.pt"}, "there is no detector to start from"),
    "no weights": ({"detector__weights": "none.pt"}, "no such file"),
    "reactnet with gamma": ({"binary__binarizer": "reactnet"}, "give --binary.gamma none"),
    "nothing to train": ({"step2__epochs": 0}, "nothing would be trained"),
    "unknown detector": ({"detector__name": "yolo"}, "detector.name"),
    "all frozen": ({"detector__frozen": 9}, "the whole body would stay"),
    "too small": ({"data__size": 20}, "at least 32"),
    "digits": ({"data__digits": 11}, "there are ten"),
    "one image": ({"detector__name": "ssd", "data__batch_size": 1}, "needs two images"),
    "sizes": ({"data__long_sides": [64, 80]}, "are pairs"),
    "milestone": ({"step2__milestones": [0]}, "step2.milestones"),
    "unknown key": ({"detector__bodi": "resnet18"}, "did you mean detector.body"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written(tmp_path, name):
    overrides, words = BAD[name]
    with pytest.raises(InputError, match=words):
        train_detection.main(arguments(tmp_path / "run", **overrides))
    assert not (tmp_path / "run").exists()


def test_bad_annotations_end_with_2(tmp_path, monkeypatch, capsys):
    voc_folder(tmp_path / "voc", [("dog", 0, (20, 20, 20, 40))], count=1)
    words = ["--config", str(PROJECT / "configs" / "voc_fasterrcnn_r18.yaml")]
    words += [f"--data.root={tmp_path / 'voc'}", f"--out={tmp_path / 'run'}"]
    monkeypatch.setattr("sys.argv", ["train_detection.py", *words])
    with pytest.raises(SystemExit) as left:
        entry(train_detection.main)
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.startswith("error: ") and "has no area" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    "path",
    [*sorted((PROJECT / "configs").glob("voc_*.yaml")), *sorted((PROJECT / "configs").glob("coco_*.yaml"))],
    ids=lambda path: path.stem,
)
def test_every_config_takes_a_step(tmp_path, path):
    experiment = config.load(Config, path)
    root = (voc_folder if experiment.data.name == "voc" else coco_folder)(tmp_path / "data", count=2)
    words = ["--config", str(path), "--out", str(tmp_path / "run"), f"--data.root={root}", "--data.workers=0"]
    words += ["--data.batch_size=2", "--data.limit=2", "--data.repeat=1", "--step2.iterations=1"]
    words += ["--data.long_sides=[128]", "--data.short_sides=[96]", "--data.test_long=128", "--data.test_short=96"]
    train_detection.main(words)
    assert checkpoint.load(tmp_path / "run" / "step2" / "last.pt")["step"] == 1
    binary = models.binary_convolutions(pair.build(experiment)[1])
    assert binary and all(isinstance(layer, BinaryConv2d) for layer in binary.values())
