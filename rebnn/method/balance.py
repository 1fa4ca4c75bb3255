"""The balanced parameter γ and the weight oscillation that it is made from (sections 2.4, 2.5, 2.10).

Signs are compared and remembered as packed bits: eight weights of an output channel lie in a byte, the first in the
lowest bit; a channel starts with a new byte and is filled up with zeros.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebnn.method.binariser import (
    GAMMA_HIGH,
    BinaryWeight,
    block_rows,
    changed_proportion,
    largest,
    reconstruction_loss,
)

RULES = ("paper", "released", "released_intended", "constant", "max", "none")
GATHER = 0x0102040810204080  # moves the lowest bits of a word's eight bytes into its highest, the last in memory
QUANTILES = (0.5, 0.9, 0.99, 1.0)


def pack(bits: Tensor) -> Tensor:
    """bool [..., M] -> uint8 [..., ⌈M / 8⌉]: eight flags a byte, by one multiplication on eight bytes at once."""
    if bits.shape[-1] % 8:
        bits = F.pad(bits, (0, -bits.shape[-1] % 8))
    words = bits.contiguous().view(torch.int64)
    return (words * GATHER).view(torch.uint8)[..., 7::8].contiguous()


def unpack(packed: Tensor, m: int) -> Tensor:
    """The inverse of `pack`: uint8 [..., ⌈m / 8⌉] -> bool [..., m]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> shifts & 1).flatten(-2)[..., :m].bool()


def popcount(packed: Tensor) -> Tensor:
    """The number of set bits of each byte, uint8."""
    pairs = packed - (packed >> 1 & 0x55)
    nibbles = (pairs & 0x33) + (pairs >> 2 & 0x33)
    return nibbles + (nibbles >> 4) & 0x0F


def packed_signs(weight: Tensor, mean: Tensor | None = None) -> Tensor:
    """Which weights are negative and which exactly 0: uint8 [2, C_out, ⌈M / 8⌉]; mean: [C_out, 1], taken off first."""
    rows = block_rows(weight)
    blocks = weight.detach().split(rows)
    if mean is not None:
        blocks = (block - part for block, part in zip(blocks, mean.split(rows)))
    # Made flags before they are flattened: in channels last that copies bytes, not floats. On a CPU a conversion to
    # bool takes a seventh of the time of a comparison.
    flags = ((block.clamp(max=0).bool(), ~block.bool()) for block in blocks)
    return torch.cat([torch.stack([pack(flag.flatten(1)) for flag in pair]) for pair in flags], 1)


def flip_fraction(before: Tensor, after: Tensor) -> Tensor:
    """(1/M)‖b ⊙ b' - 1‖₀: the share of an output channel's signs that differ, [C_out] (equation 3.150).

    before, after: latent weights [C_out, …]. A weight that is exactly 0 on one side only counts as changed.
    """
    return _changed(packed_signs(before), packed_signs(after)).to(before.dtype) / before[0].numel()


def balanced_gamma(before: Tensor, after: Tensor, grad: Tensor) -> Tensor:
    """γ^{t+1} = (1/M)‖b^t ⊙ b^{t+1} - 1‖₀ · max_j|G^t|, [C_out], for w^t, w^{t+1} and G^t (equation 3.150)."""
    return flip_fraction(before, after) * largest(grad)


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """Changed signs of each channel, int64 [C_out], from packed signs [2, C_out, bytes]."""
    negative, zero = before ^ after
    return popcount(negative | zero).sum(1)


def by_channel(values: Tensor, weight: Tensor) -> Tensor:
    """[C_out] in the shape [C_out, 1, …] that broadcasts against the weight; a view."""
    return values.view(-1, *[1] * (weight.ndim - 1))


