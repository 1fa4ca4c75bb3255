"""Runs the experiments of every reproduce.yaml and reports what they show.

`python -m ci.reproduce [PROJECT…] [--seeds N] [--out reproduction] [--jobs N] [--save-results]`

Arms call the same train.main and eval.main that a user's commands call, each with the same seeds, in worker processes
of one torch thread. A run that fails is reported and the others go on. The exit code says whether everything ran
(0 or 1) or could not start (2), never what the verdicts are: a null result is a result.
"""

import argparse
import contextlib
import multiprocessing
import os
import queue
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path

from common.errors import InputError

from ci import ROOT, choose, collect, entry_module, experiments, file_of, is_there, report, results
from ci.collect import Outcome
from ci.plan import FILE, Job, Plan, check_overrides, load_plan, plan_jobs

# OpenMP reads it when a worker first imports torch. This process computes nothing.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Worker:
    """A process that carries out one job after another; torch is imported once, and anew only if the process dies."""

    def __init__(self, root: Path):
        self.root, self.process = root, None

    def run(self, job: Job) -> Outcome:
        """Carry out the job there; a process that dies of it is an outcome as well."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
            self.connection, theirs = context.Pipe()
            # Not a daemon: a data loader's workers are its children.
            self.process = context.Process(target=work, args=(theirs, self.root))
            self.process.start()
            theirs.close()
        try:
            self.connection.send(job)
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Outcome(error=f"its process ended with exit code {self.process.exitcode}")

    def stop(self) -> None:
        """End the process, after an interrupt in the middle of its job."""
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(timeout=5)
        self.process.kill()


def run_jobs(jobs: list[Job], root: Path, workers: int) -> Iterator[tuple[Job, Outcome]]:
    """Outcomes as they come. A job waits for the shared runs it needs, which come before it in the list."""
    pool = [Worker(root) for _ in range(min(workers, len(jobs)))]
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in pool:
        idle.put(worker)

    def carry_out(job: Job, needed: dict[str, Future[Outcome]]) -> Outcome:
        for name, shared in needed.items():
            if shared.result().error:
                return Outcome(error=f"its shared run {name} failed")
        worker = idle.get()
        try:
            return worker.run(job)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(max(1, len(pool)))
    futures: dict[tuple, Future[Outcome]] = {}
    try:
        for job in jobs:
            needed = {name: futures[job.project, name, job.seed] for name in job.needs}
            futures[job.key] = threads.submit(carry_out, job, needed)
        done = {future: job for job, future in zip(jobs, futures.values())}
        for future in as_completed(done):
            yield done[future], future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in pool:
            worker.stop()


def work(connection: Connection, root: Path) -> None:
    """What a worker process does until it is told to stop."""
    os.chdir(root)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        for job in iter(connection.recv, None):
            log_to(job.log)
            connection.send(perform(job, root))


def log_to(path: Path) -> None:
    """From now on all output goes to the file: that of native code and children, and what a process says as it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
            os.dup2(file.fileno(), stream.fileno())


def perform(job: Job, root: Path) -> Outcome:
    """Train and evaluate; an error becomes part of the outcome."""
    seconds = None
    try:
        begin = time.perf_counter()
        entry_module(root, job.project, "train").main([*job.train])
        seconds = round(time.perf_counter() - begin, 2)
        if job.checkpoint is None:
            return Outcome(seconds)
        metrics = entry_module(root, job.project, "eval").main(["--checkpoint", str(job.checkpoint)])
        return Outcome(seconds, collect.numbers(metrics, job.wanted))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        text = str(error).strip() or "no message"
        message = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
        return Outcome(seconds, error=collect.portable(message, root))


def progress(head: str, job: Job, outcome: Outcome, plan: Plan) -> str:
    """A line on a job that has ended."""
    text = f"{head} {job.project} {job.name}, seed {job.seed}:"
    if outcome.error:
        return f"{text} FAILED: {outcome.error} (see {job.log})"
    values = {name: (outcome.metrics or {}).get(q.source) for name, q in plan.quantities.items()}
    shown = [f"{name} {results.number(value)}" for name, value in values.items() if job.checkpoint]
    return "  ".join([f"{text} {outcome.seconds:.1f} s", *shown])


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Errors: InputError."""
    parser = argparse.ArgumentParser(prog="python -m ci.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("projects", nargs="*", metavar="PROJECT", help="by default all that are there")
    parser.add_argument("--seeds", type=int, help="seeds per arm, by default what reproduce.yaml says")
    parser.add_argument("--out", type=Path, default=Path("reproduction"), help="folder of report and runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--save-results", action="store_true", help="also write PROJECT/results.json")
    arguments = parser.parse_args(argv)
    for name in ("seeds", "jobs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out {arguments.out}: is a file; give a folder")
    arguments.projects = choose(arguments.projects)
    return arguments


def prepare(arguments: argparse.Namespace, root: Path) -> tuple[dict[str, Plan], list[Job]]:
    """Everything that can be refused is refused here, before a run starts or an old one is removed."""
    there = [project for project in arguments.projects if is_there(root, project)]
    plans = {name: load_plan(file_of(root, name, FILE)) for project in there for name in experiments(root, project)}
    jobs = []
    for project, plan in plans.items():
        check_overrides(root, project, plan)
        results.read_saved(root, project)
        jobs += plan_jobs(root, project, plan, range(arguments.seeds or plan.seeds), arguments.out.resolve())
    jobs.sort(key=lambda job: job.checkpoint is not None)  # shared runs of all projects first
    for job in jobs:
        shutil.rmtree(job.run, ignore_errors=True)
    return plans, jobs


def reproduce(argv: list[str], root: Path) -> int:
    """The whole command; returns its exit code."""
    arguments = parse(argv)
    plans, jobs = prepare(arguments, root)
    os.environ.update(ONE_THREAD)
    outcomes: dict[Job, Outcome] = dict.fromkeys(jobs)
    for count, (job, outcome) in enumerate(run_jobs(jobs, root, arguments.jobs), 1):
        outcomes[job] = outcome
        print(progress(f"[{count}/{len(jobs)}]", job, outcome, plans[job.project]), flush=True)
    command = collect.shell(["python", "-m", "ci.reproduce", *argv], root)
    found, pictures = {}, {}
    for project, plan in plans.items():
        own = {job: outcome for job, outcome in outcomes.items() if job.project == project}
        found[project] = collect.assemble(root, project, plan, own, command, arguments.jobs)
        pictures[project] = collect.pictures(plan, own)
    page = report.write(results.Results(found), pictures, root, arguments.out)
    print(results.text_table(results.Results(found)))
    failed = [job for job, outcome in outcomes.items() if outcome.error]
    if arguments.save_results:
        save(found, {job.project for job in failed}, root)
    if missing := [project for project in arguments.projects if project not in plans]:
        print(f"not there yet: {', '.join(missing)}")
    if failed:
        print(f"{len(failed)} of {len(jobs)} runs failed", file=sys.stderr)
    print(f"report: {page}")
    return 1 if failed else 0


def save(found: dict[str, results.ProjectResult], failed: set[str], root: Path) -> None:
    """PROJECT/results.json of every project whose runs have all ended well."""
    for project, result in found.items():
        if project in failed:
            print(f"{project}: the committed results are left as they were: a run failed", file=sys.stderr)
        else:
            results.save(results.Results({project: result}), file_of(root, project, "results.json"))


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """`reproduce` with a wrong call told in one line."""
    try:
        return reproduce(sys.argv[1:] if argv is None else argv, root.resolve())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
