"""What is read from run folders, and commands without paths of this machine."""

import json

from common.errors import InputError

import pytest

from ci import collect, results

CURVE = results.Curve("top1", "test", "student")


def run_with_log(folder, *lines):
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def entry(epoch, value, split="test"):
    return {"step": epoch, "epoch": epoch, "split": split, "top1": value}


def test_a_curve_has_the_epochs_that_all_runs_logged(tmp_path):
    one = run_with_log(tmp_path / "0", entry(1, 10.0), entry(2, 20.0), entry(2, 99.0, "train"), entry(3, 30.0))
    two = run_with_log(tmp_path / "1", entry(1, 14.0), entry(2, float("nan")), entry(3, 1000000.5))
    found = collect.read_curve(CURVE, [one, two])
    assert found == results.CurveResult([1.0, 3.0], [12.0, 500015.0], [10.0, 30.0], [14.0, 1000000.0])


def test_there_is_no_curve_without_a_log(tmp_path):
    assert collect.read_curve(CURVE, []) is None
    assert collect.read_curve(CURVE, [run_with_log(tmp_path / "0", entry(1, 10.0)), tmp_path / "1"]) is None


def test_metrics_keep_their_numbers():
    metrics = {"top1": 70, "lost": float("inf"), "good": True, "name": "x", "_meta": {}}
    assert collect.numbers(metrics, ["top1"]) == {"top1": 70.0, "lost": None}
    with pytest.raises(InputError, match=r"gave no top, did you mean top1\? \(it gave top1, lost\)"):
        collect.numbers(metrics, ["top"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("{root}/kcd/cfg.yaml", "kcd/cfg.yaml"),
        ("{away}/cifar", "$DATA"),
        ("{away}/with space/cifar", "$DATA"),
        ("--data.root={away}/cifar --x 1", "--data.root=$DATA --x 1"),
        ("see https://example.org/a/b and 3/4 or/and", "see https://example.org/a/b and 3/4 or/and"),
        (["{root}/a", 1.5, None], ["a", 1.5, None]),
    ],
)
def test_machine_paths_leave_no_trace(tmp_path, value, shown):
    def fill(text):
        return text.format(root=tmp_path / "r", away=tmp_path / "away") if isinstance(text, str) else text

    value = [fill(part) for part in value] if isinstance(value, list) else fill(value)
    assert collect.portable(value, tmp_path / "r") == shown


def test_commands_leave_data_to_the_shell(tmp_path):
    words = ["python", "--data.root=" + str(tmp_path / "away"), str(tmp_path / "r" / "a b")]
    assert collect.shell(words, tmp_path / "r") == "python --data.root=\"$DATA\" 'a b'"