class Balance:
    """γ of every binary layer of a network, and how often its signs change.

    rule: `paper` (equation 3.150), `max` (without the fraction), `constant` (value), `none` (no reconstruction loss),
    `released` (what the official code executes, 2e-4) or `released_intended` (what it means). parts: micro-batches of
    a step, over which the reconstruction loss is spread. To be made once the network lies on its device; nothing is
    read back before `report`. Errors: ValueError for an unknown rule, a value that is negative or not finite, and a
    network without binary layers or, where the rule needs them, without learned scales.

    State: γ [all output channels]; for each layer the signs of the last iteration (2 bits a weight, since sign(0) = 0)
    and of the start of the epoch, and what flipped last (1 bit a weight); counts of an epoch. It is no part of the
    network's own state, whose entries are those of the official checkpoints.
    """

    def __init__(self, network: nn.Module, rule: str = "paper", value: float = 1e-4, parts: int = 1):
        if rule not in RULES:
            raise ValueError(f"gamma rule {rule!r} is not one of {', '.join(RULES)}")
        if not 0 <= value < float("inf"):
            raise ValueError(f"gamma {value} is not a finite number of at least 0")
        if rule == "released_intended" and parts > 1:
            raise ValueError("released_intended takes the largest gradient of a whole step: compute it in one part")
        self.layers = {name: m for name, m in network.named_modules() if isinstance(m, BinaryWeight)}
        if not self.layers:
            raise ValueError("the network has no binary layer; convert makes them")
        if rule != "none" and any(layer.scaling_factor is None for layer in self.layers.values()):
            raise ValueError(f"gamma rule {rule}: layers with ReActNet's scale have no reconstruction loss; use none")
        self.rule, self.parts = rule, parts
        weights = [layer.weight for layer in self.layers.values()]
        channels = sum(len(w) for w in weights)
        self.gamma = torch.zeros(channels, dtype=weights[0].dtype, device=weights[0].device)
        self.applied = torch.zeros_like(self.gamma)  # γ / parts; the layers look at this one
        self.counts = torch.zeros(2, channels, dtype=torch.int64, device=self.gamma.device)  # flips, sequential flips
        self.gamma_sum = torch.zeros(channels, dtype=torch.float64, device=self.gamma.device)
        self.iterations = self.pairs = 0  # of this epoch; pairs of successive iterations
        self.started = False  # whether an iteration lies behind
        self.signs = {name: packed_signs(layer.weight, layer.mean()) for name, layer in self.layers.items()}
        self.epoch_signs = {name: signs[0].clone() for name, signs in self.signs.items()}
        self.flipped = {name: torch.zeros_like(signs[0]) for name, signs in self.signs.items()}
        fixed = {"constant": value, "released": GAMMA_HIGH}.get(rule)
        if fixed is not None:
            self.gamma.fill_(fixed)
        elif rule == "released_intended":
            for layer, part in self.places():
                self.gamma[part] = changed_proportion(layer.latent().detach(), None)
        self._apply()
        for layer, part in self.places():
            layer.gamma = None if rule == "none" else by_channel(self.applied[part], layer.weight)
            layer.watched, layer.clip = rule in ("paper", "max"), rule == "released_intended"
            layer.gradient = None

    @torch.no_grad()
    def step(self, mean: Callable[[Tensor], Tensor] = lambda tensor: tensor, loss_scale: float = 1.0) -> None:
        """Compare the signs before and after an optimiser step and set γ of the next iteration; called after the step.

        mean: averages a tensor over processes in place, where each has its own part of the batch. loss_scale: what the
        loss was multiplied by. The gradients of the step must still be there.
        """
        for (name, layer), (_, part) in zip(self.layers.items(), self.places()):
            signs = packed_signs(layer.weight, layer.mean())
            flipped = signs[0] ^ self.signs[name][0]  # with 0 as +1 (section 2.10)
            self.counts[0, part] += popcount(flipped).sum(1)
            self.counts[1, part] += popcount(flipped & self.flipped[name]).sum(1)
            if layer.watched:
                largest_gradient = self._largest(layer, mean) / loss_scale
                self.gamma[part] = largest_gradient
                if self.rule == "paper":
                    self.gamma[part] *= _changed(self.signs[name], signs).to(self.gamma.dtype) / layer.weight[0].numel()
            elif self.rule == "released_intended":
                self.gamma[part] = changed_proportion(layer.latent(), layer.weight.grad)
            self.signs[name], self.flipped[name] = signs, flipped
        self.gamma_sum += self.gamma
        self.iterations += 1
        self.pairs += self.started
        self.started = True
        self._apply()

    def reconstruction(self) -> Tensor:
        """L_R of all layers with the present γ, a scalar (section 2.2)."""
        losses = [
            reconstruction_loss(layer.latent(), layer.alpha(), by_channel(self.gamma[part], layer.weight))
            for layer, part in self.places()
        ]
        return torch.stack(losses).sum()

    def smallest_scale(self) -> Tensor:
        """The smallest α of all channels, a scalar; a channel whose scale is 0 never learns again."""
        return torch.stack([layer.alpha().amin() for layer in self.layers.values()]).amin()

    def report(self) -> dict:
        """Ratios of the epoch that ends here (section 2.10), γ of its channels, and a fresh start for the next.

        flip_ratio, sequential_ratio, epoch_flip_ratio, gamma_mean: a list with one number a layer, in the order of
        `layers`; flip, sequential, epoch_flip: over all weights; *_channels: a list of lists. Reads the device.
        """
        sizes = [layer.weight[0].numel() for layer in self.layers.values()]
        parts = [part for _, part in self.places()]
        epoch = [popcount(self.signs[n][0] ^ self.epoch_signs[n]).sum(1) for n in self.layers]
        zeros = sum(int(popcount(self.signs[n][1]).sum()) for n in self.layers)
        rows = torch.cat([self.counts, torch.cat(epoch)[None]]).cpu()
        report = {"layers": list(self.layers), "exact_zeros": zeros}
        runs = {"flip": self.iterations, "sequential": self.pairs, "epoch_flip": 1}
        for (name, times), counts in zip(runs.items(), rows):
            by_channel = [counts[part] / (m * max(1, times)) for part, m in zip(parts, sizes)]
            weights = sum(len(c) * m for c, m in zip(by_channel, sizes))
            report[name] = sum(float(c.double().sum()) * m for c, m in zip(by_channel, sizes)) / weights
            report[f"{name}_ratio"] = [float(c.double().mean()) for c in by_channel]
            report[f"{name}_channels"] = [[float(f"{x:.4g}") for x in c.tolist()] for c in by_channel]
        gamma = (self.gamma_sum / max(1, self.iterations)).cpu()
        report["gamma_mean"] = [float(gamma[part].mean()) for part in parts]
        quantiles = torch.quantile(gamma, torch.tensor(QUANTILES, dtype=gamma.dtype))
        report |= {f"gamma_p{100 * q:g}": float(v) for q, v in zip(QUANTILES, quantiles)}
        self.counts.zero_()
        self.gamma_sum.zero_()
        self.iterations = self.pairs = 0
        self.epoch_signs = {name: signs[0].clone() for name, signs in self.signs.items()}
        return report

    def state_dict(self) -> dict:
        """Everything that a resumed run needs, as plain tensors and numbers."""
        names = ("gamma", "counts", "gamma_sum", "iterations", "pairs", "started", "signs", "epoch_signs", "flipped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`. Errors: ValueError when it belongs to another network."""
        own = {name: tuple(signs.shape) for name, signs in self.signs.items()}
        given = {name: tuple(signs.shape) for name, signs in state["signs"].items()}
        if own != given:
            raise ValueError("the state of the balanced parameter belongs to another network")
        to = lambda tensor: tensor.to(self.gamma.device)
        for name in ("gamma", "counts", "gamma_sum"):
            getattr(self, name).copy_(state[name])
        for name in ("signs", "epoch_signs", "flipped"):
            setattr(self, name, {layer: to(bits) for layer, bits in state[name].items()})
        self.iterations, self.pairs, self.started = state["iterations"], state["pairs"], state["started"]
        self._apply()

    def _apply(self) -> None:
        self.applied.copy_(self.gamma / self.parts)

    def places(self) -> list[tuple[BinaryWeight, slice]]:
        """Each layer with its place among all channels."""
        ends, parts = 0, []
        for layer in self.layers.values():
            parts.append((layer, slice(ends, ends + len(layer.weight))))
            ends += len(layer.weight)
        return parts

    def _largest(self, layer: BinaryWeight, mean: Callable[[Tensor], Tensor]) -> Tensor:
        """max_j|G| of a layer over the whole batch; 0 where it took no part in the step."""
        grad, layer.gradient = layer.gradient, None
        return largest(mean(torch.zeros_like(layer.weight) if grad is None else grad))
