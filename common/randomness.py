"""Stateless randomness: a draw depends on (seed, epoch, index, slot) alone, on every device.

One counter-based integer hash replaces generators, so a sample's augmentation does not depend on the number of
loader workers, the batch it falls in, or whether the run was interrupted.
"""

import random

import numpy as np
import torch

MASK = 0xFFFFFFFF
# Slots 0-63 belong to common/; projects number their own draws from 64.
ORDER_SLOT, ORDER_LOW_SLOT = 0, 1


def _mix(x):
    """A bijective 32-bit finaliser (the "lowbias32" constants of C. Wellons' hash prospector) in int64 or plain int."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def bits(seed: int, epoch: int, index: torch.Tensor | int, slot: torch.Tensor | int) -> torch.Tensor:
    """32 random bits for each (index, slot), which broadcast against each other; int64 in [0, 2^32).

    index, slot: integers or int64 tensors on any device. Products wrap identically on CPU and GPU because only
    their low 32 bits are used.
    """
    index = torch.as_tensor(index, dtype=torch.int64)
    slot = torch.as_tensor(slot, dtype=torch.int64, device=index.device)
    # What all draws share is mixed as plain integers: a handful of tensor operations less for each call.
    key = _mix(_mix((seed & MASK) + 0x9E3779B9 & MASK) ^ (seed >> 32 & MASK))
    key = _mix(key ^ (epoch & MASK))
    hashed = _mix(key ^ (index & MASK))
    hashed = _mix(hashed + (index >> 32) * 0x85EBCA6B & MASK)
    return _mix(hashed ^ _mix(slot * 0x9E3779B1 + 0x2545F491 & MASK))


def uniform(seed: int, epoch: int, index: torch.Tensor | int, slot: torch.Tensor | int) -> torch.Tensor:
    """Uniform float32 numbers in [0, 1) with 24 random bits, one for each (index, slot)."""
    return (bits(seed, epoch, index, slot) >> 8).to(torch.float32) * 2.0**-24


def integers(
    seed: int, epoch: int, index: torch.Tensor | int, slot: torch.Tensor | int, high: torch.Tensor | int
) -> torch.Tensor:
    """Uniform int64 numbers in [0, high), high < 2^31, by multiply-and-shift (bias below high / 2^32)."""
    return (bits(seed, epoch, index, slot) * high) >> 32


def permutation(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A random order of 0..n-1 as int64 [n]: the ranks of 63-bit keys, ties by index."""
    index = torch.arange(n, device=device)
    key = bits(seed, epoch, index, ORDER_SLOT) << 31 | bits(seed, epoch, index, ORDER_LOW_SLOT) >> 1
    return torch.argsort(key, stable=True)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch, which serve initialisation and dropout only."""
    random.seed(seed)
    np.random.seed(seed & MASK)  # noqa: NPY002 - the global state of libraries that still use it
    torch.manual_seed(seed)
