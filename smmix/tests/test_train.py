"""The commands as a user runs them: train, kill, resume, distribute, evaluate; and what they refuse."""

import contextlib
import json
from functools import partial
from pathlib import Path

from common import checkpoint, config, testing
from common.errors import CheckpointError, InputError, NonFiniteError
from common.finite import FiniteWatch
from common.images import write_image
from common.testing import assert_same, image_archive, log, state

import numpy as np
import pytest
import torch

from smmix import eval, train
from smmix.adapters import adapt
from smmix.config import Config, Mix
from smmix.method import SMMix
from smmix.mixing import build_mixer, step_random
from smmix.optim import adamw

PROJECT = Path(train.__file__).parent
# Four steps an epoch, both branches among them (seed 0).
TINY = {"data.limit": 32, "data.batch_size": 8, "model.drop_path": 0.2, "optim.epochs": 3, "run.log_every": 1}


arguments = partial(testing.arguments, PROJECT / "cfg.yaml", TINY)
command = partial(testing.python, PROJECT)
interrupted = partial(testing.signalled, PROJECT)
# How long the un-mixed passes took is what a clock says.
same = partial(assert_same, ignore=("looking",))


@pytest.mark.smoke
def test_smoke(tmp_path):
    """Two steps and an evaluation, as typed."""
    short = ["--optim.epochs=1", "--data.limit=120"]
    done = command(["train.py", "--config", "cfg.yaml", "--out", str(tmp_path / "run"), *short])
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "run" / "train").iterdir()}
    assert {"config.yaml", "env.json", "log.jsonl", "last.pt"} <= files
    assert (tmp_path / "run" / "train" / "samples" / "mixes.png").stat().st_size > 1000
    assert checkpoint.load(tmp_path / "run" / "train" / "last.pt")["step"] == 2
    done = command(["eval.py", "--checkpoint", str(tmp_path / "run" / "train" / "last.pt")])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "train" / "metrics.json").read_text())
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100 and 0 < metrics["conservation"] < 2
    assert "top1" in done.stdout


def test_both_branches_are_among_the_steps_of_these_tests(tmp_path):
    train.main(arguments(tmp_path))
    lines = [line for line in log(tmp_path / "train") if line["split"] == "train"]
    kinds = [{"cls", "fine", "con", "unmixed_top1"} & line.keys() for line in lines]
    assert {"cls"} in kinds and {"cls", "fine", "con", "unmixed_top1"} in kinds and len(lines) == 12
    metrics = eval.main(["--checkpoint", str(tmp_path / "train" / "last.pt")])
    share = sum(len(kind) > 1 for kind in kinds) / len(kinds)
    assert metrics["looks_per_step"] == pytest.approx(share) and metrics["extra_passes"] == pytest.approx(share / 3)


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, 1),
        ({"optim__ema": 0.9, "mix__zero_unused": "true"}, 6),
        ({"mix__cut": "random", "mix__per_pair": "true", "run__micro_batches": 2}, 8),
    ],
    ids=["before any checkpoint", "inside an epoch", "at its end"],
)
def test_killed_and_resumed_is_bit_for_bit_the_straight_run(tmp_path, options, step):
    train.main(arguments(tmp_path / "straight", **options))
    words = arguments(tmp_path / "killed", run__save_every=5, **options)
    assert interrupted(words, 9, step).returncode == -9
    train.main([*words, "--resume", "auto"])
    same(state(tmp_path / "straight" / "train"), state(tmp_path / "killed" / "train"))
    assert log(tmp_path / "straight" / "train") == log(tmp_path / "killed" / "train")


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path):
    train.main(arguments(tmp_path / "straight"))
    words = arguments(tmp_path / "stopped")
    done = interrupted(words, 15, 6)
    assert done.returncode == 143 and "--resume auto" in done.stderr
    assert state(tmp_path / "stopped" / "train")["step"] == 6
    train.main([*words, "--resume", "auto"])
    same(state(tmp_path / "straight" / "train"), state(tmp_path / "stopped" / "train"))


