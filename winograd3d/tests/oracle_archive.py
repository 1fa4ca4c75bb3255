"""The arrays of an oracle file as float64 tensors, with a note of what has been looked at."""

import numpy as np
import torch
from torch import Tensor


class Archive:
    """Arrays by key; `finish` fails where the file holds something that no check has read."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays, self.read = arrays, set()

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        tensor = torch.from_numpy(np.asarray(self.arrays[key]))
        return tensor.double() if tensor.is_floating_point() else tensor

    def ints(self, key: str) -> tuple[int, ...]:
        return tuple(self[key].int().tolist())

    def number(self, key: str) -> float:
        """A scalar hyper-parameter, stored as float32, as the decimal number it was."""
        return round(float(self[key]), 7)

    def cases(self, suffix: str = "_tile") -> list[str]:
        """The letters x of the keys hp_x_tile."""
        found = [key[3 : -len(suffix)] for key in self.arrays if key.startswith("hp_") and key.endswith(suffix)]
        assert found, "the file holds no case"
        return found

    def finish(self) -> None:
        unread = self.arrays.keys() - self.read
        assert not unread, f"not checked: {sorted(unread)}"


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """max|difference| / max|expected| within tolerance, shapes equal."""
    assert actual.shape == expected.shape, f"{what}: {[*actual.shape]} for {[*expected.shape]}"
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"{what}: off by {error:.2e}, allowed {tolerance:.0e}"


def single(tile: tuple[int, ...]) -> float:
    """Tolerance of a float32 computation: larger tiles amplify rounding."""
    return 1e-5 if max(tile) <= 2 else 1e-4
