"""A binary student as an ONNX file in ±1 form, checked against the network on real images.

    python export.py --checkpoint runs/cfg/step2/last.pt [--out student.onnx] [--data.root DIR]
    python export.py --checkpoint model_best.pth.tar --config configs/NAME.yaml                 (an official one)

Weights and activations of the binary convolutions are exactly +1 or -1 in the file: scale and BN become one
multiplication and one addition behind the convolution, y = m·dot + c. Zero counts as +1, where training has
sign(0) = 0: the number of such weights is reported. Needs onnx, onnxscript and onnxruntime.
"""

import argparse
import copy
import os
from pathlib import Path

from common import config
from common.errors import InputError
from common.run import entry

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebnn import data
from rebnn.eval import experiment, load
from rebnn.method import BinaryConv2d, RSign

IMAGES = 64
"""real images that the file is checked on"""
TOLERANCE = 1e-4
"""largest difference between the file and the ±1 form in torch, of the largest logit"""


def main(argv: list[str]) -> dict:
    """Export one checkpoint, print what was found and return it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="last.pt or best.pt of step 2, or an official checkpoint")
    parser.add_argument("--config", help="the experiment of an official checkpoint, which does not carry it")
    parser.add_argument("--out", help="the ONNX file (default: beside the checkpoint, with its name)")
    given, overrides = parser.parse_known_args(argv)
    given.role = "step2"
    path = Path(given.checkpoint)
    conf, role, _ = experiment(given, path)
    conf = config.override(conf, overrides)
    if role != "step2":
        raise InputError(f"{path} is of stage {role}, whose weights are real; give a checkpoint of step2")
    _, test = data.load(conf)
    images, _ = test.fetch(torch.arange(min(IMAGES, len(test))), 0)
    network = load(conf, role, len(test.classes), path).eval()
    plain = deploy(network)
    out = Path(given.out) if given.out else path.with_suffix(".onnx")
    unchecked = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        write_onnx(plain, images, unchecked)
        found = check(unchecked, network, plain, images)
        os.replace(unchecked, out)
    finally:
        unchecked.unlink(missing_ok=True)
    found |= {"exact_zeros": exact_zeros(network), "bytes": out.stat().st_size}
    for name, value in found.items():
        print(f"{name:<24} {value:>16,.6g}" if isinstance(value, float) else f"{name:<24} {value:>16,}")
    return found


class Sign(nn.Module):
    """x + β ≥ 0 as +1, else -1."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x + self.bias >= 0, 1.0, -1.0).to(x.dtype)


class SignConv2d(nn.Module):
    """The convolution of ±1 with ±1: integers, as floats."""

    def __init__(self, conv: BinaryConv2d):
        super().__init__()
        self.register_buffer("weight", torch.where(conv.weight.detach() >= 0, 1.0, -1.0).to(conv.weight.dtype))
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.pad_value = conv.pad_value

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.pad_value:
            vertical, horizontal = padding
            x, padding = F.pad(x, (horizontal, horizontal, vertical, vertical), value=self.pad_value), 0
        return F.conv2d(x, self.weight, None, self.stride, padding, self.dilation, self.groups)


class Affine(nn.Module):
    """y = m·dot + c with m = α·g / sqrt(v + ε) and c = β - μ·g / sqrt(v + ε) (spec, binary inference arithmetic)."""

    def __init__(self, alpha: Tensor, bn: nn.BatchNorm2d):
        super().__init__()
        slope = bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps)
        self.register_buffer("factor", alpha.detach() * slope.view(-1, 1, 1))  # [1, C, 1, 1]
        self.register_buffer("offset", (bn.bias.detach() - bn.running_mean * slope).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.offset


def deploy(network: nn.Module) -> nn.Module:
    """A copy in ±1 form, in evaluation mode: signs, integer convolutions, and scale with BN as one affine map."""
    plain = copy.deepcopy(network).eval().to(memory_format=torch.contiguous_format)
    for module in [*plain.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, RSign):
                setattr(module, name, Sign(child.bias))
            elif isinstance(child, BinaryConv2d):
                behind = module.normalised_by[name]
                setattr(module, behind, Affine(child.alpha().view(1, -1, 1, 1), getattr(module, behind)))
                setattr(module, name, SignConv2d(child))
    return plain.requires_grad_(False)


def write_onnx(plain: nn.Module, images: Tensor, path: Path) -> None:
    """Write the network for images of this size, any number of them. InputError without onnx and onnxscript."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"export needs {error.name}: pip install onnx onnxscript onnxruntime") from error
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.onnx.export(
            plain,
            (images[:2],),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path), external_data=False)


@torch.no_grad()
def check(path: Path, network: nn.Module, plain: nn.Module, images: Tensor) -> dict:
    """Compare the file with the network it came from. InputError if it computes something else than the ±1 form."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("checking the file needs onnxruntime: pip install onnxruntime") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    wanted, trained = plain(images), network(images)
    error = float((logits - wanted).abs().max() / wanted.abs().max())
    if not error <= TOLERANCE:
        raise InputError(
            f"the ONNX file differs from the network by {error:.1e} of its largest logit and was not kept; "
            "try another version of onnxscript and onnxruntime"
        )
    return {
        "images": len(images),
        "difference": error,
        "difference_from_training": float((logits - trained).abs().max() / trained.abs().max()),
        "same_prediction": float((logits.argmax(1) == trained.argmax(1)).float().mean()),
    }


def exact_zeros(network: nn.Module) -> int:
    """Binary weights that are exactly 0, which become +1 here."""
    return sum(int((m.weight == 0).sum()) for m in network.modules() if isinstance(m, BinaryConv2d))


if __name__ == "__main__":
    entry(main)
