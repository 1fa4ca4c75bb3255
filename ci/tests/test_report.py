"""The schema of results and the page made from them, on results built by hand."""

import dataclasses
import json
import re

from common.errors import InputError

import pytest

from ci import PROJECTS, report, verdict

PNG = b"\x89PNG\r\n\x1a\nnot drawn, only embedded"


def arm(values, curve=(0.5, 0.6)):
    runs = range(len(values))
    line = report.CurveResult([1.0, 2.0], list(curve), list(curve), list(curve))
    return report.ArmResult(
        overrides={"condense.threshold": 0.7},
        commands=["python kcd/train.py --seed 0", "python kcd/eval.py --checkpoint last.pt"],
        seconds=[1.5 + run for run in runs],
        errors=[None if value is not None else "InputError: <no> data" for value in values],
        metrics=[None if value is None else {"top1": value, "visits": 87.5} for value in values],
        curves=[line],
    )


def project(a=(71.1, 72.0, 73.0), b=(70.0, 71.0, 72.0)):
    quantities = {"top1": report.Quantity("top1", True, "%", "top-1")}
    arms = {"kcd": arm(list(a)), "kd": arm(list(b))}
    claims = [
        report.Claim("kcd", "kd", "top1", "direction", "Condensing beats <plain> distillation."),
        report.Claim("kcd", "kd", "top1", "equivalence", "Condensing costs nothing.", margin=0.5),
        report.Claim("kd", "kcd", "top1", "exact", "Nothing changes."),
    ]
    return report.ProjectResult(
        paper={"claim": "Value & knowledge", "source": "ECCV 2022", "top-1": {"KD": 74.92, "KC-KD": 75.7}},
        config=report.Named("kcd/cfg.yaml", "c" * 64),
        data=report.Named("digits", "d" * 64),
        commit="a" * 40,
        dirty=True,
        versions={"python": "3.11", "torch": "2.13.0"},
        hardware=report.Hardware(2, "a processor", 2),
        command="python -m ci.reproduce kcd",
        seeds=list(range(len(a))),
        quantities=quantities,
        cost=["visits"],
        curves=[report.Curve("top1", "test", "student")],
        shared={
            "teacher": report.SharedResult(
                {"stage": "teacher"}, ["python kcd/train.py"], [2.0] * len(a), [None] * len(a)
            )
        },
        arms=arms,
        comparisons=[report.compare(claim, quantities, arms) for claim in claims],
    )


def results(**changes):
    return report.Results(report.SCHEMA, {"kcd": project(**changes)})


@pytest.fixture
def root(tmp_path):
    """A repository in which only kcd has been built."""
    (tmp_path / "kcd").mkdir()
    (tmp_path / "kcd" / "train.py").touch()
    return tmp_path


def test_verdicts_follow_from_the_metrics():
    words = [c.verdict for c in project().comparisons]
    assert words == [verdict.SHOWN, verdict.CONTRADICTED, verdict.CONTRADICTED]


def test_json_round_trip():
    assert report.from_json(report.to_json(results()), "results.json") == results()


def test_the_schema_of_the_file_is_stable():
    tree = json.loads(report.to_json(results()))
    assert tree["schema"] == 1
    assert set(tree["projects"]["kcd"]) == {
        *("paper", "config", "data", "commit", "dirty", "versions", "hardware", "command", "seeds"),
        *("quantities", "cost", "curves", "shared", "arms", "comparisons"),
    }
    assert tree["projects"]["kcd"]["quantities"]["top1"]["from"] == "top1"


