"""The schema of results, on results built by hand."""

import json

from common.errors import InputError

import pytest

from ci import results, verdict


def text(project):
    return results.to_json(results.Results({"kcd": project()}))


def test_verdicts_follow_from_the_metrics(project):
    words = [c.verdict for c in project().comparisons]
    assert words == [verdict.SHOWN, verdict.CONTRADICTED, verdict.CONTRADICTED]


def test_json_round_trip(project):
    assert results.from_json(text(project), "results.json") == results.Results({"kcd": project()})


def test_the_schema_of_the_file_is_stable(project):
    tree = json.loads(text(project))
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
def test_a_file_that_does_not_hold_together_is_refused(project, path, value, message):
    tree = json.loads(text(project))
    change(tree, path, value)
    with pytest.raises(InputError, match=message):
        results.from_json(json.dumps(tree), "results.json")


def test_text_that_is_not_json_is_refused():
    with pytest.raises(InputError, match=r"results\.json: not valid JSON"):
        results.from_json("{", "results.json")


def test_saved_results_belong_to_their_project(repository, project):
    whole = results.Results({"kcd": project()})
    assert results.read_saved(repository, "kcd") is None
    results.save(whole, repository / "kcd" / "results.json")
    assert results.read_saved(repository, "kcd") == project()
    (repository / "lts").mkdir()
    results.save(whole, repository / "lts" / "results.json")
    with pytest.raises(InputError, match="must hold lts alone, found kcd"):
        results.read_saved(repository, "lts")


def test_the_text_table_says_what_and_why(project):
    lines = results.text_table(results.Results({"kcd": project()})).splitlines()
    assert lines[1].split()[:5] == ["kcd", "kcd", "-", "kd", "top1"]
    assert "+1.033 [+0.890, +1.177] %" in lines[1]
    assert "the interval lies on the claimed side of 0" in lines[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.00"),
        (-1.0333, "−1.033"),
        (37500.0, "37500"),
        (41203712.0, "41.20 M"),
        (8e9, "8.000 G"),
        (1e-7, "1.00e−07"),
        (0.001234, "0.001234"),
    ],
)
def test_numbers_are_written_for_people(value, text):
    assert results.number(value) == text


def test_numbers_that_stand_together_have_one_decimal_place():
    assert results.numbers([1.0333, None, -0.05, 0.0], signed=True) == ["+1.033", "–", "−0.050", "0.000"]
