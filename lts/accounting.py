"""What freezing saves, counted: multiply-adds, frozen shares, backward work, and how early levels settle (section 2.4).

A backward pass costs an input gradient and a weight gradient, each as much as the forward pass. Freezing a share φ
of the weights makes the same share of the weight gradients superfluous, half of that of the backward pass.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from common.errors import InputError

import torch
from torch import Tensor, nn

SAMPLED_WEIGHTS = 16384  # of a layer, whose levels are remembered


def layer_macs(
    model: nn.Module, images: Tensor, counted: Callable[[nn.Module], bool] = lambda layer: True
) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer for the whole batch, in the order of execution.

    A convolution takes numel(output)·(C_in / groups)·k_h·k_w, a linear layer in_features·numel(output); biases are
    free (the release's definition). counted: which layers; the release counts quantised ones alone. On the meta
    device nothing is computed. The model's mode and buffers stay as they are.
    """
    found: dict[str, int] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(layer: nn.Module, _, output: Tensor) -> None:
        per_output = layer.weight.numel() // layer.weight.shape[0]
        found[names[layer]] = found.get(names[layer], 0) + per_output * output.numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and counted(m)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return found


def iteration_ratio(frozen: Tensor | float, parameters: int) -> Tensor | float:
    """φ_t: frozen weights over parameters. The release divides by all, BN and quantiser scalars included."""
    return frozen / parameters


def epoch_cost(ratios: Iterable[float]) -> float:
    """Σ_t (1 − φ_t): the iterations' worth of weight updates that are left."""
    return sum(1 - ratio for ratio in ratios)


def backward_saved(ratio: float) -> float:
    """φ / 2: the share of the backward work that the paper reports."""
    return ratio / 2


def backward_saved_by_layer(shares: Sequence[float], macs: Sequence[int]) -> float:
    """Σ φ_l M_l / (Σ 2 M_l − M_1): weighted by each layer's work; the first layer needs no input gradient.

    shares: frozen share of each layer's weights; macs: each layer's multiply-adds, in the order of execution.
    """
    return sum(share * work for share, work in zip(shares, macs, strict=True)) / (2 * sum(macs) - macs[0])


