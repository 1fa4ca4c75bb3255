"""The lottery ticket scratcher (section 2.3): which weights are frozen, when, and what becomes of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor, nn

from lts.method.layers import scratchable_layers
from lts.method.quantisers import levels
from lts.method.schedule import Schedule


class Ticket:
    """What is remembered of one weight tensor: 1 float and 1 byte a weight.

    distance: running mean of the distance to the nearest level (D); distances are never negative, so the sign bit says
    frozen. level: the last level (P), uint8. frozen_step: the step at which each weight froze (F), int32, 0 for not
    yet; only where asked for. A frozen weight's value (S) is that of the parameter itself, which the scratcher holds.
    """

    def __init__(self, weight: Tensor, bounds_gradient: bool, record_steps: bool):
        self.bounds_gradient = bounds_gradient
        self.live = False  # whether anything can be frozen by now
        self.distance = torch.zeros_like(weight)
        self.level = torch.zeros_like(weight, dtype=torch.uint8)
        self.frozen_step = torch.zeros_like(weight, dtype=torch.int32) if record_steps else None

    def frozen(self) -> Tensor | None:
        """bool [like weight], or None before anything can be frozen."""
        return self.distance.signbit() if self.live else None

    def follow(self, position: Tensor, n: int, ema: float, fresh: bool, keep_frozen: bool) -> None:
        """Steps 3 to 5 of section 2.3: transitions, distance, level.

        position: of the weights, [like weight], before clipping. fresh: take this distance as it is. keep_frozen: the
        levels of frozen weights stay.
        """
        level = levels(position, n)
        off = position.sub_(level / n).abs_()
        level = level.to(torch.uint8)
        if not fresh:
            moved = level != self.level
            off = self.distance.abs().mul_(ema).add_(off.mul_(1 - ema)).masked_fill_(moved, 1 / n)
        self.level = torch.where(self.distance.signbit(), self.level, level) if keep_frozen else level
        self.distance = torch.copysign(off, self.distance)

    def freeze(self, ready: Tensor, step: int) -> None:
        """Step 6: what is ready freezes, for good."""
        if self.frozen_step is not None:
            self.frozen_step.masked_fill_(ready & ~self.distance.signbit(), step)
        self.distance = torch.where(ready, -self.distance.abs(), self.distance)
        self.live = True


class Scratcher:
    """Watches the levels of all quantised weights of a model and freezes those that have settled.

    One training step: forward, backward, `observe`, and the optimiser's step inside `with scratcher.held()`.

    ema: β, weight of the past in the running distance. bounds_gradient: whether frozen weights still pass a gradient to
    the quantiser's bounds, as in the official code; without it, wholly frozen output rows are left out of the weight
    gradient (`find_rows`). frozen: "latent" keeps a frozen weight's value, whose level may still move with the bounds,
    "level" keeps its level (and passes no gradient to the bounds). clean_start: take the first distances and levels as
    they are, where the official code compares the first levels with 0 and overwrites the distances of the second step.
    record_steps: keep the step at which each weight froze. counts: int [steps, layers], numbers frozen after each step,
    and random: (layer's number, weights) -> a random number for each; together the control that freezes as many at the
    same times, but at random.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        ema: float = 0.99,
        bounds_gradient: bool = True,
        frozen: str = "latent",
        clean_start: bool = False,
        record_steps: bool = False,
        counts: Tensor | None = None,
        random: Callable[[int, int], Tensor] | None = None,
    ):
        if frozen not in ("latent", "level"):
            raise ValueError(f"frozen {frozen}: not one of latent, level")
        self.layers, self.schedule, self.ema = scratchable_layers(model), schedule, ema
        self.to_level, self.clean_start, self.step = frozen == "level", clean_start, -1
        self.dense = bounds_gradient and not self.to_level
        for layer in self.layers.values():
            layer.ticket = Ticket(layer.weight.detach(), self.dense, record_steps)
        self.counts = counts
        if counts is not None:
            self._draw(counts, random)

    def _draw(self, counts: Tensor, random: Callable[[int, int], Tensor]) -> None:
        """A random order of every layer's weights for the control. Errors: ValueError for counts of another run."""
        steps = self.schedule.steps_per_epoch * self.schedule.epochs
        if counts.shape != (steps, len(self.layers)):
            expected = [steps, len(self.layers)]
            raise ValueError(f"counts of shape {[*counts.shape]} do not belong to [steps, layers] {expected}")
        self.ranks = []
        for number, layer in enumerate(self.layers.values()):
            order = random(number, layer.weight.numel()).to(layer.weight.device).argsort()
            self.ranks.append(order.argsort().view_as(layer.weight))

    @torch.no_grad()
    def observe(self) -> None:
        """Take notice of the weights that the last forward used; what freezes now keeps the value it had there.

        Called after backward, which still belongs to the old set of frozen weights, and before the optimiser's step.
        """
        fresh = self.step == (-1 if self.clean_start else 0)
        self.step += 1
        rate = self.schedule.threshold(self.step)
        for number, layer in enumerate(self.layers.values()):
            quantiser, ticket = layer.weight_quantiser, layer.ticket
            ticket.follow(quantiser.normalise(layer.weight), quantiser.n, self.ema, fresh, self.to_level)
            if rate is not None and self.counts is None:
                ticket.freeze(ticket.distance.abs() <= rate / quantiser.n, self.step)
            elif rate is not None:
                ticket.freeze(self.ranks[number] < self.counts[self.step, number], self.step)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around the optimiser's step: momentum and weight decay leave frozen weights where they are."""
        layers = [layer for layer in self.layers.values() if layer.ticket.live]
        before = [layer.weight.detach().clone() for layer in layers]
        yield
        with torch.no_grad():
            for layer, kept in zip(layers, before):
                if self.to_level:
                    quantiser = layer.weight_quantiser
                    kept = quantiser.restore(layer.ticket.level.to(kept.dtype) / quantiser.n, kept)
                layer.weight.copy_(torch.where(layer.ticket.distance.signbit(), kept, layer.weight))

    def frozen_counts(self) -> Tensor:
        """How many weights of each layer are frozen, int64 [layers] on their device."""
        return torch.stack([layer.ticket.distance.signbit().sum() for layer in self.layers.values()])

    def find_rows(self) -> None:
        """Let wholly frozen output rows out of the weight gradient from now on; waits for the device.

        Without effect while frozen weights teach the bounds: the bounds' gradient is a sum over the weight gradient.
        """
        for layer in self.layers.values():
            frozen = None if self.dense else layer.ticket.frozen()
            if frozen is not None:
                rows = (~frozen.flatten(1).all(1)).nonzero()[:, 0]
                layer.rows = rows if len(rows) < len(frozen) else None

    def state_dict(self) -> dict:
        """All that a resumed run needs; the frozen values are the model's weights."""
        return {
            "step": self.step,
            "schedule": asdict(self.schedule),
            "bits": {name: layer.weight_bits for name, layer in self.layers.items()},
            "tickets": {
                name: {
                    "distance": layer.ticket.distance,
                    "level": layer.ticket.level,
                    "frozen_step": layer.ticket.frozen_step,
                    "rows": layer.rows,
                }
                for name, layer in self.layers.items()
            },
        }

    def load_state_dict(self, state: dict, legacy_resume: bool = False) -> None:
        """Undo `state_dict`. legacy_resume: count steps from the start again, as the official code does on resuming.

        Errors: ValueError for the state of another schedule, other bits or other layers.
        """
        own = self.state_dict()
        for what in ("schedule", "bits"):
            if state[what] != own[what]:
                different = [k for k in {**state[what], **own[what]} if state[what].get(k) != own[what].get(k)]
                key = different[0]
                raise ValueError(f"the state's {what} differs: {key} {state[what].get(key)} -> {own[what].get(key)}")
        self.step = -1 if legacy_resume else state["step"]
        for name, layer in self.layers.items():
            given, ticket, device = state["tickets"][name], layer.ticket, layer.weight.device
            ticket.distance, ticket.level = given["distance"].to(device), given["level"].to(device)
            if ticket.frozen_step is not None and given["frozen_step"] is not None:
                ticket.frozen_step = given["frozen_step"].to(device)
            layer.rows = None if given["rows"] is None else given["rows"].to(device)
            ticket.live = state["step"] > self.schedule.start
