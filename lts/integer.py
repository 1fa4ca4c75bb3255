"""The trained network in integers: packed weight codes, integer convolutions, BN folded into one scale a channel.

A layer computes conv(x_int, w_int)·multiplier + shift. With Q(x) = scale·code + offset the input is
x_int = code − z, z = −offset/scale, so that padding with zeros pads with Q = 0; the levels of weights lie half-way
between integers for the paper's quantiser, so w_int = 2·code − m, m = −2·offset/scale (m = n: odd integers −n … n).
"""

import json
from os import PathLike
from pathlib import Path

from common.errors import CheckpointError, InputError
from common.weights import read_weights

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lts import models
from lts.method import Quantised

FORMAT = "lts-integer-1"


class IntegerLayer(nn.Module):
    """A convolution or linear layer in integers, with what BN made of its output.

    plain: the layer of the float network, for shape, stride and so on. parts: tensors by name — `codes` uint8 [like
    weight] or, for weights in full precision, `weight`; `multiplier` and `shift` [C_out]; for a quantised input the
    scalars `lower` and `upper`. about: weight_bits, activation_bits, m, z.
    """

    def __init__(self, plain: nn.Conv2d | nn.Linear, parts: dict[str, Tensor], about: dict[str, int]):
        super().__init__()
        self.about, self.integer_arithmetic = about, True
        self.channels = [-1] + [1] * (plain.weight.ndim - 2)
        self.settings = None
        if isinstance(plain, nn.Conv2d):
            self.settings = plain.stride, plain.padding, plain.dilation, plain.groups
        if "codes" in parts:
            weight = 2 * parts["codes"].to(torch.int16) - about["m"]
            self.register_buffer("weight", weight if about["weight_bits"] == 8 else weight.to(torch.int8))
        else:
            self.register_buffer("weight", parts["weight"])
        for name in ("multiplier", "shift", "lower", "upper"):
            self.register_buffer(name, parts.get(name))

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, ...] -> float; the sum of products between them is exact where both are quantised."""
        dtype, w = x.dtype, self.weight
        if self.lower is not None:
            n = 2 ** self.about["activation_bits"] - 1
            x = ((x - self.lower) / (self.upper - self.lower)).clamp(0, 1).mul(n).round() - self.about["z"]
        integer = self.integer_arithmetic and self.lower is not None and not w.is_floating_point()
        x, w = (x.to(torch.int32), w.to(torch.int32)) if integer else (x, w.to(dtype))
        if self.settings is None:
            total = F.linear(x, w)
        else:
            stride, padding, dilation, groups = self.settings
            total = F.conv2d(x, w, None, stride, padding, dilation, groups)
        return total.to(dtype) * self.multiplier.view(self.channels) + self.shift.view(self.channels)


class Tracer(torch.fx.Tracer):
    """Sees a quantised layer as one step."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Quantised) or super().is_leaf_module(module, name)


def layers_with_bn(model: nn.Module) -> tuple[torch.fx.GraphModule, dict[str, str | None]]:
    """The model's graph in eval mode without the BNs that follow a layer, and {layer: its BN or None}.

    Errors: InputError for a BN that does not directly and alone follow a convolution or linear layer.
    """
    graph = Tracer().trace(model.eval())
    modules, pairs = dict(model.named_modules()), {}
    for node in list(graph.nodes):
        module = modules[node.target] if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.Linear):
            pairs[node.target] = None
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            before = node.args[0]
            if before.op != "call_module" or pairs.get(before.target, "") is not None or len(before.users) > 1:
                raise InputError(f"{node.target} does not directly follow a layer; such a network cannot be exported")
            pairs[before.target] = node.target
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    return torch.fx.GraphModule(model, graph), pairs


@torch.no_grad()
def to_integer(model: nn.Module) -> torch.fx.GraphModule:
    """The evaluation form of a quantised model in integers; the model is left as it is.

    Errors: InputError for quantisers that were never initialised, or a network whose BNs cannot be folded.
    """
    training = model.training
    graph, pairs = layers_with_bn(model)
    for name, bn in pairs.items():
        layer = model.get_submodule(name)
        graph.set_submodule(name, integer_layer(name, layer, model.get_submodule(bn) if bn else None))
    graph.delete_all_unused_submodules()
    model.train(training)
    return graph.eval()


