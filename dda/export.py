"""The sub-networks as ONNX or TorchScript files, with what routes between them, for a phone.

    python export.py [--weights runs/NAME/first/best.pt] --out phone/ [--widths 0.75 0.5 0.25] [--tile 512x512]
    python phone.py phone/ photo.jpg clean.png            the whole method in numpy and onnxruntime, without torch
    python export.py --weights runs/NAME/first/best.pt --format supernet --out weights/

Writes one file a width (w075.onnx …), each a plain network, float32 [1, 3, height, width] in [0, 1] -> the same shape,
and routing.json: files and widths from the widest on, the tile's size, multiply-adds of a tile. The filter of MBCNN is
folded. Every file is run once and compared with the sub-network it was made of. `--format supernet` instead writes
the one network of all widths in half precision, dmcnn_dda.safetensors or mbcnn_dda.safetensors, for predict.py.
"""

import argparse
import importlib.util
import json
import warnings
from pathlib import Path

from common.errors import InputError
from common.run import entry

import torch
from torch import nn

from dda import models
from dda.inference import check_widths
from dda.models.weights import save_supernet
from dda.predict import SHIPPED, load, size

FORMATS = {"onnx": ".onnx", "torchscript": ".pt"}
TOLERANCE = 1e-4  # largest difference of an output in [0, 1] between a file and the network it was made of


def main(argv: list[str]) -> Path:
    """Write the files of one network; returns their folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=str(SHIPPED), help="ours or the release's (default: the shipped DMCNN)")
    parser.add_argument("--widths", nargs="+", type=float, help="falling; default: a run's own, else 0.75 0.5 0.25")
    parser.add_argument("--tile", default="512x512", type=size, help="HEIGHTxWIDTH of a tile (default: 512x512)")
    parser.add_argument("--out", required=True, help="folder of the files")
    parser.add_argument("--format", choices=[*FORMATS, "supernet"], default="onnx", help="default: onnx")
    given = parser.parse_args(argv)
    network, widths = load(Path(given.weights), given.widths)
    check_widths(widths)
    if any(side % network.multiple for side in given.tile):
        raise InputError(
            f"a tile of {given.tile} does not fit {network.architecture}; use multiples of {network.multiple}"
        )
    if given.format == "onnx":
        require_onnx()
    folder = Path(given.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made ({error.strerror}); give another folder") from error
    if given.format == "supernet":
        path = folder / f"{network.architecture.lower()}_dda.safetensors"
        save_supernet(network, widths, path)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, widths {widths}, {network.options}")
        return folder
    example = torch.rand(1, 3, *given.tile, generator=torch.Generator().manual_seed(0))
    files = []
    for width in widths:
        sub = network.slice(width).eval()
        path = folder / f"w{round(100 * width):03d}{FORMATS[given.format]}"
        difference = (write_onnx if given.format == "onnx" else write_torchscript)(sub, example, path)
        if not difference <= TOLERANCE:
            raise ArithmeticError(f"{path} differs by {difference:.1e} from the network it was made of")
        count = models.macs(network, width, given.tile)
        files.append({"file": path.name, "width": width, "macs": count, "parameters": models.parameters(sub).total})
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {count / 1e9:.1f} GMAC, differs by {difference:.0e}")
    routing = {"network": network.architecture, "tile": list(given.tile), "widths": files}
    (folder / "routing.json").write_text(json.dumps(routing, indent=1) + "\n", encoding="utf-8")
    return folder


def require_onnx() -> None:
    """Errors: InputError naming what is not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the ONNX files need {', '.join(missing)}; pip install {' '.join(missing)}")


def write_onnx(sub: nn.Module, example: torch.Tensor, path: Path) -> float:
    """Write a sub-network and run it in onnxruntime; returns the largest difference of their outputs."""
    import onnxruntime

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's remarks on its own deprecations
        torch.onnx.export(
            sub,
            (example,),
            path,
            dynamo=True,
            external_data=False,
            input_names=["moire"],
            output_names=["clean"],
            verbose=False,
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"moire": example.numpy()})
        return (torch.from_numpy(found) - sub(example)).abs().max().item()


def write_torchscript(sub: nn.Module, example: torch.Tensor, path: Path) -> float:
    """Write a traced sub-network and read it back; returns the largest difference of their outputs."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is deprecated in torch, but phones read it
        torch.jit.trace(sub, example).save(path)
        return (torch.jit.load(path)(example) - sub(example)).abs().max().item()


if __name__ == "__main__":
    entry(main)
