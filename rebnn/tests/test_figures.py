import json
import sys
from pathlib import Path

from common.errors import InputError
from common.images import read_image

import pytest

from rebnn import figures

LAYERS = [f"layer{i}.0.binary_conv" for i in range(1, 5)]


def oscillation(epochs: int, factor: float = 1.0, layers=LAYERS) -> list[dict]:
    return [
        {"split": "oscillation", "epoch": e, "layers": layers}
        | {key: [factor * 0.01 * (i + 1) / e for i in range(len(layers))] for key in figures.LABELS}
        for e in range(1, epochs + 1)
    ]


def latent(epochs: int) -> list[dict]:
    return [
        {"split": "latent", "epoch": e, "layer": LAYERS[0], "edges": [-1.0, 0.0, 1.0]}
        | {"counts": [3, e], "layer_counts": [0, 0]}
        for e in range(epochs + 1)
    ]


def write(run: Path, lines: list[dict]) -> Path:
    (run / "step2").mkdir(parents=True)
    (run / "step2" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def test_a_run_has_two_figures(tmp_path):
    run = write(tmp_path / "one", [{"split": "train", "loss": 1.0}, *latent(3), *oscillation(3)])
    paths = figures.main([str(run)])
    assert [path.relative_to(run).as_posix() for path in paths] == [
        "step2/samples/oscillation.png",
        "step2/samples/latent_weights.png",
    ]
    for path in paths:
        image = read_image(path)
        assert image.ndim == 3 and image.std() > 10  # not blank


def test_the_student_of_a_bert_has_them_too(tmp_path):
    run = write(tmp_path / "one", oscillation(1))
    (run / "step2").rename(run / "student")
    assert figures.stage_folder(run) == figures.stage_folder(run / "student") == run / "student"


def test_several_runs_share_one_picture(tmp_path):
    runs = [write(tmp_path / name, oscillation(4, factor)) for name, factor in (("paper", 1.0), ("none", 2.0))]
    out = tmp_path / "out"
    assert figures.main([*map(str, runs), "--out", str(out)]) == [out / "oscillation.png"]


@pytest.mark.parametrize("n, shown", [(1, [0]), (2, [0, 1]), (4, [0, 1, 3]), (16, [0, 7, 15]), (32, [0, 15, 31])])
def test_first_middle_and_last_layer_are_shown(n, shown):
    assert figures.first_middle_last(n) == shown


def test_the_drawn_curves_are_the_logged_numbers(tmp_path, monkeypatch):
    drawn = []
    figure_of = figures._figure

    def kept(size, **margins):
        drawn.append(figure_of(size, **margins))
        return drawn[-1]

    monkeypatch.setattr(figures, "_figure", kept)
    lines = oscillation(5)
    assert figures.compare_oscillation({"a": lines, "b": oscillation(5, 3.0)}, tmp_path / "x.png")
    panels = drawn[0].axes
    assert [axes.get_title().splitlines()[1] for axes in panels] == [LAYERS[0], LAYERS[1], LAYERS[3]]
    for axes, layer in zip(panels, (0, 1, 3)):
        one, three = axes.get_lines()
        assert one.get_xdata().tolist() == [1, 2, 3, 4, 5]
        assert one.get_ydata().tolist() == [line["flip_ratio"][layer] for line in lines]
        assert three.get_ydata() == pytest.approx(3 * one.get_ydata())


@pytest.mark.parametrize(
    "n, most, wanted", [(5, 9, [0, 1, 2, 3, 4]), (257, 9, [*range(0, 257, 32)]), (11, 3, [0, 5, 10])]
)
def test_epochs_are_spread_evenly_with_both_ends(n, most, wanted):
    assert figures.spread(n, most) == wanted


def test_without_matplotlib_nothing_is_drawn_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert figures.draw_oscillation(oscillation(2), tmp_path / "o.png") is False
    assert figures.draw_latent(latent(2), tmp_path / "l.png") is False
    assert list(tmp_path.iterdir()) == []
    run = write(tmp_path / "one", [*latent(1), *oscillation(1)])
    with pytest.raises(InputError, match="pip install matplotlib"):
        figures.main([str(run)])


@pytest.mark.parametrize(
    "lines, message",
    [([], "no line of split 'oscillation'"), (oscillation(1), "no line of split 'latent'")],
)
def test_a_log_without_an_epoch_is_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        figures.main([str(write(tmp_path / "one", lines))])


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    one = write(tmp_path / "one", oscillation(1))
    other = write(tmp_path / "other", oscillation(1, layers=LAYERS[:2]))
    twin = write(tmp_path / "below" / "one", oscillation(1))
    for runs, message in (((one, other), "different networks"), ((one, twin), "told apart"), ((tmp_path,), "holds no")):
        with pytest.raises(InputError, match=message):
            figures.main([*map(str, runs)])