class Ledger:
    """Running account of frozen weights; the counts stay on the device until an epoch is closed.

    sizes: {layer: weights} of the quantised layers; macs: {layer: multiply-adds} of all layers in the order of
    execution; parameters: all trainable parameters. Errors: InputError for a layer without multiply-adds.
    """

    def __init__(self, sizes: Mapping[str, int], macs: Mapping[str, int], parameters: int):
        if unknown := sorted(sizes.keys() - macs.keys()):
            raise InputError(f"no multiply-adds are known of the layers {', '.join(unknown)}; count all of them")
        self.sizes, self.macs, self.parameters = dict(sizes), dict(macs), parameters
        self.sums: Tensor | None = None  # frozen weights of each layer, summed over the open epoch's steps, int64 [L]
        self.last: Tensor | None = None  # the same of the last step
        self.steps = 0  # of the open epoch
        self.epochs: list[list[int]] = []  # [steps, Σ frozen of layer 1, Σ frozen of layer 2, …] of each closed epoch
        self.final = [0] * len(sizes)  # frozen weights of each layer at the end of the last closed epoch

    def note(self, frozen: Tensor) -> None:
        """Take down one step: frozen weights of each layer, int64 [L]; nothing leaves the device."""
        self.sums = frozen.clone() if self.sums is None else self.sums + frozen
        self.last = frozen.clone()
        self.steps += 1

    def close_epoch(self) -> dict[str, float]:
        """End an epoch of at least one step: mean and final frozen share and cost, as the release logs them."""
        if self.sums is None:
            raise InputError("an epoch without a step has no frozen share")
        sums, self.final = self.sums.tolist(), self.last.tolist()
        self.epochs.append([self.steps, *sums])
        ratio = iteration_ratio(sum(sums) / self.steps, self.parameters)
        cost = self.steps * (1 - ratio)
        self.sums, self.last, self.steps = None, None, 0
        return {
            "frozen": iteration_ratio(sum(self.final), self.parameters),
            "frozen_mean": ratio,
            "frozen_weights": sum(self.final) / sum(self.sizes.values()),
            "epoch_cost": cost,
            "total_cost": self.total_cost(),
        }

    def total_cost(self) -> float:
        """Σ_t (1 − φ_t) over all closed epochs, in iterations."""
        return sum(steps - iteration_ratio(sum(sums), self.parameters) for steps, *sums in self.epochs)

    def mean_shares(self) -> dict[str, float]:
        """Each layer's frozen share, averaged over all steps of the closed epochs."""
        steps = sum(row[0] for row in self.epochs) or 1
        totals = [sum(column) for column in zip(*(row[1:] for row in self.epochs))] or [0] * len(self.sizes)
        return {name: total / steps / size for (name, size), total in zip(self.sizes.items(), totals)}

    def curve(self) -> list[float]:
        """Mean frozen share of all quantised weights in each closed epoch."""
        weights = sum(self.sizes.values())
        return [sum(sums) / steps / weights for steps, *sums in self.epochs]

    def summary(self) -> dict[str, float]:
        """The run's account: shares over all parameters (the release's) and over quantised weights, cost, savings."""
        shares, weights = self.mean_shares(), sum(self.sizes.values())
        mean = sum(shares[name] * size for name, size in self.sizes.items())
        ratio = iteration_ratio(mean, self.parameters)
        return {
            "frozen_mean": ratio,
            "frozen_final": iteration_ratio(sum(self.final), self.parameters),
            "frozen_mean_weights": mean / weights,
            "frozen_final_weights": sum(self.final) / weights,
            "total_cost": self.total_cost(),
            "backward_saved": backward_saved(ratio),
            "backward_saved_by_layer": backward_saved_by_layer(
                [shares.get(name, 0) for name in self.macs], [*self.macs.values()]
            ),
        }

    def per_layer(self) -> dict[str, dict[str, float]]:
        """{layer: weights, macs, frozen_mean, frozen_final}."""
        shares = self.mean_shares()
        return {
            name: {
                "weights": size,
                "macs": self.macs[name],
                "frozen_mean": shares[name],
                "frozen_final": final / size,
            }
            for (name, size), final in zip(self.sizes.items(), self.final)
        }

    def state_dict(self) -> dict:
        """Everything that a resumed run needs, as plain content."""
        return {
            "epochs": self.epochs,
            "final": self.final,
            "steps": self.steps,
            "open": None if self.sums is None else torch.stack([self.sums, self.last]),
        }

    def load_state_dict(self, state: dict, device: torch.device | str = "cpu") -> None:
        """Undo `state_dict`."""
        self.epochs, self.final, self.steps = [[*row] for row in state["epochs"]], [*state["final"]], state["steps"]
        opened = (None, None) if state["open"] is None else state["open"].to(device).unbind()
        self.sums, self.last = opened


class LevelHistory:
    """The levels of the weights at the end of each epoch, to see afterwards how early they were final.

    Of a layer with more than `limit` weights, `limit` evenly spread ones are remembered, one byte each an epoch.
    """

    def __init__(self, limit: int = SAMPLED_WEIGHTS):
        self.limit, self.rows = limit, []

    def note(self, levels: Iterable[Tensor]) -> None:
        """Remember an epoch's end: the integer level of every weight, one tensor of any shape for each layer."""
        self.rows.append(torch.cat([self._sample(level.detach().flatten()) for level in levels]).to("cpu", torch.uint8))

    def curve(self) -> list[float]:
        """For each epoch the share of weights whose level then equals the last one; the last entry is 1."""
        return [(row == self.rows[-1]).double().mean().item() for row in self.rows]

    def state_dict(self) -> dict:
        """The whole history, uint8 [epochs, weights]."""
        return {"rows": torch.stack(self.rows) if self.rows else torch.empty(0, 0, dtype=torch.uint8)}

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`."""
        self.rows = [*state["rows"].unbind()]

    def _sample(self, flat: Tensor) -> Tensor:
        if len(flat) <= self.limit:
            return flat
        place = torch.arange(self.limit, device=flat.device) * len(flat) // self.limit
        return flat[place]


def stability_at(curve: Sequence[float], share: float) -> float:
    """The level stability after a share of the epochs, such as 0.25; curve: `LevelHistory.curve`."""
    return curve[max(1, round(share * len(curve))) - 1]


def plot_frozen(path: str | Path, curves: Mapping[str, Sequence[float]], what: str = "frozen share of weights") -> None:
    """Draw {label: share of each epoch} over the epochs as a PNG or SVG file."""
    from matplotlib.figure import Figure  # without pyplot there is no window and no global state

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel=what, ylim=(0, 1.02))
    for label, shares in curves.items():
        axes.plot(range(1, len(shares) + 1), shares, label=label)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
