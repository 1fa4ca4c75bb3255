"""A generator as an ONNX file for images of any size that it takes, compared with torch."""

import importlib.util
import warnings
from os import PathLike

from common.errors import InputError

import numpy as np
import torch
from torch import Tensor, nn

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Refuse to begin what could not be finished. Errors: InputError."""
    missing = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")


def to_onnx(generator: nn.Module, path: str | PathLike, size: int = 256) -> None:
    """Write the generator for batches of any length and images [3, size, size] in [-1, 1]."""
    generator = generator.eval().cpu()
    images = torch.zeros(2, 3, size, size)  # a batch of one would be taken for a fixed length
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter warns of torch
        program = torch.onnx.export(
            generator,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["source"],
            output_names=["image"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces with the paths of this machine
    program.save(path, external_data=False)


def onnx_difference(generator: nn.Module, path: str | PathLike, images: Tensor) -> float:
    """The largest difference between torch's and onnxruntime's images, of values in [-1, 1]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"source": images.numpy()})
    with torch.inference_mode():
        expected = generator.eval()(images).numpy()
    return float(np.abs(found - expected).max())