@pytest.mark.parametrize("draws", ["rank", "batch"])
def test_two_processes_equal_one_over_the_same_micro_batches(tmp_path, draws):
    # 30 images leave a last batch of 6, which is cut to a pair for each process.
    options = {"data__limit": 30, "data__drop_last": "false", "mix__draws": draws, "run__device": "cpu"}
    options |= {"model__drop_path": 0, "optim__epochs": 2}
    train.main(arguments(tmp_path / "one", run__micro_batches=2, **options))
    done = testing.torchrun(PROJECT, arguments(tmp_path / "two", **options))
    assert done.returncode == 0, done.stderr
    one, two = (state(tmp_path / name / "train") for name in ("one", "two"))
    assert one["step"] == two["step"] == 8
    assert one["state"]["progress"]["looks"] == two["state"]["progress"]["looks"] > 0
    for key, value in one["state"]["model"].items():
        assert torch.allclose(value, two["state"]["model"][key], rtol=0, atol=2e-5), key


def test_draws_depend_on_the_step_alone_and_differ_between_ranks_only_by_choice():
    numbers = lambda *key: [step_random(*key).random() for _ in range(1)]
    keys = [(0, 1, 1, 0), (1, 1, 1, 0), (0, 2, 1, 0), (0, 1, 2, 0), (0, 1, 1, 1)]
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)
    assert numbers(*keys[0]) == numbers(*keys[0])
    shared = Config(mix=Mix(draws="batch"), run=train.Config().run)
    assert train.draws_of(shared, 1, 1)[0].random() == step_random(0, 1, 1, 0).random()


VARIANTS = {
    "plain": {},
    "seed": {"seed": 2},
    "per pair": {"mix__per_pair": "true"},
    "bf16": {"run__precision": "bf16"},
    "fp32 un-mixed": {"run__precision": "bf16", "model__unmixed_fp32": "true"},
    "shared head": {"model__shared_head": "true"},
    "class loss alone": {"mix__weight_fine": 0, "mix__weight_con": 0},
    "random to random": {"mix__cut": "random", "mix__paste": "random"},
    "min to max": {"mix__cut": "min", "mix__paste": "max"},
    "attention label": {"mix__label": "attention"},
    "probabilities": {"mix__mix_probabilities": "true"},
    "half of the batches": {"mix__prob": 0.5},
    "class row": {"model__score": "class_row"},
    "rollout": {"model__score": "rollout"},
    "two blocks": {"model__score_layers": 2},
    "clip": {"optim__clip": 0.1},
    **{method: {"mix__method": method} for method in ("none", "mixup", "cutmix", "mixup_cutmix", "transmix")},
}


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> dict[str, Path]:
    """One epoch of every variant."""
    torch.set_num_threads(1)
    runs = {name: tmp_path_factory.mktemp("variant") for name in VARIANTS}
    return {name: train.main(arguments(out, optim__epochs=1, **VARIANTS[name])) for name, out in runs.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_train(variants, name):
    lines = [line for line in log(variants[name] / "train") if line["split"] == "train"]
    assert len(lines) == 4 and all(np.isfinite(line["cls"]) for line in lines)
    terms = {key for line in lines for key in line}
    if name in ("none", "mixup", "cutmix", "mixup_cutmix", "transmix", "class loss alone"):
        assert not {"fine", "con"} & terms
    else:
        assert {"fine", "con"} <= terms


@pytest.mark.parametrize("name", ["plain", "class row", "random to random", "transmix", "bf16"])
def test_variants_evaluate(variants, name):
    metrics = eval.main(["--checkpoint", str(variants[name] / "train" / "last.pt")])
    assert (metrics["looks_per_step"] > 0) == (name != "transmix")
    assert 0 < metrics["conservation"] < 2


def test_every_switch_changes_the_weights(variants):
    weights = {}
    for name, out in variants.items():
        model = state(out / "train")["state"]["model"]
        weights[name] = torch.cat([value.flatten() for value in model.values()])
    names = list(weights)
    alike = [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.equal(weights[a], weights[b])]
    assert not alike


def test_the_token_head_rests_on_mixup_steps(tmp_path):
    """By default AdamW leaves it alone then; with zero gradients, momentum and decay still act."""
    for name, zero, still in (("none", "false", True), ("zero", "true", False)):
        options = {"mix__switch_prob": 0, "mix__zero_unused": zero, "optim__epochs": 1}
        train.main(arguments(tmp_path / name, **options))
        trained = state(tmp_path / name / "train")["state"]["model"]["token_head.weight"]
        torch.manual_seed(0)
        fresh = train.build(config.load(Config, PROJECT / "cfg.yaml")).state_dict()["token_head.weight"]
        assert torch.equal(trained, fresh) == still


def many_images(folder: Path, count: int) -> None:
    """Class folders with so many training images of noise in two classes, and two to test."""
    rng = np.random.default_rng(0)
    for part, number in (("train", count), ("val", 2)):
        for i in range(number):
            pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
            write_image(folder / part / f"class{i % 2}" / f"{i}.png", pixels)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("deit_tiny_patch16_224", 32, {}),
        ("pvt_tiny", 64, {}),
        ("cait_xxs24_224", 32, {}),
        ("pvt_v2_b0", 64, {}),
        ("swin_tiny_patch4_window7_224", 224, {"data__batch_size": 2, "data__limit": 4}),
        ("deit_tiny_patch16_224", 32, {"data__repeats": 3, "data__batch_size": 128}),
        ("deit_tiny_patch16_224", 32, {"mix__method": "transmix", "data__erasing": 1, "data__randaugment": "null"}),
    ],
)
def test_timm_and_pvt_train_on_class_folders(tmp_path, name, size, options):
    """Two steps of the ImageNet path with its augmentation, at small sizes."""
    many_images(tmp_path, 256 if "data__repeats" in options else 8)
    path = tmp_path / "folders.yaml"
    path.write_text(
        f"data: {{batch_size: 4, root: {tmp_path}, size: {size}}}\nmodel: {{name: {name}}}\noptim: {{epochs: 1}}\n"
    )
    words = [f"--{key.replace('__', '.')}={value}" for key, value in options.items()]
    out = train.main(["--config", str(path), "--out", str(tmp_path / "run"), "--mix.switch_prob=1", *words])
    assert checkpoint.load(out / "train" / "last.pt")["step"] >= 2
    assert eval.main(["--checkpoint", str(out / "train" / "last.pt")])["top1"] <= 100


