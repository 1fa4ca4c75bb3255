"""A loop that is stopped, killed or spoiled leaves a checkpoint from which it ends as if nothing had happened."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from common import checkpoint, config
from common.config import Command
from common.errors import CheckpointError, InputError, Interrupted, NonFiniteError
from common.run import Run, entry, environment, run_folder, stages_to_run

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
LOOP = '''
"""A loop that asks of a Run what the projects' loops ask."""

from dataclasses import dataclass, field

from common.config import Count, Positive, parse
from common.randomness import permutation
from common.run import Run, Runtime, run_folder, stages_to_run

import torch
from torch import nn

STAGES = ("first", "second")
DATA = {"name": "sines", "sha256": "00"}
TEACHER = "ab" * 32


def hook(run, step, terms, network):
    """Tests put here what goes wrong in a step."""


@dataclass(frozen=True)
class Config:
    """A small experiment."""

    seed: int = 0
    """seed"""
    epochs: Count = 3
    """epochs of six steps"""
    rate: Positive = 0.01
    """learning rate"""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""


def main(argv):
    conf, command, name = parse(Config, argv, __doc__, STAGES)
    for stage in stages_to_run(command, "toy", STAGES):
        with Run("toy", conf, command, name, stage, DATA) as run:
            train(run, conf)
    return run_folder(command, name)


def train(run, conf):
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1)).to(run.device)
    optimiser = torch.optim.SGD(network.parameters(), conf.rate, momentum=0.9)
    run.require_same("teacher", TEACHER)
    inputs = torch.sin(torch.arange(96.0)).view(24, 4)
    epoch, step, done = 1, 0, 0
    state = run.resume()
    if state:
        epoch, step, done = state["epoch"], state["step"], state["done"]
        network.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])

    def save(best=False):
        content = {"model": network.state_dict(), "optimiser": optimiser.state_dict(), "done": done}
        run.save(step, epoch, content, best)

    while epoch <= conf.epochs:
        parts = permutation(conf.seed, epoch, 24).split(4)[done:]
        for part in run.progress(parts, len(parts), f"epoch {epoch}"):
            optimiser.zero_grad()
            with run.autocast():
                output = network(inputs[part])
            terms = {"fit": (output.float() - inputs[part].sum(1, keepdim=True)).square().mean()}
            terms["size"] = 0.01 * output.float().abs().mean()
            step, done = step + 1, done + 1
            hook(run, step, terms, network)
            sum(terms.values()).backward()
            run.watch(step, terms, list(network.parameters()))
            optimiser.step()
            if step % run.runtime.log_every == 0:
                run.log("train", step, epoch, **terms)
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        run.log("test", step, epoch, norm=network[0].weight.norm(), per_class=torch.arange(3))
        epoch, done = epoch + 1, 0
        save(best=epoch == 3)
