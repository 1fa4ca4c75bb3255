"""A trained network in integers: packed weights with BN folded (safetensors), an ONNX file, and proof that both agree.

    python export.py --checkpoint runs/cfg/quantised/last.pt [--out DIR] [--data.root DIR]
    python export.py --checkpoint model_best.pth.tar --config configs/NAME.yaml       (a release's checkpoint)

Writes DIR/model.safetensors, DIR/model.onnx and DIR/export.json, by default beside the checkpoint. The simulated
network, the integer network read back from its file, and the ONNX file in onnxruntime classify the whole test set, or
as much of it as --data.limit says: integer convolutions are slow here.
"""

import argparse
import copy
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path

from common import config, distributed
from common.errors import InputError
from common.labelled import test_batches
from common.metrics import Accuracy
from common.run import entry

import torch
from torch import Tensor, nn

from lts import data, integer
from lts.eval import experiment, float_bytes
from lts.experiment import build
from lts.weights import load_weights

# Logits that differ by more, as a share of the largest: some input lay within rounding of the middle between two codes.
ROUNDING = 1e-4


def main(argv: list[str]) -> dict:
    """Export one checkpoint and compare; prints a table and returns what it writes to export.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of a run, or a release's checkpoint")
    parser.add_argument("--config", help="the experiment of a release's checkpoint, which does not carry it")
    parser.add_argument("--out", help="folder of the exported files (default: that of the checkpoint)")
    parser.set_defaults(stage="quantised")
    given, overrides = parser.parse_known_args(argv)
    require_onnx()
    path = Path(given.checkpoint)
    folder = Path(given.out) if given.out else path.parent
    conf, stage, _ = experiment(given, path)
    conf = config.override(conf, overrides)
    _, test = data.load(conf)
    device = distributed.start("cpu")

    model = build(conf, len(test.classes))
    if stage != "quantised" or not load_weights(model, path).quantised:
        raise InputError(f"{path}: holds no trained quantisers; give a checkpoint of stage quantised")
    model.eval()
    exact = integer.to_integer(model)
    integer.save(exact, folder / "model.safetensors", conf.model.name, len(test.classes), conf.model.width)
    exact = integer.load(folder / "model.safetensors")
    image, _ = test.fetch(torch.arange(1), 0)
    to_onnx(exact, image, folder / "model.onnx")

    session = onnx_session(folder / "model.onnx")
    report = compare({"simulated": model, "integer": exact, "onnx": session}, test_batches(test, conf.data, device))
    report["float64_error"] = float64_error(model, test_batches(test, conf.data, device))
    report["integer_bytes"] = integer.size(exact)
    report["float_bytes"] = float_bytes(model)
    report |= {f"{kind}_file_bytes": (folder / f"model.{kind}").stat().st_size for kind in ("safetensors", "onnx")}
    (folder / "export.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, value in report.items():
        print(f"{name:<28} {value:>16,.6g}" if isinstance(value, float) else f"{name:<28} {value:>16,}")
    return report


def require_onnx() -> None:
    """Refuse to begin what could not be finished. Errors: InputError."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")


def to_onnx(model: nn.Module, images: Tensor, path: str | Path) -> None:
    """Write an integer model as ONNX for any batch size: weights are int8 (int16 for 8 bits), sums are exact in float.

    ONNX has no convolution of these integers that all runtimes share; products of small integers are exact in float32
    up to 2^24. images: [B, 3, H, W], whose size the file takes.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, integer.IntegerLayer)]
    try:
        for layer in layers:
            layer.integer_arithmetic = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's exporter warns of torch
            program = torch.onnx.export(
                model,
                (images[:1].expand(2, -1, -1, -1),),  # a batch of one would be taken for a fixed size
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=False,  # the optimiser would turn the integers into floats
            )
        for node in program.model.graph:
            node.metadata_props.clear()  # stack traces with the paths of this machine
        program.save(path, external_data=False)
    finally:
        for layer in layers:
            layer.integer_arithmetic = True


def onnx_session(path: str | Path) -> Callable[[Tensor], Tensor]:
    """images -> logits of an ONNX file in onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def float64_error(model: nn.Module, batches) -> float:
    """Largest difference between the simulated and the integer network's logits in float64, over the largest logit.

    There no input comes near enough to the middle between two codes to flip, so the two are one function or not.
    """
    simulated = copy.deepcopy(model).double()
    exact = integer.to_integer(simulated)
    largest, error = torch.zeros(2, dtype=torch.float64)
    for images, _ in batches:
        logits = simulated(images.double())
        largest = torch.maximum(largest, logits.abs().max())
        error = torch.maximum(error, (exact(images.double()) - logits).abs().max())
    return (error / largest).item()


@torch.inference_mode()
def compare(forms: dict[str, Callable[[Tensor], Tensor]], batches) -> dict[str, float]:
    """Accuracy of every form, and how the others' logits differ from those of the first.

    `_error`: largest difference among images where nothing flipped, over the largest logit; `_flipped`: share of images
    that differ by more than ROUNDING; `_same_class`: share of images with the same first class.
    """
    meters = {name: Accuracy() for name in forms}
    logits: dict[str, list[Tensor]] = {name: [] for name in forms}
    for images, labels in batches:
        for name, form in forms.items():
            logits[name].append(form(images))
            meters[name].update(logits[name][-1], labels)
    report = {f"{name}_{key}": value for name, meter in meters.items() for key, value in meter.result().items()}
    first, *others = [torch.cat(parts) for parts in logits.values()]
    for name, other in zip([*forms][1:], others):
        error = (other - first).abs().amax(1) / first.abs().max()
        report[f"{name}_error"] = error[error <= ROUNDING].max().item() if (error <= ROUNDING).any() else 1.0
        report[f"{name}_flipped"] = (error > ROUNDING).double().mean().item()
        report[f"{name}_same_class"] = (other.argmax(1) == first.argmax(1)).double().mean().item()
    return report


if __name__ == "__main__":
    entry(main)
