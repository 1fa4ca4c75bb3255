"""reproduce.yaml: what is refused, and the runs that a valid one asks for."""

import re

import pytest

from ci import plan, reproduce


def test_the_runs_of_a_plan(repository, tmp_path):
    path = repository / "kcd" / plan.FILE
    path.write_text(path.read_text().replace("gain: 1.5", "checkpoint: student/best.pt, gain: 1.5"))
    jobs = plan.plan_jobs(repository, "kcd", plan.load_plan(path), range(2), tmp_path / "out")
    assert [(job.name, job.seed) for job in jobs] == [
        *(("teacher", 0), ("teacher", 1), ("kd", 0), ("kcd", 0), ("kd", 1), ("kcd", 1)),
    ]
    runs = tmp_path / "out" / "runs" / "kcd"
    assert jobs[0].train == (
        *("--config", str(repository / "kcd" / "cfg.yaml"), "--out", str(runs / "teacher" / "seed0"), "--seed", "0"),
        *("--stage=teacher", "--gain=20.0"),
    )
    assert [job.checkpoint for job in jobs[:2]] == [None, None]
    assert jobs[5].checkpoint == runs / "kcd" / "seed1" / "student" / "best.pt"
    assert jobs[4].checkpoint == runs / "kd" / "seed1" / "student" / "last.pt"
    assert f"--teacher={runs / 'teacher' / 'seed1'}" in jobs[5].train
    assert (jobs[5].needs, jobs[5].wanted) == (("teacher",), ("top1", "visits"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 3", "sedes: 3", r"reproduce\.yaml:3: sedes: unknown key, did you mean seeds\?"),
        ("seeds: 3", "seeds: 0", r":3: seeds: must be at least 1, found 0"),
        ("seeds: 3", "seeds: 3\nseeds: 4", r":4: seeds was already given in line 3"),
        ("seeds: 3", "seeds: [", "not valid YAML"),
        ("config: cfg.yaml\n", "", "the key config is missing"),
        (
            "a: kcd, b: kd, quantity: top1",
            "a: kdc, b: kd, quantity: top1",
            r"comparisons\.0\.a: kdc is not one of kd, kcd",
        ),
        ("b: kd, quantity: top1", "b: kd, quantity: top", r"comparisons\.0\.quantity: top is not .* mean top1"),
        ("kind: exact", "kind: equal", r"comparisons\.1\.kind: equal is not one of"),
        ("margin: 1.0, ", "", "an equivalence needs a margin"),
        ("kind: exact", "kind: exact, margin: 1.0", "only an equivalence has a margin"),
        (
            'kd: {stage: student, teacher: "{shared.teacher}"}',
            'kd: {teacher: "{shared.teach}"}',
            r"arms\.kd\.teacher: teach is",
        ),
        ("{stage: teacher, gain: 20.0}", '{teacher: "{shared.teacher}"}', "cannot build on another"),
        ("kd: {stage: student", "kd: {seed: 1", r"arms\.kd\.seed: is set by the runner"),
        ("  teacher: {", "  tea/cher: {", "the name becomes a folder"),
        ("  teacher: {", "  kd: {", r"arms\.kd: is also the name of a shared run"),
        ("source: a paper, ", "", "paper: the key source is missing"),
        ("higher_is_better: false", "higher_is_better: 0", r"quantities\.visits\.higher_is_better: must be bool"),
        ("gain: 1.5", "gian: 1.5", r"arms\.kcd: --gian is not an option, did you mean gain\?"),
        ("gain: 1.5", "gain: much", r"arms\.kcd: --gain"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(repository, capsys, old, new, message):
    path = repository / "kcd" / "reproduce.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    earlier = repository / "out" / "runs" / "kcd" / "kd" / "seed0" / "kept.txt"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert reproduce.main(["--out", str(repository / "out")], repository) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "reproduce.yaml" in error
    assert earlier.exists()
