"""Using trained generators: loading them, what they cost, translating files."""

from common.errors import CheckpointError, InputError
from common.gan import apply
from common.gan.settings import Networks
from common.images import write_image

import numpy as np
import pytest
import torch

SMALL = Networks(teacher_width=3, student_width=2, blocks=1)


@pytest.fixture
def files(tmp_path):
    """A checkpoint of ours in short, and a released student."""
    torch.manual_seed(0)
    parts = {kind: apply.generator_of(SMALL, width).state_dict() for kind, width in (("model", 2), ("teacher", 3))}
    torch.save({"state": parts}, tmp_path / "own.pt")
    torch.save(parts["model"], tmp_path / "released.pth")
    return tmp_path


def test_generators_are_found_by_their_role(files):
    own = apply.load_generators(SMALL, files / "own.pt", "student", True)
    assert own["student"].model[1].out_channels == 2 and own["teacher"].model[1].out_channels == 3
    assert not own["student"].training
    released = apply.load_generators(SMALL, files / "released.pth", "student", False)
    assert released.keys() == {"student"}
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(released["student"](x), own["student"](x))
    with pytest.raises(CheckpointError, match="does not fit"):
        apply.load_generators(SMALL, files / "released.pth", "teacher", False)


def test_costs_are_ratios_to_the_original():
    with torch.device("meta"):
        found = apply.costs(Networks(), apply.generator_of(Networks(), 16))
    assert found["params"] == 137_347 and round(found["params_ratio"], 2) == 82.84
    assert round(found["papers_macs_ratio"], 2) == 40.35


def test_files_are_translated_and_none_is_written_over(files, capsys):
    for name in ("one.png", "more/two.png", "more/one.png"):
        write_image(files / name, np.full((9, 14, 3), 80, np.uint8))
    load = lambda path, config, role: apply.load_generators(SMALL, path, role, False)[role]
    words = ["--weights", str(files / "released.pth"), "--out", str(files / "out")]
    results = apply.predict([str(files / "more"), *words], "", load)
    assert [path.name for path in results] == ["one.png", "two.png"] and all(path.is_file() for path in results)
    assert "2 images" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"several inputs would be written to one\.png"):
        apply.predict([str(files / "more"), str(files / "one.png"), *words], "", load)