'''


@pytest.fixture(scope="session")
def loop_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("loop") / "loop.py"
    path.write_text(LOOP)
    return path


@pytest.fixture
def loop(loop_file, tmp_path, monkeypatch):
    """The module above, freshly imported, with an empty folder as the caller's."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("loop", loop_file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loop", module)
    spec.loader.exec_module(module)
    return module


def call(loop, *argv, out="out", stage="first"):
    return loop.main(["--out", str(out), "--stage", stage, "--run.log_every", "1", *argv])


def at(step, action):
    """A hook that acts in one step."""

    def hook(run, now, terms, network):
        if now == step:
            action(run, terms, network)

    return hook


def send(number):
    return lambda *_: os.kill(os.getpid(), number)


def crash(*_):
    raise MemoryError("the machine went away")


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_end(one, other):
    """Equal logs and, bit for bit, equal weights, optimisers and generators."""
    assert lines(one) == lines(other)
    a, b = (checkpoint.load(folder / "last.pt") for folder in (one, other))
    assert a.pop("seconds") > 0 < b.pop("seconds")
    assert flat(a) == flat(b)


def flat(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: flat(v) for k, v in value.items()}
    return [flat(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def whole(loop):
    call(loop, out="whole")
    return Path("whole/first")


def test_a_run_leaves_what_it_promises(loop, whole):
    assert {path.name.split(".tfevents")[0] for path in whole.iterdir()} == {
        "config.yaml",
        "env.json",
        "log.jsonl",
        "last.pt",
        "prev.pt",
        "best.pt",
        "events.out",
    }
    log = lines(whole)
    assert [line["step"] for line in log if line["split"] == "train"] == list(range(1, 19))
    assert list(log[0]) == ["step", "epoch", "split", "fit", "size"]
    assert log[6] == {"step": 6, "epoch": 1, "split": "test", "norm": log[6]["norm"], "per_class": [0, 1, 2]}
    steps = {
        name: checkpoint.load_own(whole / name, "toy", "first")["step"] for name in ("last.pt", "prev.pt", "best.pt")
    }
    assert steps == {"last.pt": 18, "prev.pt": 12, "best.pt": 12}
    assert yaml.safe_load((whole / "config.yaml").read_text())["run"]["log_every"] == 1
    assert config.load(loop.Config, whole / "config.yaml").epochs == 3


def test_env_json_says_what_a_result_depends_on(loop, whole):
    stored = json.loads((whole / "env.json").read_text())
    conf = config.load(loop.Config, whole / "config.yaml")
    assert stored["torch"] == torch.__version__
    assert (stored["threads"], stored["world"]) == (torch.get_num_threads(), 1)
    assert stored["config_sha256"] == config.digest(conf)
    assert stored["data"] == loop.DATA
    assert stored["command"][1:] == sys.argv[1:]
    assert all(stored[key] for key in ("python", "torchvision", "numpy", "system"))
    # A copy without git has no commit; a working tree has one.
    assert len(stored["commit"]) == (40 if (ROOT / ".git").exists() else 0)
    assert environment(conf, loop.DATA) == stored


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [1, 6, 9])
def test_a_stopped_run_continues_bit_for_bit(loop, whole, number, code, step):
    loop.hook = at(step, send(number))
    with pytest.raises(Interrupted) as stopped:
        call(loop)
    assert stopped.value.code == code
    assert "out/first/last.pt is saved" in str(stopped.value)
    saved = checkpoint.load_own("out/first/last.pt", "toy", "first")
    assert saved["step"] == step, "the step is finished, and no other is begun"
    loop.hook = lambda *_: None
    torch.manual_seed(99)
    call(loop, "--resume", "auto")
    assert_same_end(Path("out/first"), whole)
    assert not Path("out/first-1").exists()
    assert checkpoint.load("out/first/last.pt")["seconds"] > saved["seconds"]


def test_a_crashed_run_continues_from_its_last_checkpoint(loop, whole):
    """The log is ahead of the checkpoint by a line and is cut back; what the killed process left is removed."""
    loop.hook = at(10, crash)
    with pytest.raises(MemoryError):
        call(loop, "--run.save_every", "4")
    folder = Path("out/first")
    assert checkpoint.load(folder / "last.pt")["step"] == 8
    assert lines(folder)[-1]["step"] == 9
    (folder / "last.pt.tmp-123").write_bytes(b"half")
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"step": 10, "half a li')
    loop.hook = lambda *_: None
    call(loop, "--run.save_every", "4", "--resume", "auto")
    assert lines(folder) == lines(whole)
    assert flat(checkpoint.load(folder / "last.pt")["state"]) == flat(checkpoint.load(whole / "last.pt")["state"])
    assert not list(folder.glob("*tmp*"))


def test_a_finished_run_is_not_done_again(loop, whole):
    before = (whole / "log.jsonl").read_bytes(), (whole / "last.pt").read_bytes()
    loop.hook = at(1, crash)
    call(loop, "--resume", "auto", out="whole")
    assert ((whole / "log.jsonl").read_bytes(), (whole / "last.pt").read_bytes()) == before


def test_more_epochs_need_force_and_go_on(loop, whole):
    with pytest.raises(InputError, match="epochs: 3 -> 4"):
        call(loop, "--resume", "auto", "--epochs", "4", out="whole")
    call(loop, "--resume", "auto", "--epochs", "4", "--resume_force", "true", out="whole")
    assert lines(whole)[-1]["step"] == 24


def spoil(name, value):
    def action(run, terms, network):
        terms[name] = terms[name] * value

    return action


def spoil_gradient(run, terms, network):
    """A term that is 0 and has the derivative 0 * inf."""
    terms["root"] = (network[2].weight * 0).sum().sqrt()


@pytest.mark.parametrize(
    ("action", "names"),
    [
        (spoil("size", float("nan")), "size, gradient not finite"),
        (spoil("fit", float("inf")), "fit, gradient not finite"),
        (spoil_gradient, "stage first: gradient not finite"),
    ],
)
def test_training_stops_at_the_first_value_that_is_not_finite(loop, action, names):
    loop.hook = at(8, action)
    with pytest.raises(NonFiniteError, match=rf"step 8 of .*{names}; .*out/first"):
        call(loop)
    saved = checkpoint.load("out/first/last.pt")
    assert saved["step"] == 6
    assert all(bool(w.isfinite().all()) for w in saved["state"]["model"].values())
    assert lines(Path("out/first"))[-1]["step"] == 7


def test_a_device_that_is_read_seldom_names_the_first_step_and_saves_nothing(loop):
    conf = loop.Config()
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    with Run("toy", conf, Command(out="out"), "name", "first", loop.DATA) as run:
        run.device = torch.device("meta")  # as CUDA, it is read every log_every steps only
        for step, a, b in ((1, 1.0, 1.0), (2, 1.0, float("nan")), (3, float("inf"), 1.0), (4, 1.0, 1.0)):
            run.watch(step, {"a": torch.tensor(a), "b": torch.tensor(b)}, [weight])
        with pytest.raises(NonFiniteError, match=r"step 2 of stage first: b not finite"):
            run.save(4, 1, {})
        assert not Path("out/first/last.pt").exists()
        with pytest.raises(NonFiniteError, match=r"step 2 of stage first: b not finite"):
            run.watch(50, {"a": torch.tensor(1.0)}, [weight])


def test_nothing_is_written_over(loop, whole):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    call(loop, "--rate", "0.02", out="whole")
    call(loop, "--rate", "0.03", out="whole")
    assert sorted(p.name for p in Path("whole").iterdir()) == ["first", "first-1", "first-2"]
    assert {path.name: path.read_bytes() for path in Path("whole/first-1").iterdir()} == before
    rates = [
        yaml.safe_load(Path(f"whole/{name}/config.yaml").read_text())["rate"]
        for name in ("first-1", "first-2", "first")
    ]
    assert rates == [0.01, 0.02, 0.03]


def test_an_empty_folder_is_used(loop):
    Path("out/first").mkdir(parents=True)
    call(loop)
    assert [p.name for p in Path("out").iterdir()] == ["first"]


@pytest.mark.parametrize("out", ["file", "file/below", "readonly/out", "/proc/no_run_here"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(loop, out):
    Path("file").write_text("mine")
    Path("readonly").mkdir(mode=0o500)
    if out.startswith("readonly") and os.access("readonly", os.W_OK):
        pytest.skip("root may write everywhere")
    if out.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("/proc exists on Linux only")
    steps = []
    loop.hook = lambda run, step, *_: steps.append(step)
    with pytest.raises(InputError, match=f"{out}/first: the run cannot be written here"):
        call(loop, out=out)
    assert steps == []
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--rate", "0.03"], ["rate: 0.01 -> 0.03", "--resume_force true"]),
        (["--seed", "1", "--epochs", "5"], ["seed: 0 -> 1", "epochs: 3 -> 5"]),
        (["--run.micro_batches", "2"], ["run.micro_batches: 1 -> 2"]),  # BatchNorm sees other batches
    ],
)
def test_a_changed_config_is_refused(loop, whole, argv, words):
    before = (whole / "config.yaml").read_text()
    with pytest.raises(InputError) as refused:
        call(loop, *argv, "--resume", "auto", out="whole")
    for word in words:
        assert word in str(refused.value)
    assert (whole / "config.yaml").read_text() == before
    assert not Path("whole/first-1").exists()
    call(loop, *argv, "--resume", "auto", "--resume_force", "true", out="whole")


def test_the_machine_may_change(loop, whole):
    loop.hook = at(9, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        call(loop)
    loop.hook = lambda *_: None
    call(loop, "--resume", "auto", "--run.save_every", "2", "--run.device", "cpu")
    assert lines(Path("out/first")) == lines(whole)


def test_changed_data_and_another_teacher_are_refused(loop, whole):
    loop.TEACHER = "cd" * 32
    with pytest.raises(InputError, match=r"the teacher has changed .*abababababab -> cdcdcdcdcdcd"):
        call(loop, "--resume", "auto", out="whole")
    call(loop, "--resume", "auto", "--resume_force", "true", out="whole")
    loop.DATA = {"name": "sines", "sha256": "11"}
    with pytest.raises(InputError, match=r"data set: .*00.* -> .*11"):
        call(loop, "--resume", "auto", out="whole")


def stop_at(loop, step, *argv, **where):
    loop.hook = at(step, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        call(loop, *argv, **where)
    loop.hook = lambda *_: None


def test_an_explicit_checkpoint_starts_a_folder_of_its_own(loop, whole):
    stop_at(loop, 8, out="old")
    before = {path.name: path.read_bytes() for path in Path("old/first").iterdir()}
    call(loop, "--resume", "old/first/last.pt", out="new")
    assert {path.name: path.read_bytes() for path in Path("old/first").iterdir()} == before
    assert lines(Path("new/first"))[0]["step"] == 9
    assert lines(Path("new/first")) == lines(whole)[9:]
    end = checkpoint.load("new/first/last.pt")["state"]
    assert flat(end) == flat(checkpoint.load(whole / "last.pt")["state"])


def test_an_explicit_checkpoint_inside_the_folder_goes_on_there(loop, whole):
    stop_at(loop, 8)
    call(loop, "--resume", "out/first/last.pt")
    assert_same_end(Path("out/first"), whole)


def test_a_damaged_last_falls_back_to_prev_only_when_nothing_was_named(loop, whole, capsys):
    stop_at(loop, 14)
    path = Path("out/first/last.pt")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last\.pt: is not a readable .*the one before it is .*prev\.pt"):
        call(loop, "--resume", str(path))
    call(loop, "--resume", "auto")
    assert "continuing from out/first/prev.pt" in capsys.readouterr().err
    assert_same_end(Path("out/first"), whole)


@pytest.mark.parametrize("resume", ["missing.pt", "foreign.pt"])
def test_a_checkpoint_that_cannot_be_resumed_is_refused(loop, resume):
    torch.save({"format": checkpoint.FORMAT, "project": "lts", "stage": "first"}, "foreign.pt")
    for stage in ("first", "all"):
        with pytest.raises(CheckpointError, match=resume):
            call(loop, "--resume", resume, stage=stage)
    assert not Path("out").exists()


def test_all_stages_continue_where_they_were(loop):
    call(loop, out="whole", stage="all")
    seen = []

    def second_stage(run, step, *_):
        seen.append((run.stage, step))
        if (run.stage, step) == ("second", 8):
            os.kill(os.getpid(), signal.SIGTERM)

    loop.hook = second_stage
    with pytest.raises(Interrupted):
        call(loop, stage="all")
    seen.clear()
    call(loop, "--resume", "auto", stage="all")
    assert seen == [("second", step) for step in range(9, 19)]
    for stage in ("first", "second"):
        assert_same_end(Path("out", stage), Path("whole", stage))


def test_which_stages_a_call_is_about(loop):
    stages = ("first", "second")
    assert stages_to_run(Command(), "toy", stages) == stages
    assert stages_to_run(Command(resume="auto"), "toy", stages) == stages
    assert stages_to_run(Command(stage="second"), "toy", stages) == ("second",)
    stop_at(loop, 3, stage="second")
    assert stages_to_run(Command(resume="out/second/last.pt"), "toy", stages) == ("second",)
    stop_at(loop, 3, out="first")
    assert stages_to_run(Command(resume="first/first/last.pt"), "toy", stages) == stages


def test_the_folder_of_a_run(loop):
    assert run_folder(Command(), "digits") == Path("runs/digits")
    assert run_folder(Command(out="there"), "digits") == Path("there")
    assert loop.main(["--epochs", "1"]) == Path("runs/default")
    assert Path("runs/default/second/last.pt").exists()


def test_networks_compute_in_bf16_when_asked(loop):
    seen = {}

    def look(run, step, terms, network):
        with run.autocast():
            seen[run.runtime.precision] = network(torch.ones(1, 4)).dtype
        assert terms["fit"].dtype == torch.float32

    loop.hook = look
    for precision in ("fp32", "bf16"):
        call(loop, "--epochs", "1", "--run.precision", precision)
    assert seen == {"fp32": torch.float32, "bf16": torch.bfloat16}


def test_tensorboard_gets_the_numbers_of_the_log(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole)).Reload()
    assert set(events.Tags()["scalars"]) == {"train/fit", "train/size", "test/norm"}
    shown = {event.step: event.value for event in events.Scalars("train/fit")}
    logged = {line["step"]: line["fit"] for line in lines(whole) if "fit" in line}
    assert shown == pytest.approx(logged)


def test_handlers_are_given_back(loop):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    loop.hook = at(2, crash)
    with pytest.raises(MemoryError):
        call(loop)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_run_works_outside_the_main_thread(loop):
    thread = threading.Thread(target=call, args=(loop, "--epochs", "1"))
    thread.start()
    thread.join(timeout=60)
    assert checkpoint.load("out/first/last.pt")["step"] == 6


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (None, 0, ""),
        (InputError("cfg.yaml:3: no"), 2, "error: cfg.yaml:3: no\n"),
        (CheckpointError("last.pt: no"), 2, "error: last.pt: no\n"),
        (NonFiniteError("step 3: fit"), 1, "error: step 3: fit\n"),
        (Interrupted(143, "saved"), 143, "saved\n"),
        (Interrupted(130, "saved"), 130, "saved\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, words):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3"])
    given = []

    def main(argv):
        given.append(argv)
        if error:
            raise error

    with pytest.raises(SystemExit) as left:
        entry(main)
    assert (left.value.code, capsys.readouterr().err) == (code, words)
    assert given == [["--epochs", "3"]]


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        entry(lambda argv: 1 / 0)


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "in between"])
def test_a_reader_that_leaves_early_is_no_fault(lines):
    script = f"from common.run import entry\nentry(lambda argv: [print('a line') for _ in range({lines})])\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"input()\n{script}"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=environment, **pipes) as process:
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (141, b"")


def test_another_broken_pipe_keeps_its_traceback():
    def main(argv):
        reading, writing = os.pipe()
        os.close(reading)
        os.write(writing, b"nobody listens")

    with pytest.raises(BrokenPipeError):
        entry(main)


def started(loop_file, tmp_path, hook):
    """The loop in a process of its own, at the moment at which its hook has printed a line."""
    script = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(loop_file.parent)!r})\n"
        "import loop\nfrom common.run import entry\n"
        f"def hook(run, step, *_):\n    {hook}\n"
        "loop.hook = hook\nentry(loop.main)\n"
    )
    words = [sys.executable, "-c", script, "--out", "out", "--stage", "first", "--run.save_every", "1"]
    return subprocess.Popen(
        words,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def test_sigterm_from_outside_ends_a_process_with_143(loop_file, tmp_path):
    with started(loop_file, tmp_path, "step == 5 and (print('here', flush=True), time.sleep(0.5))") as process:
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"SIGTERM: finishing the step and saving" in error
    assert b"out/first/last.pt is saved" in error
    assert b"Traceback" not in error
    assert checkpoint.load(tmp_path / "out/first/last.pt")["step"] == 5


def test_a_second_ctrl_c_leaves_at_once(loop_file, tmp_path):
    with started(loop_file, tmp_path, "step == 5 and (print('here', flush=True), time.sleep(60))") as process:
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGINT)
        while b"once more to leave at once" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert checkpoint.load(tmp_path / "out/first/last.pt")["step"] == 4
    assert not list((tmp_path / "out/first").glob("*tmp*"))