def test_augmentation_does_not_depend_on_workers(tmp_path):
    many_images(tmp_path, 8)
    path = tmp_path / "folders.yaml"
    path.write_text(f"data: {{batch_size: 4, root: {tmp_path}, size: 32}}\noptim: {{epochs: 1}}\n")
    for workers in (0, 2):
        train.main(["--config", str(path), "--out", str(tmp_path / f"{workers}"), f"--data.workers={workers}"])
    assert_same(*(state(tmp_path / w / "train")["state"]["model"] for w in ("0", "2")))


def test_fine_tuning_starts_from_weights(tmp_path):
    train.main(arguments(tmp_path / "first", optim__epochs=1))
    start = tmp_path / "first" / "train" / "last.pt"
    train.main(arguments(tmp_path / "second", optim__epochs=1, optim__lr=1e-12, optim__min_lr=0, model__start=start))
    one, two = (state(tmp_path / name / "train")["state"]["model"] for name in ("first", "second"))
    assert all(torch.allclose(value, two[key], atol=1e-6) for key, value in one.items())


@pytest.mark.parametrize("branch", ["regions", "mixup", "transmix"])
def test_a_step_never_waits_for_the_device(branch, monkeypatch):
    """On the meta device a tensor has no values, so whatever reads one back raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown to that device
    method = "transmix" if branch == "transmix" else "smmix"
    conf = config.override(
        config.load(Config, PROJECT / "cfg.yaml"),
        [f"--mix.switch_prob={float(branch == 'regions')}", f"--mix.method={method}", "--mix.cut=random"],
    )
    network = train.build(conf).to("meta").train()
    adapter = adapt(network, score="class_row" if method == "transmix" else "image_queries")
    student, mixer, finite = train.Student(adapter, conf), build_mixer(conf, 10), FiniteWatch()
    optimiser = adamw(conf, network)
    images = torch.empty(8, 1, 16, 16, device="meta")
    mixed = mixer(images, torch.empty(8, dtype=torch.int64, device="meta"), adapter.look, step_random(0, 1, 1, 0))
    logits, regions, scores = student(mixed.images, mixed.source)
    if scores is not None:
        mixed = mixed._replace(own=train.transmix_share(mixed, scores))
    terms = mixer.losses(mixed, logits, *regions)
    assert len(terms) == (3 if branch == "regions" else 1)
    sum(terms.values()).backward()
    train.settle_unused(network, conf, branch == "regions")
    gradient = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    finite.note(1, {**terms, "gradient": gradient})
    optimiser.step()
    with pytest.raises(NotImplementedError, match="meta"):
        finite.require("a read", "of the device")


def test_a_second_run_moves_the_first_aside(tmp_path):
    words = arguments(tmp_path, optim__epochs=1)
    train.main(words)
    first = (tmp_path / "train" / "last.pt").read_bytes()
    train.main(words)
    assert (tmp_path / "train-1" / "last.pt").read_bytes() == first
    same(state(tmp_path / "train-1"), state(tmp_path / "train"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    losses, calls = SMMix.losses, []

    def spoiled(self, *inputs):
        terms = losses(self, *inputs)
        calls.append(1)
        return {**terms, "cls": terms["cls"] * float("nan")} if len(calls) == 6 else terms

    monkeypatch.setattr(SMMix, "losses", spoiled)
    with pytest.raises(NonFiniteError, match=r"step 6 of stage train: cls, gradient"):
        train.main(arguments(tmp_path))
    saved = checkpoint.load(tmp_path / "train" / "last.pt")
    assert saved["step"] == 4
    assert all(value.isfinite().all() for value in saved["state"]["model"].values())


def bad_inputs(folder: Path) -> dict[str, tuple[dict, str]]:
    """name -> (overrides, words of the message)."""
    malicious = testing.hostile(folder / "malicious.pt", folder / "canary")
    cifar = {"data__name": "cifar10", "model__name": "vit_cifar", "data__limit": 0}
    outside = {**cifar, "data__root": image_archive(folder, [3] * 40 + [11])}
    return {
        "missing data": ({**cifar, "data__root": folder / "nowhere"}, "cifar-10-batches-py"),
        "label out of range": (outside, "first is 11 of image 40"),
        "odd batch": ({"data__batch_size": 7}, "mixed in pairs"),
        "odd micro-batch": ({"run__micro_batches": 3}, "multiple of 6"),
        "smaller than a batch": ({"data__batch_size": 64}, "no whole batch"),
        "no attention": ({"model__name": "resnet18"}, "no blocks of softmax self-attention"),
        "no tokens": ({"model__name": "mixer_s32_224"}, "mixer_s32_224|no blocks of softmax self-attention"),
        "grid that does not fit": ({"mix__grid": "[4, 4]"}, r"4 x 4 does not fit 64 attention scores"),
        "region larger than the grid": ({"mix__low": 0.9, "mix__high": 0.5}, "low 0.9 is above mix.high"),
        "no region": ({"mix__low": 0.0, "mix__high": 0.1}, "no region between 0.0 and 0.1"),
        "side above the grid": ({"mix__high": 1.5}, "mix.high"),
        "unknown network": ({"model__name": "deit_tiny_patch16_244"}, "did you mean deit_tiny"),
        "unknown key": ({"optim__learing_rate": 1}, "not an option"),
        "repeats without folders": ({"data__repeats": 3}, "class folders"),
        "class row without a class token": (
            {"model__name": "pvt_v2_b0", "model__score": "class_row"},
            "needs a class token|pvt_v2_b0",
        ),
        "malicious start": ({"model__start": malicious}, "never executed"),
        "missing start": ({"model__start": folder / "none.pt"}, "no such file"),
        "blocks": ({"model__score_layers": 9}, "scores of 9 blocks"),
    }


BAD = [
    "missing data",
    "label out of range",
    "odd batch",
    "odd micro-batch",
    "smaller than a batch",
    "no attention",
    "no tokens",
    "grid that does not fit",
    "region larger than the grid",
    "no region",
    "side above the grid",
    "unknown network",
    "unknown key",
    "repeats without folders",
    "class row without a class token",
    "malicious start",
    "missing start",
    "blocks",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written_over(tmp_path, name):
    overrides, words = bad_inputs(tmp_path)[name]
    kept = tmp_path / "run" / "train" / "last.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"an earlier result")
    with pytest.raises(InputError, match=words):
        train.main(arguments(tmp_path / "run", **overrides))
    assert kept.read_bytes() == b"an earlier result" and list(kept.parent.iterdir()) == [kept]
    assert not (tmp_path / "canary").exists()


def test_bad_input_exits_with_2(tmp_path):
    done = command(["train.py", "--config", "cfg.yaml", "--data.batch_size", "7"])
    assert done.returncode == 2 and done.stderr.startswith("error: data.batch_size 7") and "Trace" not in done.stderr
    done = command(["eval.py", "--checkpoint", str(tmp_path / "none.pt")])
    assert done.returncode == 2 and "there is no such checkpoint" in done.stderr and "Trace" not in done.stderr


def test_resume_refuses_another_experiment(tmp_path):
    words = arguments(tmp_path, optim__epochs=1)
    train.main(words)
    before = state(tmp_path / "train")
    with pytest.raises(InputError, match=r"mix.cut: max -> random"):
        train.main([*words, "--mix.cut=random", "--resume=auto"])
    same(before, state(tmp_path / "train"))


def test_eval_of_official_checkpoints(tmp_path):
    """A dict with `model`, whose token head may be missing; the experiment comes from --config."""
    conf = config.load(Config, PROJECT / "cfg.yaml")
    weights = train.build(conf).state_dict()
    torch.save({"model": {k: v for k, v in weights.items() if "token_head" not in k}}, tmp_path / "official.pth")
    words = ["--checkpoint", str(tmp_path / "official.pth")]
    metrics = eval.main([*words, "--config", str(PROJECT / "cfg.yaml"), "--data.limit=16"])
    assert metrics["params"] == sum(v.numel() for k, v in weights.items() if "token_head" not in k)
    with pytest.raises(CheckpointError, match="needs --config"):
        eval.main(words)


def test_mean_weights_are_evaluated(tmp_path):
    train.main(arguments(tmp_path, optim__ema=0.5, optim__epochs=1))
    assert any("ema_top1" in line for line in log(tmp_path / "train"))
    path = str(tmp_path / "train" / "last.pt")
    kinds = {kind: eval.main(["--checkpoint", path, "--weights", kind])["loss"] for kind in ("model", "ema")}
    assert kinds["model"] != kinds["ema"]
    train.main(arguments(tmp_path / "none", optim__epochs=1))
    with pytest.raises(InputError, match="holds no mean weights"):
        eval.main(["--checkpoint", str(tmp_path / "none" / "train" / "last.pt"), "--weights", "ema"])


@pytest.mark.long
@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_a_step(tmp_path, path):
    experiment = config.load(Config, path)
    words = ["--config", str(path), "--out", str(tmp_path / "run"), "--optim.epochs=1", "--mix.switch_prob=1"]
    if experiment.data.name == "imagenet":
        repeated = experiment.data.repeats > 1  # deals out multiples of 256; at a small size, for they are many
        many_images(tmp_path, 256 if repeated else 2)
        words += [f"--data.root={tmp_path}", f"--data.batch_size={256 if repeated else 2}", "--data.workers=0"]
        words += ["--data.size=32"] if repeated else []
    else:
        classes = {"cifar10": 10, "cifar100": 100}[experiment.data.name]
        words += [f"--data.root={image_archive(tmp_path, list(range(classes)), classes)}", "--data.batch_size=8"]
        words += ["--data.limit=8"]
    train.main(words)
    assert checkpoint.load(tmp_path / "run" / "train" / "last.pt")["step"] == 1
