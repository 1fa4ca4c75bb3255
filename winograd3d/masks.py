"""Stage 1: the masks of all Winograd layers of a network, learned step by step (sections 2.6 to 2.8)."""

from collections.abc import Callable
from typing import Literal

from common.errors import InputError

import torch
from torch import Tensor, nn

from winograd3d.convolution import WinogradConv3d
from winograd3d.method import global_masks, layer_mask, tile_rank
from winograd3d.method.pruning import Score

Scope = Literal["layer", "global"]


def winograd_layers(network: nn.Module) -> dict[str, WinogradConv3d]:
    """The Winograd layers by name, in the network's order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, WinogradConv3d)}


class MaskLearner:
    """Scores after every backward, masks from scores; between `start` and `freeze` gradients pass the masks.

    reduce: adds a tensor up over processes and gives their mean, for what a score needs of the gradient.
    Errors: InputError for granularity channel_balanced under scope global, whose counts are fixed layer by layer.
    """

    def __init__(
        self,
        network: nn.Module,
        score: Score = "taylor",
        beta: float = 0.9,
        scope: Scope = "layer",
        reduce: Callable[[Tensor], Tensor] = lambda total: total,
    ):
        self.layers = list(winograd_layers(network).values())
        self.score, self.beta, self.scope, self.reduce = score, beta, scope, reduce
        if scope == "global" and any(layer.granularity == "channel_balanced" for layer in self.layers):
            raise InputError("scope global does not go with channel_balanced, whose positions keep equal numbers")
        if score == "gram" and any(layer.mode != "factor" for layer in self.layers):
            raise InputError(
                "score gram is ‖P q_j‖ and needs mode factor; elsewhere a column is more than P q_j: use l2"
            )

    def start(self) -> None:
        """Let gradients pass the masks and note what the score needs of them."""
        for layer in self.layers:
            layer.straight_through, layer.noted_score = True, self.score

    def freeze(self) -> None:
        """Masks and scores stay as they are; masked columns get no gradient."""
        for layer in self.layers:
            layer.straight_through, layer.noted_score, layer.noted = False, None, None

    @torch.no_grad()
    def update(self, sparsity: float) -> None:
        """Take this step's scores and set the masks of the next step, at column sparsity ρ; after backward.

        Nothing is read back from the device. The optimiser's step comes after, so that scores see this step's weights.
        """
        for layer in self.layers:
            layer.update_score(self.score, self.beta, self.reduce)
        scores = [layer.score for layer in self.layers]
        if self.scope == "global":
            masks = global_masks(scores, sparsity)
        else:
            masks = [layer_mask(score, sparsity, layer.granularity) for score, layer in zip(scores, self.layers)]
        for layer, mask in zip(self.layers, masks):
            layer.mask.copy_(mask)


def warnings(network: nn.Module) -> list[str]:
    """Layers whose kept positions cannot express every tile of outputs: fewer than m³, or A₃[:, J] of lower rank."""
    found = []
    for name, layer in winograd_layers(network).items():
        outputs = layer.tile[0] * layer.tile[1] * layer.tile[2]
        rank = tile_rank(layer.mask, layer.axes.AT)
        if rank < outputs:
            positions = int(layer.mask.view(-1, layer.positions).any(0).sum())
            found.append(
                f"{name}: {positions} kept positions span only {rank} of a tile's {outputs} outputs, "
                "which are therefore linearly dependent; a lower sparsity avoids it"
            )
    return found
