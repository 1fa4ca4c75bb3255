"""How the freezing threshold grows over training (section 2.3, step 6)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

# Share of the growth period that has passed, in (0, 1) -> growth. "fixing", "linear-growth" and "sine-growth" are the
# official code's; constant takes the schedule's own rate.
GROWTH: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "sine": lambda x: math.sin(math.pi / 2 * x),
    "cosine": lambda x: 1 - math.cos(math.pi / 2 * x),
    "step": lambda x: (math.floor(4 * x) + 1) / 4,
}
MODES = ("constant", *GROWTH)


@dataclass(frozen=True)
class Schedule:
    """The threshold of a weight's distance, as a share ρ of the gap between two levels.

    mode: one of MODES; sine starts steeply, cosine slowly, step climbs in quarters. steps_per_epoch: B, optimiser
    steps. warmup: E_w, epochs without freezing. epochs: E, all of them. rate: ρ of the mode constant.
    Errors: ValueError for no step in an epoch, a warm-up that leaves no epoch, and an unknown mode.
    """

    mode: str
    steps_per_epoch: int
    warmup: int
    epochs: int
    rate: float = 0.1

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"schedule {self.mode}: not one of {', '.join(MODES)}")
        if self.steps_per_epoch < 1:
            raise ValueError(f"an epoch of {self.steps_per_epoch} steps would freeze from the start; give at least 1")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"a warm-up of {self.warmup} epochs leaves none of {self.epochs} to freeze weights in")

    @property
    def start(self) -> int:
        """B·E_w; the first step that freezes is the next one."""
        return self.steps_per_epoch * self.warmup

    def threshold(self, step: int) -> float | None:
        """ρ at a step (the first is 0), or None while nothing freezes."""
        if step <= self.start:
            return None
        if self.mode == "constant":
            return self.rate
        return GROWTH[self.mode]((step - self.start) / (self.steps_per_epoch * self.epochs - self.start))
