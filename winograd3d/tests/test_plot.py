"""The figure of accuracy against trained numbers."""

import json

from common.errors import InputError

import pytest

from winograd3d import plot


def test_plot_of_a_report(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [{"clip_top1": 90.0, "winograd_trainables": 5120}, None, {"clip_top1": 92.0, "winograd_trainables": 5120}]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"projects": {"winograd3d": {"arms": {"residual": {"metrics": runs}}}}}))
    assert plot.read_arms(path) == {"residual": (5120, [90.0, 92.0])}
    assert plot.main([str(path)]).stat().st_size > 1000


@pytest.mark.parametrize("text", ["", "{}", '{"projects": {"winograd3d": {"arms": {"a": {"metrics": [null]}}}}}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"report.json"):
        plot.main([str(path)])
