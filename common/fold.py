"""Folding batch normalisation into the layer before it: the same function with fewer passes over memory."""

import copy
import inspect
from collections import Counter

import torch
from torch import nn

# The normalisations that act on the output channels of each layer. A linear layer's channels are those that
# BatchNorm1d normalises for [N, C] input only, which is taken for granted here.
FOLDABLE = {
    nn.Linear: (nn.BatchNorm1d,),
    nn.Conv1d: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
    nn.Conv3d: (nn.BatchNorm3d, nn.SyncBatchNorm),
    nn.ConvTranspose1d: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.ConvTranspose2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
    nn.ConvTranspose3d: (nn.BatchNorm3d, nn.SyncBatchNorm),
}


def fold_batchnorm(module: nn.Module) -> torch.fx.GraphModule:
    """An evaluation-mode copy without the BNs that directly and solely follow a convolution or linear layer.

    The copy computes the module's forward with optional arguments at their defaults, equal to module.eval()
    within rounding; to fold another use, such as a network that also returns its features, wrap that call in
    a module. A layer is left as it is if its output or weight is used elsewhere too, if it carries hooks, or
    if it is a subclass of torch's. torch.fx.proxy.TraceError if the forward branches on the data.
    """
    root = copy.deepcopy(module).eval()
    parameters = inspect.signature(root.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    graph = torch.fx.Tracer().trace(root, concrete_args=defaults)
    folded = torch.fx.GraphModule(root, graph)
    modules = dict(folded.named_modules())
    uses = Counter(node.target for node in graph.nodes if node.op == "call_module")
    direct = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in list(graph.nodes):
        if node.op != "call_module" or not node.all_input_nodes:
            continue
        before = node.all_input_nodes[0]
        alone = len(before.users) == 1 and uses[before.target] == 1 and before.target not in direct
        if before.op == "call_module" and alone and _foldable(modules[before.target], modules[node.target]):
            modules[before.target] = _folded(modules[before.target], modules[node.target])
            folded.set_submodule(before.target, modules[before.target])
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


def _foldable(layer: nn.Module, bn: nn.Module) -> bool:
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (layer, bn))
    return type(bn) in FOLDABLE.get(type(layer), ()) and bn.running_mean is not None and not hooked


@torch.no_grad()
def _folded(layer: nn.Module, bn: nn.Module) -> nn.Module:
    """The layer with w·s and (b − mean)·s + β in the place of w and b, where s = γ / sqrt(var + ε)."""
    scale = torch.rsqrt(bn.running_var + bn.eps)
    if bn.affine:
        scale = scale * bn.weight
    shift = -bn.running_mean * scale
    if bn.affine:
        shift = shift + bn.bias
    if layer.bias is not None:
        shift = shift + layer.bias * scale
    weight = layer.weight
    if getattr(layer, "transposed", False):  # [C_in, C_out/groups, ...] in groups of C_in
        weight = weight.unflatten(0, (layer.groups, -1))
        weight = (weight * scale.reshape(layer.groups, 1, -1, *[1] * (weight.ndim - 3))).flatten(0, 1)
    else:  # [C_out, ...]
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    folded = copy.deepcopy(layer)
    folded.weight = nn.Parameter(weight.to(layer.weight.dtype), layer.weight.requires_grad)
    folded.bias = nn.Parameter(shift.to(layer.weight.dtype), layer.weight.requires_grad)
    return folded
