"""The whole runner on the small project of conftest.py."""

import json

import pytest

from ci import reproduce, results, verdict

BROKEN = """\
arms:
  raises: {stage: student, fail: raise}
  dies: {stage: student, fail: die}
  orphan: {stage: student, teacher: "{shared.failing}"}
  silent: {stage: student, fail: silent}
"""


def test_arms_run_paired_and_the_report_is_written(repository, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    stale = repository / "reproduction" / "runs" / "kcd" / "kd" / "seed0"
    stale.mkdir(parents=True)
    (stale / "old.txt").touch()
    out = repository / "reproduction"
    assert reproduce.main(["--out", str(out), "--jobs", "2", "--save-results"], repository) == 0
    printed, said = capfd.readouterr()
    result = results.from_json((out / "report.json").read_text(), "report.json").projects["kcd"]
    # The teacher adds 20 and its own seed's 10 to 50; the student adds its seed's 10 and its gain once more.
    assert result.arms["kd"].metrics[0]["top1"] == 70.0
    assert result.arms["kd"].values("top1") == pytest.approx([70.0, 90.2, 110.4])
    assert [c.verdict for c in result.comparisons] == [verdict.SHOWN, verdict.SHOWN, verdict.CONTRADICTED]
    assert result.comparisons[0].differences == pytest.approx([1.5, 1.515, 1.53])
    assert result.arms["kd"].metrics[0]["lost"] is None  # not a number
    assert result.data == results.Named("digits", "ab" * 32)
    curve = result.arms["kd"].curves[0]
    assert (curve.epochs, curve.mean[-1], curve.low[-1]) == ([1.0, 2.0, 3.0], 90.2, 70.0)
    assert not (stale / "old.txt").exists()
    assert json.loads((stale.parent.parent / "kcd" / "seed1" / "student" / "last.pt").read_text())["steps"] == [1, 2]
    assert results.read_saved(repository, "kcd") == result

    assert "[9/9]" in printed
    assert "training speaks" not in printed
    assert "epoch 1/3" not in said
    assert "not there yet: dda, rebnn" in printed
    assert f"report: {out / 'report.html'}" in printed
    log = (out / "logs" / "kcd" / "kd-seed0.txt").read_text()
    assert "training speaks" in log
    assert "epoch 1/3" in log
    assert "so does a child" in log
    text = (out / "report.html").read_text()
    assert text.count("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB") == 2
    for written in ((out / "report.json").read_text(), text):
        assert str(repository) not in written
    commands = result.arms["kcd"].commands
    assert commands[0].startswith("python kcd/train.py --config kcd/cfg.yaml --out reproduction/runs/kcd/kcd/seed0")
    assert "--teacher=reproduction/runs/kcd/teacher/seed0" in commands[0]
    assert commands[1].endswith("--checkpoint reproduction/runs/kcd/kcd/seed0/student/last.pt")


def test_what_fails_is_reported_and_the_others_finish(repository, capsys):
    path = repository / "kcd" / "reproduce.yaml"
    plan = path.read_text().replace("shared:\n", "shared:\n  failing: {stage: teacher, fail: raise}\n")
    path.write_text(plan.replace("arms:\n", BROKEN).replace("{a: kd, b: kcd", "{a: kd, b: dies"))
    out = repository / "reproduction"
    argv = ["kcd", "--seeds", "2", "--out", str(out), "--jobs", "1", "--save-results"]
    assert reproduce.main(argv, repository) == 1
    result = results.from_json((out / "report.json").read_text(), "report.json").projects["kcd"]
    assert result.arms["raises"].errors == ["data/digits: no such data"] * 2
    assert result.arms["dies"].errors == ["its process ended with exit code 7", None]
    assert result.arms["orphan"].errors == ["its shared run failing failed"] * 2
    assert result.arms["silent"].errors == ["the evaluation gave no visits (it gave top1, lost)"] * 2
    assert result.arms["kcd"].errors == [None, None]
    words = [c.verdict for c in result.comparisons]
    assert words == [verdict.SHOWN, verdict.SHOWN, verdict.NOT_RESOLVED]
    captured = capsys.readouterr()
    assert "kcd raises, seed 1: FAILED: data/digits: no such data" in captured.out
    assert "9 of 16 runs failed" in captured.err
    assert not (repository / "kcd" / "results.json").exists()
    assert "Traceback" in (out / "logs" / "kcd" / "raises-seed0.txt").read_text()
    assert "training speaks" in (out / "logs" / "kcd" / "dies-seed0.txt").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["kdc"], "kdc is not one of"),
        (["kdc"], "did you mean kcd?"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--out", __file__], "is a file; give a folder"),
    ],
)
def test_a_wrong_call_ends_with_2(repository, capsys, argv, message):
    assert reproduce.main(argv, repository) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_results_file_is_refused_before_anything_runs(repository, capsys):
    (repository / "kcd" / "results.json").write_text("{}")
    assert reproduce.main(["--out", str(repository / "out")], repository) == 2
    assert "results.json: schema: is None" in capsys.readouterr().err
    assert not (repository / "out").exists()


def test_a_family_of_tasks_is_run_by_its_own_scripts_and_keeps_its_own_results(repository):
    folder = repository / "kcd"
    for name in ("train", "eval"):
        text = (folder / f"{name}.py").read_text()
        (folder / f"{name}_glue.py").write_text(text.replace("else 50.0", "else 57.0"))
    (folder / "reproduce_glue.yaml").write_text((folder / "reproduce.yaml").read_text())
    out = repository / "reproduction"
    arguments = ["kcd", "--out", str(out), "--jobs", "1", "--seeds", "1", "--save-results"]
    assert reproduce.main(arguments, repository) == 0
    found = [results.read_saved(repository, name).arms["kd"] for name in ("kcd", "kcd-glue")]
    assert [arm.metrics[0]["top1"] for arm in found] == [70.0, 77.0]
    assert [arm.commands[0].split()[1] for arm in found] == ["kcd/train.py", "kcd/train_glue.py"]
    page = (out / "report.html").read_text()
    assert 'id="kcd-glue"' in page and "kcd/eval_glue.py" in page
    assert (out / "runs" / "kcd-glue" / "kd" / "seed0" / "student" / "last.pt").is_file()
