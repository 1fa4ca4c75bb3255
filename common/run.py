"""What surrounds a training loop: folder, device, logs, progress, checkpoints, stop signal, finite check.

The loop itself stands in each project's train.py; it calls what it needs from a `Run`.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import checkpoint, config, distributed
from common.config import Count, Index
from common.environment import environment
from common.errors import CheckpointError, InputError, Interrupted, NonFiniteError
from common.finite import FiniteWatch
from common.randomness import seed_everything

import torch
from tqdm import tqdm

# What a resumed run may do otherwise, because it alters no bit of the result.
FREE_TO_CHANGE = {"run.device", "run.log_every", "run.save_every"} | {
    f"data.{name}" for name in ("root", "download", "resident", "workers")
}


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes."""

    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """arithmetic of the networks; losses are always fp32"""
    micro_batches: Count = 1
    """parts in which a process computes its share of a batch, gradients added up"""
    log_every: Count = 50
    """steps between lines of log.jsonl"""
    save_every: Index = 0
    """steps between checkpoints inside an epoch; 0 saves at the end of each epoch"""


class Run:
    """One stage of one experiment: `with Run(...) as run:` around its loop.

    project, name, stage: `runs/NAME/STAGE` unless --out says otherwise. config: the whole config of the experiment.
    data: {name, sha256} of the data set. A stage that is started anew where a finished or partial one lies moves the
    old folder aside (STAGE-1, STAGE-2, …): nothing is written over.
    """

    def __init__(self, project: str, conf, command: config.Command, name: str, stage: str, data: dict):
        self.project, self.config, self.command, self.stage, self.data = project, conf, command, stage, data
        self.runtime: Runtime = conf.run
        self.device = distributed.start(self.runtime.device)
        self.folder = run_folder(command, name) / stage
        self.finite = FiniteWatch()
        self.continues = False  # whether the folder already holds the beginning of this run
        self.depends: dict[str, str] = {}
        self.signal = 0

    def __enter__(self) -> "Run":
        seed_everything(self.config.seed)
        self.state = self._find_checkpoint()
        self.writer = None
        self.handlers = {}
        # Handlers can only be set in the main thread, which is where a command line runs.
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self.handlers[number] = signal.signal(number, self._on_signal)
            except ValueError:
                break
        self.seconds = self.state["seconds"] if self.state else 0.0
        self.began = time.perf_counter()
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.writer is not None:
            self.writer.close()

    def resume(self) -> dict | None:
        """The state given to `save`, with its step and epoch, or None for a fresh start.

        Called once everything has been built: only now is the folder touched, so that bad input leaves no trace, and
        the generators are brought to where the checkpoint left them.
        """
        if distributed.is_main():
            self._prepare_folder()
        distributed.barrier()
        if self.state is None:
            return None
        checkpoint.restore_random_state(self.state["random"])
        self.say(f"continuing after step {self.state['step']}")
        return {"step": self.state["step"], "epoch": self.state["epoch"], **self.state["state"]}

    def require_same(self, name: str, value: str) -> None:
        """Remember what this stage depends on (a teacher's sha256); a resumed stage must find the same.

        Errors: InputError unless --resume_force.
        """
        self.depends[name] = value
        before = self.state["depends"].get(name, value) if self.state else value
        if before != value and not self.command.resume_force:
            raise InputError(
                f"{self.folder}: the {name} has changed since the checkpoint ({before[:12]} -> {value[:12]}); "
                "--resume_force true continues all the same"
            )

    def elapsed(self) -> float:
        """Seconds spent in this stage, including those before a resume."""
        return self.seconds + time.perf_counter() - self.began

    def autocast(self) -> torch.autocast:
        """The context in which networks are called."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.runtime.precision == "bf16")

    def progress(self, items: Iterable, total: int, text: str) -> Iterable:
        """One bar on rank 0, silent when the output is not a terminal."""
        return tqdm(items, total=total, desc=text, leave=False, disable=None if distributed.is_main() else True)

    def log(self, split: str, step: int, epoch: int, **values) -> None:
        """One line of log.jsonl, and every number to TensorBoard. Tensors are read here, not before."""
        if not distributed.is_main():
            return
        values = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        line = {"step": step, "epoch": epoch, "split": split, **values}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.folder, purge_step=self._resumed_step() + 1)
        for key, value in values.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(f"{split}/{key}", value, step)

    def sample(self, name: str) -> Path:
        """Where a picture of the run goes: samples/NAME, in a folder that exists."""
        path = self.folder / "samples" / name
        path.parent.mkdir(exist_ok=True)
        return path

    def say(self, text: str) -> None:
        """A line for the person at the terminal, from rank 0."""
        if distributed.is_main():
            tqdm.write(f"[{self.project} {self.stage}] {text}", file=sys.stderr)

    def watch(self, step: int, terms: dict[str, torch.Tensor], parameters: Iterable[torch.Tensor]) -> None:
        """Note a step's loss terms and gradient; called after every backward and before the optimiser's step.

        The device is asked at every step on the CPU, elsewhere every `log_every` steps and before a checkpoint, which
        therefore never holds a spoiled weight. Errors: NonFiniteError.
        """
        gradient = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.finite.note(step, {**terms, "gradient": gradient})
        if self.device.type == "cpu" or step % self.runtime.log_every == 0:
            self.require_finite()

    def require_finite(self) -> None:
        """Raise NonFiniteError if `watch` has seen a value that is not finite."""
        self.finite.require(f"stage {self.stage}", f"the last checkpoint in {self.folder} is from before it")

    def save(self, step: int, epoch: int, state: dict, best: bool = False) -> None:
        """Write last.pt (and best.pt), keeping the one before as prev.pt; called by every rank."""
        self.require_finite()
        if distributed.is_main():
            content = {
                "format": checkpoint.FORMAT,
                "project": self.project,
                "stage": self.stage,
                "config": config.to_dict(self.config),
                "config_sha256": config.digest(self.config),
                "step": step,
                "epoch": epoch,
                "seconds": self.elapsed(),
                "data": self.data,
                "depends": self.depends,
                "log_bytes": self._log_size(),
                "random": checkpoint.random_state(),
                "state": state,
            }
            # best.pt first: a run killed between the two repeats the epoch and writes the same best.pt again.
            for name in ("best.pt", "last.pt") if best else ("last.pt",):
                checkpoint.save(self.folder / name, content)
        distributed.barrier()

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is due inside an epoch."""
        return self.runtime.save_every > 0 and step % self.runtime.save_every == 0

    def should_stop(self, step: int) -> bool:
        """Whether to save and leave after this step; all ranks agree.

        Agreement costs a reduction, so ranks on CUDA ask for it only every `log_every` steps.
        """
        wanted = bool(self.signal)
        if distributed.world() == 1:
            return wanted
        if self.device.type == "cuda" and step % self.runtime.log_every:
            return False
        return distributed.any_(wanted, self.device)

    def leave(self) -> None:
        """End the run after the state has been saved. Errors: Interrupted, always."""
        number = self.signal or signal.SIGTERM  # another rank may have got the signal
        raise Interrupted(128 + number, f"stopped; {self.folder / 'last.pt'} is saved, --resume auto continues")

    def _on_signal(self, number: int, _frame) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        self.say(f"{signal.Signals(number).name}: finishing the step and saving; once more to leave at once")

    def _log_size(self) -> int:
        """Bytes of log.jsonl; a resumed run goes on from the size that its checkpoint has noted."""
        path = self.folder / "log.jsonl"
        return path.stat().st_size if path.exists() else 0

    def _resumed_step(self) -> int:
        return self.state["step"] if self.state else 0

    def _find_checkpoint(self) -> dict | None:
        """The checkpoint that --resume asks for, if any, after making sure that it continues this experiment."""
        resume = self.command.resume
        path = self.folder / "last.pt" if resume == "auto" else Path(resume)
        if resume == "never" or (resume == "auto" and not path.exists()):
            return None
        try:
            state = checkpoint.load_own(path, self.project)
        except CheckpointError as error:
            previous = path.with_name("prev.pt")
            if resume != "auto" or not previous.exists():
                raise
            self.say(f"{error}; continuing from {previous}")
            state = checkpoint.load_own(previous, self.project, self.stage)
        if state["stage"] != self.stage:
            return None
        changed = config.differences(state["config"], config.to_dict(self.config))
        changed = [difference for difference in changed if difference.partition(":")[0] not in FREE_TO_CHANGE]
        if state["data"] != self.data:
            changed.append(f"data set: {state['data']} -> {self.data}")
        self.continues = path.parent.resolve() == self.folder.resolve()
        if changed and not self.command.resume_force:
            raise InputError(
                f"{path}: the config has changed since this checkpoint ({'; '.join(changed)}); "
                "--resume_force true continues all the same"
            )
        return state

    def _prepare_folder(self) -> None:
        folder = self.folder
        try:
            if not self.continues and folder.is_dir() and any(folder.iterdir()):
                number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}-{n}").exists())
                folder.rename(folder.with_name(f"{folder.name}-{number}"))
                self.say(f"the earlier {folder} is now {folder.name}-{number}")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(config.dump(self.config), encoding="utf-8")
            (folder / "env.json").write_text(json.dumps(environment(self.config, self.data), indent=1))
        except OSError as error:
            raise InputError(f"{folder}: the run cannot be written here ({error.strerror})") from error
        checkpoint.remove_stray(folder)
        if self.state is not None and self._log_size() > self.state["log_bytes"]:
            os.truncate(folder / "log.jsonl", self.state["log_bytes"])


def run_folder(command: config.Command, name: str) -> Path:
    """--out, or runs/NAME below the caller's folder."""
    return Path(command.out) if command.out else Path("runs") / name


def stages_to_run(command: config.Command, project: str, stages: tuple[str, ...]) -> tuple[str, ...]:
    """The stages a call is about: the one asked for, all, or from the one of an explicit checkpoint on."""
    wanted = stages if command.stage == "all" else (command.stage,)
    if command.resume in ("never", "auto"):
        return wanted
    stage = checkpoint.load_own(command.resume, project)["stage"]
    if stage not in wanted:
        raise InputError(f"{command.resume}: is of stage {stage}, not of stage {command.stage}")
    return wanted[wanted.index(stage) :]


def entry(main: Callable[[list[str]], object]) -> None:
    """Run a command line: 2 for bad input, 143/130 after a signal, 1 for anything that should not happen.

    141, as the shell has it, when the reader of the output has left, which `head` does.
    """
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
        code = 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        code = stop.code
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:
        if not _reader_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in Python's buffer
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = 130
    finally:
        distributed.stop()
    sys.exit(code)


def _reader_left() -> bool:
    """Whether what this process prints goes into a pipe that nobody reads any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always told
    return bool(output.poll(0))