def change(tree, path, value):
    *parents, last = path
    for key in parents:
        tree = tree[key]
    tree[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema: is 2, this version reads 1"),
        (("projects", "kcd", "sedes"), [0], "sedes: unknown key, did you mean seeds"),
        (("projects", "kcd", "dirty"), "no", r"projects\.kcd\.dirty: must be bool"),
        (("projects", "kcd", "hardware", "cores"), True, r"hardware\.cores: must be int"),
        (("projects", "kcd", "arms", "kd", "seconds"), [1.0], r"arms\.kd\.seconds: one entry per seed, 3"),
        (("projects", "kcd", "arms", "kd", "curves"), [], r"arms\.kd\.curves: one entry per curve, 1"),
        (("projects", "kcd", "comparisons", 0, "verdict"), "contradicted", "the metrics give 'shown'"),
        (("projects", "kcd", "comparisons", 0, "mean"), 3.0, "not what is written"),
        (("projects", "kcd", "comparisons", 0, "differences"), [1.1, 1.0], "not what is written"),
        (("projects", "kcd", "comparisons", 0, "a"), "kdc", "its arms or its quantity are not in this file"),
        (("projects", "kcd", "arms", "kd", "metrics", 0, "top1"), 90.0, "the metrics give"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(path, value, message):
    tree = json.loads(report.to_json(results()))
    change(tree, path, value)
    with pytest.raises(InputError, match=message):
        report.from_json(json.dumps(tree), "results.json")


def test_text_that_is_not_json_is_refused():
    with pytest.raises(InputError, match=r"results\.json: not valid JSON"):
        report.from_json("{", "results.json")


def test_saved_results_belong_to_their_project(root):
    assert report.read_saved(root, "kcd") is None
    report.save(results(), root / "kcd" / "results.json")
    assert report.read_saved(root, "kcd") == project()
    (root / "lts").mkdir()
    report.save(results(), root / "lts" / "results.json")
    with pytest.raises(InputError, match="must hold lts alone, found kcd"):
        report.read_saved(root, "lts")


def test_the_text_table_says_what_and_why():
    lines = report.text_table(results()).splitlines()
    assert lines[1].split()[:5] == ["kcd", "kcd", "-", "kd", "top1"]
    assert "+1.033 [+0.890, +1.177] %" in lines[1]
    assert "the interval lies on the claimed side of 0" in lines[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.00"), (-1.0333, "−1.033"), (37500.0, "37500"), (1e-7, "1.00e−07"), (0.001234, "0.001234")],
)
def test_numbers_are_written_for_people(value, text):
    assert report.number(value) == text


def test_the_page_holds_everything_and_needs_nothing(root):
    picture = root / "sample.png"
    picture.write_bytes(PNG)
    page = report.write(results(), {"kcd": {"kd": [picture]}}, root, root / "out")
    text = page.read_text(encoding="utf-8")
    for piece in (
        *("Value &amp; knowledge", "ECCV 2022", "KC-KD 75.7", "Condensing beats &lt;plain&gt; distillation."),
        *("+1.033 [+0.890, +1.177] %", '<span class="word shown">shown</span>', "equivalence, ±0.5 %"),
        *('<span class="word contradicted">contradicted</span>', "71.10 · 72.00 · 73.00", "87.50", "visits"),
        *("python -m ci.reproduce kcd", "python kcd/eval.py --checkpoint last.pt", "torch 2.13.0"),
        *("aaaaaaaaaaaa, with uncommitted changes", "digits (dddddddddddd)", "How a verdict is computed"),
        "condense.threshold 0.7",
    ):
        assert piece in text, piece
    missing = ", ".join(name for name in PROJECTS if name != "kcd")
    assert f"Not there yet: {missing}." in text
    assert report._data_uri(PNG) in text
    assert "<script" not in text
    assert not re.search(r'(src|href|srcset)="(?!data:|#)', text)
    assert "prefers-color-scheme: dark" in text


def test_figures_are_png_files_in_both_themes(root):
    report.write(results(), {}, root, root / "out")
    names = sorted(path.name for path in (root / "out" / "figures").iterdir())
    assert names == [f"kcd_{n}.png" for n in ("curve_1_top1", "curve_1_top1_dark", "differences", "differences_dark")]
    for path in (root / "out" / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_failed_run_shows_its_error(root):
    page = report.write(results(a=(71.0, None, 73.0)), {}, root, root / "out")
    text = page.read_text(encoding="utf-8")
    assert "<b>kcd</b>, seed 1: InputError: &lt;no&gt; data" in text
    assert "1 of 3 pairs have no number" in text


def test_committed_results_stand_beside_the_fresh_run(root):
    report.save(results(a=(71.1, 72.0, 73.0, 74.0), b=(70.0, 71.0, 72.0, 73.0)), root / "kcd" / "results.json")
    page = report.write(results(), {}, root, root / "out")
    text = page.read_text(encoding="utf-8")
    assert "This run, 3 seeds" in text
    assert "Committed results, 4 seeds" in text
    assert "71.10 · 72.00 · 73.00 · 74.00" in text


def test_pictures_beyond_the_limit_are_counted(root):
    picture = root / "sample.png"
    picture.write_bytes(PNG)
    page = report.write(results(), {"kcd": {"kd": [picture] * (report.MAX_PICTURES + 2)}}, root, root / "out")
    text = page.read_text(encoding="utf-8")
    assert text.count(report._data_uri(PNG)) == report.MAX_PICTURES
    assert "(2 more in the run folder)" in text


def test_a_project_without_any_number_still_has_a_page(root):
    empty = dataclasses.replace(project(a=(None, None), b=(None, None)), data=None, commit=None)
    arms = {name: dataclasses.replace(run, curves=[None]) for name, run in empty.arms.items()}
    broken = report.Results(report.SCHEMA, {"kcd": dataclasses.replace(empty, arms=arms)})
    text = report.write(broken, {}, root, root / "out").read_text(encoding="utf-8")
    assert "2 of 2 pairs have no number" in text
    assert "<img" not in text
