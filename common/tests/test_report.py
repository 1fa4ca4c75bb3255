import json

from common.report import print_metrics, write_metrics

METRICS = {"top1": 78.125, "params": 1_234_567, "loss": 1.5e-7, "none/psnr": 20.0, "_meta": {"data": "digits"}}


def test_everything_is_written_as_it_is(tmp_path):
    write_metrics(tmp_path / "metrics.json", METRICS)
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == METRICS and text.endswith("}\n")


def test_the_table_has_a_line_for_each_number(capsys):
    print_metrics(METRICS, hidden=["none/psnr"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["top1", "78.125"], ["params", "1,234,567"], ["loss", "1.5e-07"]]
    assert len({len(line) for line in lines}) == 1, "numbers end in one column"


def test_nothing_measured_is_an_empty_table(capsys):
    print_metrics({"_meta": {}})
    assert capsys.readouterr().out == ""
