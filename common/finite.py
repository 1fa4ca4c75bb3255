"""Finding the first value that is not finite, without waiting for the device at every step."""

from common.errors import NonFiniteError

import torch


class FiniteWatch:
    """For each name, the first step at which its value was NaN or infinite, kept on the value's device."""

    def __init__(self):
        self.first: dict[str, torch.Tensor] = {}

    def note(self, step: int, values: dict[str, torch.Tensor]) -> None:
        """Look at scalars; nothing is read back."""
        for name, value in values.items():
            when = torch.where(torch.isfinite(value.detach()), torch.inf, float(step))
            self.first[name] = torch.minimum(self.first[name], when) if name in self.first else when

    def require(self, where: str, consequence: str) -> None:
        """Read the notes. Errors: NonFiniteError naming step and values."""
        if not self.first:
            return
        steps = torch.stack(list(self.first.values())).tolist()
        step = min(steps)
        if step != float("inf"):
            names = ", ".join(name for name, when in zip(self.first, steps) if when == step)
            raise NonFiniteError(
                f"step {int(step)} of {where}: {names} not finite; {consequence}. "
                "A lower learning rate or fp32 are the usual remedies."
            )
