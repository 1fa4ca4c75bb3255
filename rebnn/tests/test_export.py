import shutil
from functools import partial
from pathlib import Path

from common.errors import InputError

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rebnn import export, train
from rebnn.method import BinaryConv2d
from rebnn.models import binary_convolutions, build
from rebnn.models.mobilenet import ReActNetA
from rebnn.tests.oracle_networks import filled
from rebnn.weights import export_official

HERE = Path(__file__).parent.parent
SHORT = ["--data.limit=300", *(f"--{stage}.epochs=2" for stage in ("teacher", "step1", "step2"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run on the digits, all stages."""
    out = tmp_path_factory.mktemp("run") / "short"
    return train.main(["--config", str(HERE / "cfg.yaml"), "--out", str(out), *SHORT])


@pytest.fixture(scope="module")
def exported(run) -> tuple[Path, dict]:
    """The file of the run's student, and what the command found."""
    out = run.parent / "new" / "student.onnx"
    return out, export.main(["--checkpoint", str(run / "step2" / "last.pt"), "--out", str(out)])


def test_a_trained_student_is_exported_and_answers_alike_on_real_digits(exported):
    out, found = exported
    assert found["images"] == 64 and found["difference"] < 1e-5 and found["same_prediction"] == 1
    assert found["difference_from_training"] < 1e-4 and found["bytes"] == out.stat().st_size
    assert [path.name for path in out.parent.iterdir()] == ["student.onnx"]


@pytest.mark.parametrize("weights, pad_value", [("paper", 0), ("released", -1), ("reactnet", 1)])
def test_the_file_computes_what_the_network_computes(tmp_path, weights, pad_value):
    torch.manual_seed(0)
    if weights == "reactnet":
        convolution = partial(BinaryConv2d, binarizer=weights, pad_value=pad_value)
        network, side = ReActNetA((4, 8, 16, 16), 10, convolution), 32
    else:
        network, side = build("digits", 10, weights, pad_value=pad_value), 8
    network = filled(network, 5).eval()
    export.write_onnx(export.deploy(network), torch.randn(3, 3, side, side), tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"))
    for number in (1, 2, 7):
        images = torch.randn(number, 3, side, side)
        with torch.no_grad():  # in double the network's own sums of ±α are exact enough for no sign to differ
            wanted = network.double()(images.double())
        logits = session.run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(logits, wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max()))
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "network.onnx").graph.initializer}
    for layer in binary_convolutions(network):
        assert set(np.unique(stored[f"{layer}.weight"])) == {-1, 1}


def test_zero_counts_as_plus_one_and_is_reported():
    network = build("digits", 10)
    with torch.no_grad():
        network.layer1[0].binary_conv.weight[:2, 0] = 0
        network.layer1[0].move0.bias.zero_()
    plain = export.deploy(network)
    assert export.exact_zeros(network) == 2 * 9
    assert (plain.layer1[0].binary_conv.weight[:2, 0] == 1).all()
    assert (plain.layer1[0].move0(torch.zeros(1, 8, 2, 2)) == 1).all()


def test_deploying_leaves_the_network_alone_and_folds_the_scale(tmp_path):
    network = filled(build("digits", 10, "released"), 5).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    plain = export.deploy(network)
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    x = torch.randn(2, 8, 6, 6).sign()
    block, one = network.layer1[0].eval(), plain.layer1[0]
    torch.testing.assert_close(one.bn1(one.binary_conv(x)), block.bn1(block.binary_conv(x)), rtol=1e-4, atol=1e-5)
    dot = one.binary_conv(x)
    assert torch.equal(dot, dot.round())


def test_an_official_checkpoint_is_exported_with_a_config(tmp_path):
    torch.save(export_official(filled(build("digits", 10), 5)), tmp_path / "model_best.pth.tar")
    words = ["--checkpoint", str(tmp_path / "model_best.pth.tar"), "--config", str(HERE / "cfg.yaml")]
    assert export.main(words)["same_prediction"] == 1
    assert (tmp_path / "model_best.pth.onnx").is_file()


def test_a_stage_with_real_weights_is_refused_before_anything_is_written(run):
    for stage in ("teacher", "step1"):
        with pytest.raises(InputError, match=f"is of stage {stage}"):
            export.main(["--checkpoint", str(run / stage / "last.pt")])
        assert not list((run / stage).glob("*.onnx*"))


def test_a_file_that_computes_something_else_is_not_kept(run, exported, tmp_path, monkeypatch):
    other = filled(build("digits", 10), 5)
    torch.save(export_official(other), tmp_path / "model_best.pth.tar")
    monkeypatch.setattr(export, "write_onnx", lambda plain, images, path: shutil.copy(exported[0], path))
    words = ["--checkpoint", str(tmp_path / "model_best.pth.tar"), "--config", str(HERE / "cfg.yaml")]
    with pytest.raises(InputError, match="was not kept"):
        export.main(words)
    assert [path.name for path in tmp_path.iterdir()] == ["model_best.pth.tar"]
