"""Runs every project's bench.py, one after another and alone on the machine, and prints one table.

`python -m ci.bench [PROJECT…]`; cost is our time / reference time, ratio its inverse. The lock that keeps benchmarks
apart is held here; a project's bench.py takes none, or it would wait for its own caller.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import cost
from common.errors import InputError

from ci import ROOT, choose

LOCK = ".bench.lock"
QUIET_LOAD = 0.5
"""runnable processes (one-minute average) above which times are not to be trusted"""


def run_project(project: str, root: Path) -> dict[str, dict]:
    """Rows of the bench.json that the project's bench.py writes. Errors: InputError when it fails or writes none."""
    folder = root / project
    path = folder / "runs" / "bench.json"
    begin = time.time()
    environment = {**os.environ, "PYTHONPATH": str(root)}
    code = subprocess.run([sys.executable, "bench.py"], cwd=folder, env=environment, check=False).returncode
    if code:
        raise InputError(f"{project}/bench.py ended with exit code {code}; its output is above")
    # A file system may keep whole seconds only.
    if not path.is_file() or path.stat().st_mtime < int(begin):
        raise InputError(f"{project}/bench.py ended well but did not write {project}/runs/bench.json")
    return read_rows(path)


def read_rows(path: Path) -> dict[str, dict]:
    """{name: {"cost", "ratio", …}} of a bench.json. Errors: InputError naming file and row."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(rows, dict) or not rows:
        raise InputError(f"{path}: must hold at least one row by its name, found {rows!r}")
    for name, row in rows.items():
        for key in ("cost", "ratio"):
            value = row.get(key) if isinstance(row, dict) else None
            if not isinstance(value, (int, float)) or not value > 0:
                raise InputError(f"{path}: {name}.{key}: must be a number above 0, found {value!r}")
    return rows


def load_warning() -> str:
    """A sentence when other work is running, otherwise nothing."""
    load = os.getloadavg()[0]
    return f"warning: the machine is loaded ({load:.1f} running on average); times will mislead" * (load > QUIET_LOAD)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit code 0 when every benchmark ran, 1 when one failed, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="python -m ci.bench", description=__doc__.splitlines()[0])
    parser.add_argument("projects", nargs="*", metavar="PROJECT", help="by default all that have a bench.py")
    arguments = parser.parse_args(argv)
    try:
        asked = choose(arguments.projects)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    there = [project for project in asked if (root / project / "bench.py").is_file()]
    rows, failed = {}, False
    with cost.bench_lock(root / LOCK):
        if warning := load_warning():
            print(warning, file=sys.stderr)
        for project in there:
            print(f"{project} …", flush=True)
            try:
                rows |= {f"{project} {name}": row for name, row in run_project(project, root).items()}
            except InputError as error:
                failed = True
                print(f"error: {error}", file=sys.stderr)
    if rows:
        print(cost.table(rows))
    missing = [project for project in asked if project not in there]
    if missing:
        print(f"no bench.py yet: {', '.join(missing)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
