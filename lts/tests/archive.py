"""Reading an oracle file so that nothing in it goes unchecked."""

import re

import numpy as np
import torch
from torch import Tensor


class Archive:
    """The arrays of one file, which notes those that were read: a check skipped is a check failed."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays, self.read = arrays, set()

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return torch.from_numpy(np.array(self.arrays[key]))

    def names(self, pattern: str) -> list[str]:
        """First groups of the keys that match, in the order of the file, each once."""
        return list(dict.fromkeys(m[1] for m in map(re.compile(pattern).fullmatch, self.arrays) if m))

    def number(self, key: str) -> float:
        """A hyper-parameter; decimal ones are stored as float32."""
        return round(self[key].item(), 6)

    def finish(self) -> None:
        unread = sorted(set(self.arrays) - self.read)
        assert not unread, f"arrays that no check reads: {unread}"


def assert_close(ours: Tensor, reference: Tensor, tolerance: float, what: str) -> None:
    """Largest absolute error over the largest absolute reference."""
    ours = ours.detach()
    assert ours.shape == reference.shape, f"{what}: shape {tuple(ours.shape)}, reference {tuple(reference.shape)}"
    error = ((ours - reference).abs().max() / reference.abs().max().clamp(min=1e-30)).item()
    assert error <= tolerance, f"{what}: relative error {error:.2e} exceeds {tolerance:.0e}"


def assert_equal(ours: Tensor, reference: Tensor, what: str) -> None:
    assert ours.shape == reference.shape, f"{what}: shape {tuple(ours.shape)}, reference {tuple(reference.shape)}"
    differing = int((ours != reference).sum())
    assert not differing, f"{what}: {differing} of {ours.numel()} differ"
