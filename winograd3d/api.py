"""What an outsider calls: convert a network, merge what it has learned, pack what it has kept."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

from common.errors import InputError

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

from winograd3d.convolution import WinogradConv3d
from winograd3d.functional import Triple
from winograd3d.masks import winograd_layers
from winograd3d.method import column_mask, positions, tile_counts
from winograd3d.packed import PackedConv3d

IMAGE_CHANNELS = 3  # a layer that reads pixels is left as it is (section 2.7)
TILES: tuple[Triple, ...] = ((2, 2, 2), (4, 4, 4), (2, 4, 4), (1, 2, 2), (1, 4, 4))
RIDGE = 30.0  # multiply-adds that take as long as moving one fp32 number: 15 FLOP a byte (section 12.2), for `auto`


class Conversion(NamedTuple):
    """What `convert` did: the names of the new layers, and for every other Conv3d the reason why it stayed."""

    converted: list[str]
    refused: dict[str, str]


def refusal(conv: nn.Conv3d) -> str | None:
    """Why a convolution cannot become a Winograd layer, or None if it can."""
    if type(conv).forward is not nn.Conv3d.forward or type(conv)._conv_forward is not nn.Conv3d._conv_forward:
        return f"it is a {type(conv).__name__} with a forward of its own"
    if parametrize.is_parametrized(conv) or hasattr(conv, "weight_g"):
        return "its weight is computed by a parametrization"
    if tuple(conv.kernel_size) != (3, 3, 3):
        return f"its kernel is {'x'.join(map(str, conv.kernel_size))}; F(m, 3)³ needs 3x3x3"
    for name, value in (("stride", conv.stride), ("dilation", conv.dilation)):
        if tuple(value) != (1, 1, 1):
            return f"its {name} is {'x'.join(map(str, value))}; overlapping tiles need 1"
    if conv.groups != 1:
        return f"it has {conv.groups} groups; every position is one product over all channels"
    if conv.padding_mode != "zeros":
        return f"it pads with {conv.padding_mode}; only zeros are implemented"
    if conv.in_channels <= IMAGE_CHANNELS:
        return f"it reads {conv.in_channels} channels: the first layer stays dense"
    return None


def convert(
    model: nn.Module, *, tile: Triple | str = (2, 2, 2), example: Tensor | None = None, **options
) -> Conversion:
    """Replace every eligible Conv3d by a WinogradConv3d that computes the same, in place.

    tile: (m_d, m_h, m_w), or "auto" to choose each layer's from its size in `example`, an input of the model. options:
    those of WinogradConv3d (mode, rank, view, granularity, points, precondition). A layer that stands at several places
    stays shared. Errors: InputError for "auto" without example, and as WinogradConv3d; the model is then as it was.
    """
    refused, made = {}, {}
    convolutions = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Conv3d)}
    if tile == "auto" and example is None:
        raise InputError("tile auto needs an example input to know the size of every layer")
    sizes = {} if tile != "auto" else input_sizes(model, example, nn.Conv3d)
    for name, conv in convolutions.items():
        reason = refusal(conv)
        if reason:
            refused[name] = reason
        elif conv not in made:
            chosen = tile if tile != "auto" else choose_tile(conv, sizes[conv])
            try:
                made[conv] = WinogradConv3d.from_conv(conv, tile=chosen, **options)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
    converted = [name for name in convolutions if name not in refused]
    for name in converted:
        model.set_submodule(name, made[convolutions[name]])
    return Conversion(converted, refused)


def merge(model: nn.Module, fold: bool = True) -> nn.Module:
    """Put M ⊙ (W₀ + P·Q) in the place of its parts and fold the BatchNorm that alone follows a layer; in place.

    Folding scales rows of Ŵ, which is legal because the inverse transform acts on each output channel by itself. A
    network that branches on its data cannot be traced: its norms stay, with a warning. The model is put into eval mode.
    """
    model.eval()
    _replace(model, WinogradConv3d.merged)
    if fold:
        modules = dict(model.named_modules())
        for layer, norm in _followed_by_norm(model):
            _fold(modules[layer], modules[norm])
            model.set_submodule(norm, nn.Identity())
    return model


def pack(model: nn.Module) -> nn.Module:
    """Replace every Winograd layer by one that stores and computes its kept columns only, in place, for inference.

    Errors: InputError for a mask that empties a layer.
    """
    _replace(model, packed)
    return model.eval()


def _replace(model: nn.Module, make: Callable[[WinogradConv3d], nn.Module]) -> None:
    """Put make(layer) in the place of every Winograd layer; one that stands at several places stays shared.

    Errors: InputError naming the layer, with the model as it was.
    """
    made = {}
    for name, layer in winograd_layers(model).items():
        try:
            made[layer] = make(layer)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    places = {name: module for name, module in model.named_modules(remove_duplicate=False) if module in made}
    for name, layer in places.items():
        model.set_submodule(name, made[layer])


@torch.no_grad()
def packed(layer: WinogradConv3d, dense: bool = False) -> PackedConv3d:
    """One layer packed; dense keeps every column, for comparison."""
    layer.set_mask(layer.mask)  # refuses an empty one
    mask = column_mask(layer.mask)
    bias = None if layer.bias is None else layer.bias.detach()
    how = layer.tile, layer.padding, layer.points
    if dense:
        return PackedConv3d(layer.unmasked_weight().detach(), torch.ones_like(mask), bias, *how)
    return PackedConv3d(layer.effective_weight().detach(), mask, bias, *how)


# -- sizes, tiles and graphs -----------------------------------------------------------------------------------------


@torch.no_grad()
def layer_inputs(model: nn.Module, example: Tensor, kind: type[nn.Module]) -> dict[nn.Module, Tensor]:
    """The input of every layer of a kind; the modules' modes stay as they are."""
    found, modes = {}, {module: module.training for module in model.modules()}
    layers = {module for module in model.modules() if isinstance(module, kind)}
    hooks = [m.register_forward_pre_hook(lambda module, given: found.update({module: given[0]})) for m in layers]
    try:
        model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if missing := [name for name, module in model.named_modules() if module in layers and module not in found]:
        raise InputError(f"the example input does not reach {', '.join(missing)}")
    return found


