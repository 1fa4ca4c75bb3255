"""The page made from results built by hand."""

import dataclasses
import re

from ci import PROJECTS, report
from ci.results import Results, save

PNG = b"\x89PNG\r\n\x1a\nnot drawn, only embedded"


def test_the_page_holds_everything_and_needs_nothing(repository, project):
    picture = repository / "sample.png"
    picture.write_bytes(PNG)
    page = report.write(Results({"kcd": project()}), {"kcd": {"kd": [picture]}}, repository, repository / "out")
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


def test_figures_are_png_files_in_both_themes(repository, project):
    report.write(Results({"kcd": project()}), {}, repository, repository / "out")
    names = sorted(path.name for path in (repository / "out" / "figures").iterdir())
    assert names == [f"kcd_{n}.png" for n in ("curve_1_top1", "curve_1_top1_dark", "differences", "differences_dark")]
    for path in (repository / "out" / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_failed_run_shows_its_error(repository, project):
    page = report.write(Results({"kcd": project(a=(71.0, None, 73.0))}), {}, repository, repository / "out")
    text = page.read_text(encoding="utf-8")
    assert "<b>kcd</b>, seed 1: InputError: &lt;no&gt; data" in text
    assert "1 of 3 pairs have no number" in text


def test_committed_results_stand_beside_the_fresh_run(repository, project):
    save(
        Results({"kcd": project(a=(71.1, 72.0, 73.0, 74.0), b=(70.0, 71.0, 72.0, 73.0))}),
        repository / "kcd" / "results.json",
    )
    page = report.write(Results({"kcd": project()}), {}, repository, repository / "out")
    text = page.read_text(encoding="utf-8")
    assert "This run, 3 seeds" in text
    assert "Committed results, 4 seeds" in text
    assert "71.10 · 72.00 · 73.00 · 74.00" in text


def test_pictures_beyond_the_limit_are_counted(repository, project):
    picture = repository / "sample.png"
    picture.write_bytes(PNG)
    pictures = {"kcd": {"kd": [picture] * (report.MAX_PICTURES + 2)}}
    page = report.write(Results({"kcd": project()}), pictures, repository, repository / "out")
    text = page.read_text(encoding="utf-8")
    assert text.count(report._data_uri(PNG)) == report.MAX_PICTURES
    assert "(2 more in the run folder)" in text


def test_a_project_without_any_number_still_has_a_page(repository, project):
    empty = dataclasses.replace(project(a=(None, None), b=(None, None)), data=None, commit=None)
    arms = {name: dataclasses.replace(run, curves=[None]) for name, run in empty.arms.items()}
    broken = Results({"kcd": dataclasses.replace(empty, arms=arms)})
    text = report.write(broken, {}, repository, repository / "out").read_text(encoding="utf-8")
    assert "2 of 2 pairs have no number" in text
    assert "<img" not in text