def integer_layer(name: str, layer: nn.Module, bn: nn.Module | None) -> IntegerLayer:
    """One layer in integers with BN folded in, its constants computed in float64. Errors: InputError."""
    parts, about = {}, {"weight_bits": 32, "activation_bits": 32, "m": 0, "z": 0}
    scale = torch.ones((), dtype=torch.float64)
    if isinstance(layer, Quantised):
        about |= {"weight_bits": layer.weight_bits, "activation_bits": layer.activation_bits}
    if about["weight_bits"] == 32:
        parts["weight"] = layer.weight.detach().clone()
    else:
        codes, step, offset = layer.integer_weight()
        parts["codes"], about["m"] = codes, whole(name, -2 * offset.double() / step.double())
        scale = scale * step.double() / 2
    if about["activation_bits"] != 32:
        grid = layer.input_grid()
        parts |= {"lower": grid.lower.clone(), "upper": grid.upper.clone()}
        about["z"] = whole(name, -grid.offset.double() / grid.scale.double())
        scale = scale * grid.scale.double()
    multiplier = scale.expand(layer.weight.shape[0]).clone()
    shift = torch.zeros_like(multiplier) if layer.bias is None else layer.bias.double()
    if bn is not None:
        slope = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        multiplier, shift = multiplier * slope, (shift - bn.running_mean.double()) * slope + bn.bias.double()
    parts |= {"multiplier": multiplier.to(layer.weight.dtype), "shift": shift.to(layer.weight.dtype)}
    return IntegerLayer(layer, {key: value.detach() for key, value in parts.items()}, about)


def whole(name: str, value: Tensor) -> int:
    """A zero point. Errors: InputError for one that is no number, so that the quantiser was never initialised."""
    if not value.isfinite():
        raise InputError(f"{name}: its quantiser has not been initialised; export a trained checkpoint")
    return round(value.item())


# -- the file --------------------------------------------------------------------------------------------------------


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2^bits of any shape -> uint8 [⌈numel·bits / 8⌉], the highest bit of a code first."""
    planes = np.unpackbits(codes.cpu().numpy().reshape(-1, 1), axis=1)[:, 8 - bits :]  # [numel, bits]
    return torch.from_numpy(np.packbits(planes.reshape(-1)))


def unpack(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """The inverse of `pack`."""
    planes = np.unpackbits(packed.cpu().numpy(), count=shape.numel() * bits).reshape(-1, bits)
    return torch.from_numpy(np.packbits(np.pad(planes, ((0, 0), (8 - bits, 0))), axis=1)).view(shape)


def tensors(integer: nn.Module) -> dict[str, Tensor]:
    """What a file holds of an integer model."""
    found = {}
    for name, layer in integer.named_modules():
        if isinstance(layer, IntegerLayer):
            bits = layer.about["weight_bits"]
            if bits == 32:
                found[f"{name}.weight"] = layer.weight.float().cpu().contiguous()
            else:
                codes = (layer.weight.to(torch.int16) + layer.about["m"]) // 2
                found[f"{name}.codes"] = pack(codes.to(torch.uint8), bits)
            for key in ("multiplier", "shift", "lower", "upper"):
                if getattr(layer, key) is not None:
                    found[f"{name}.{key}"] = getattr(layer, key).float().cpu().contiguous()
    return found


def size(integer: nn.Module) -> int:
    """Bytes of the integer model's tensors: packed codes, and float32 scales, shifts and bounds."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(integer).values())


def save(integer: nn.Module, path: str | PathLike, architecture: str, classes: int, width: int | None) -> None:
    """Write an integer model as safetensors; its metadata says how to build it again. Errors: InputError."""
    about = {name: x.about for name, x in integer.named_modules() if isinstance(x, IntegerLayer)}
    network = {"architecture": architecture, "classes": classes, "width": width}
    metadata = {"format": FORMAT, "network": json.dumps(network), "layers": json.dumps(about)}
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors(integer), path, metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({error})") from error


def load(path: str | PathLike) -> torch.fx.GraphModule:
    """The integer model of a file that `save` wrote. Errors: CheckpointError for any other file."""
    given = read_weights(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        network, about = json.loads(metadata["network"]), json.loads(metadata["layers"])
        if metadata["format"] != FORMAT:
            raise ValueError(f"of format {metadata['format']}, not {FORMAT}")
        with torch.device("meta"):
            plain = models.build(network["architecture"], network["classes"], network["width"])
        graph, pairs = layers_with_bn(plain)
        for name in pairs:
            parts = {key.rpartition(".")[2]: t for key, t in given.items() if key.rpartition(".")[0] == name}
            layer = plain.get_submodule(name)
            if "codes" in parts:
                parts["codes"] = unpack(parts["codes"], about[name]["weight_bits"], layer.weight.shape)
            graph.set_submodule(name, IntegerLayer(layer, parts, about[name]))
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: is not an integer model that export.py wrote ({error!r})") from error
    graph.delete_all_unused_submodules()
    return graph.eval()