def input_sizes(model: nn.Module, example: Tensor, kind: type[nn.Module]) -> dict[nn.Module, Triple]:
    """(D, H, W) of the input of every layer of a kind. Errors: InputError for a layer that the example misses."""
    return {layer: tuple(x.shape[2:]) for layer, x in layer_inputs(model, example, kind).items()}


def choose_tile(conv: nn.Conv3d, size: Triple) -> Triple:
    """The tile of least cost for one sample: multiply-adds, plus RIDGE for every weight, V and M that is moved."""
    padding = {"same": (1, 1, 1), "valid": (0, 0, 0)}.get(conv.padding, conv.padding)

    def cost(tile: Triple) -> float:
        n, tiles = _product(positions(tile)), _product(tile_counts(size, padding, tile))
        pairs = conv.in_channels * conv.out_channels
        moved = n * (pairs + 2 * tiles * (conv.in_channels + conv.out_channels))
        return n * pairs * tiles + RIDGE * moved

    return min(TILES, key=cost)


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, WinogradConv3d) or super().is_leaf_module(module, name)


def _followed_by_norm(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the Winograd layers whose only use is by one BatchNorm3d, and of that norm."""
    try:
        graph = _Tracer().trace(model)
    except (torch.fx.proxy.TraceError, TypeError, NotImplementedError) as error:
        warnings.warn(f"BatchNorm is not folded: the network cannot be traced ({error})", stacklevel=3)
        return []
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    once = {node.target for node in calls if sum(other.target == node.target for other in calls) == 1}
    pairs = []
    for node in calls:
        before = node.all_input_nodes[0]
        known = before.op == "call_module" and before.target in once and node.target in once
        if not known or len(before.users) != 1:
            continue
        layer, norm = modules[before.target], modules[node.target]
        if isinstance(layer, WinogradConv3d) and type(norm) is nn.BatchNorm3d and norm.running_mean is not None:
            pairs.append((before.target, node.target))
    return pairs


@torch.no_grad()
def _fold(layer: WinogradConv3d, norm: nn.BatchNorm3d) -> None:
    """Ŵ·s and (b − mean)·s + β with s = γ / sqrt(var + ε)."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale * norm.weight if norm.affine else scale
    shift = (0 if layer.bias is None else layer.bias) - norm.running_mean
    shift = shift * scale + (norm.bias if norm.affine else 0)
    layer.W.mul_(scale[:, None, None])
    layer.bias = nn.Parameter(shift, requires_grad=False)


def _product(values: Triple) -> int:
    return values[0] * values[1] * values[2]
