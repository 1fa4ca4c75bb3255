"""The benchmark runner on small bench.py files that write what they are told."""

import json
import os
import subprocess
import sys
import threading

from common import cost
from common.errors import InputError

import pytest

from ci import bench

BENCH = """
import json, pathlib, sys
rows = json.loads(pathlib.Path("rows.json").read_text())
if rows is None:
    sys.exit(3)
pathlib.Path("runs").mkdir(exist_ok=True)
pathlib.Path("runs/bench.json").write_text(json.dumps(rows))
"""
ROWS = {"step": {"cost": 0.8, "ratio": 1.25, "layout": "NCHW"}}


def make(root, name, rows, script=BENCH):
    (root / name).mkdir()
    (root / name / "bench.py").write_text(script)
    (root / name / "rows.json").write_text(json.dumps(rows))


def test_rows_of_all_projects_form_one_table(tmp_path, capsys):
    make(tmp_path, "kcd", ROWS)
    make(tmp_path, "lts", {"eval": {"cost": 0.5, "ratio": 2.0}})
    assert bench.main([], tmp_path) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["kcd", "step", "0.8", "1.25", "NCHW"] in lines
    assert ["lts", "eval", "0.5", "2"] in lines
    assert "no bench.py yet: dda, rebnn, winograd3d, dcd, smmix, crd, hqss, labnet" in out


def test_a_failing_benchmark_does_not_stop_the_others(tmp_path, capsys):
    make(tmp_path, "lts", None)
    make(tmp_path, "kcd", ROWS)
    assert bench.main(["lts", "kcd"], tmp_path) == 1
    captured = capsys.readouterr()
    assert "lts/bench.py ended with exit code 3" in captured.err
    assert "kcd step" in captured.out


def test_an_old_file_is_not_taken_for_a_new_one(tmp_path):
    make(tmp_path, "kcd", ROWS, script="")
    path = tmp_path / "kcd" / "runs" / "bench.json"
    path.parent.mkdir()
    path.write_text(json.dumps(ROWS))
    os.utime(path, (1e9, 1e9))
    with pytest.raises(InputError, match=r"did not write kcd/runs/bench\.json"):
        bench.run_project("kcd", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "at least one row"),
        ('{"step": {"cost": 0.5}}', r"step\.ratio: must be a number above 0, found None"),
        ('{"step": {"cost": 0, "ratio": 1}}', r"step\.cost: must be a number above 0, found 0"),
        ('{"step": {"cost": NaN, "ratio": 1}}', r"step\.cost"),
    ],
)
def test_rows_are_checked(tmp_path, text, message):
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        bench.read_rows(path)


@pytest.mark.parametrize(("load", "warned"), [(0.1, False), (1.7, True)])
def test_a_loaded_machine_is_warned_of(tmp_path, capsys, monkeypatch, load, warned):
    make(tmp_path, "kcd", ROWS)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    assert bench.main(["kcd"], tmp_path) == 0
    assert ("machine is loaded (1.7" in capsys.readouterr().err) is warned


def test_an_unknown_project_names_the_nearest(tmp_path, capsys):
    assert bench.main(["kdc"], tmp_path) == 2
    assert "did you mean kcd?" in capsys.readouterr().err


def test_the_runner_holds_the_lock_while_a_benchmark_runs(tmp_path):
    take = "import fcntl\nfcntl.flock(open('../.bench.lock', 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    make(tmp_path, "kcd", ROWS, script=take + BENCH)
    assert bench.main(["kcd"], tmp_path) == 1
    assert subprocess.run([sys.executable, "bench.py"], cwd=tmp_path / "kcd", check=False).returncode == 0


def test_it_waits_for_the_lock(tmp_path, capsys):
    make(tmp_path, "kcd", ROWS)
    runner = threading.Thread(target=bench.main, args=(["kcd"], tmp_path))
    with cost.bench_lock(tmp_path / bench.LOCK):
        runner.start()
        runner.join(0.5)
        assert runner.is_alive()
        assert not (tmp_path / "kcd" / "runs").exists()
    runner.join(60)
    assert "kcd step" in capsys.readouterr().out
    assert (tmp_path / "kcd" / "runs" / "bench.json").exists()
