"""What xnor_*.npz hold: binary convolution by packed words, XOR and popcount, in plain torch (section 10).

Bit j of word k is channel 32·k + j, 1 for a negative value (0 counts as +1); bits beyond the last channel are 0 in
both operands. A dot product of K signs with p differing bits is K - 2p.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rebnn.tests.oracle_method import CLOSE, EXACT, Archive

WORD = 32


def packed(values: Tensor) -> Tensor:
    """Signs along the last dimension [..., C] as words, int64 [..., ⌈C / 32⌉]."""
    bits = F.pad((values < 0).long(), (0, -values.shape[-1] % WORD)).unflatten(-1, (-1, WORD))
    return (bits << torch.arange(WORD)).sum(-1)


def popcount(words: Tensor) -> Tensor:
    """Set bits of each word of 32 bits, by halves (no bit loop)."""
    words = words - (words >> 1 & 0x55555555)
    words = (words & 0x33333333) + (words >> 2 & 0x33333333)
    words = words + (words >> 4) & 0x0F0F0F0F
    return (words * 0x01010101 >> 24) & 0xFF


def differing(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Differing bits of packed maps [N, H, W, words] and filters [O, k, k, words] at each place: [N, O, H', W'].

    Beyond the border all bits are 0: signs of +1.
    """
    k = weight.shape[1]
    x = F.pad(x, (0, 0, padding, padding, padding, padding))
    windows = x.unfold(1, k, stride).unfold(2, k, stride).permute(0, 1, 2, 4, 5, 3)  # [N, H', W', k, k, words]
    counts = popcount(windows[:, :, :, None] ^ weight).sum((-3, -2, -1))
    return counts.permute(0, 3, 1, 2)


def border_sums(weight: Tensor, size: tuple[int, int], stride: int, padding: int) -> Tensor:
    """Sums of the signs [O, C, k, k] of those taps that lie outside of a map [H, W], at each place: [O, H', W']."""
    outside = F.pad(torch.zeros(size, dtype=torch.float64), (padding,) * 4, value=1.0)
    taps = weight.sum(1, keepdim=True)  # [O, 1, k, k]
    return F.conv2d(outside[None, None], taps, stride=stride)[0]


def check_xnor(arrays: dict[str, np.ndarray]) -> None:
    """Packed operands, integer results for three kinds of border, the correction, and BatchNorm folded behind it."""
    arrays = {key: value.astype(np.int64) if value.dtype == np.uint32 else value for key, value in arrays.items()}
    file = Archive(arrays)
    stride, padding = int(file.number("hp_stride")), int(file.number("hp_padding"))
    shifted = file["in_x"] + file["param_move0"].view(1, -1, 1, 1)
    weight = file["param_weight"]
    x_words, w_words = packed(shifted.permute(0, 2, 3, 1)), packed(weight.permute(0, 2, 3, 1))
    file.require("out_packed_x", x_words, EXACT)
    file.require("out_packed_w", w_words, EXACT)

    p = differing(x_words, w_words, stride, padding)
    bits = weight[0].numel()
    file.require("out_popcount_xor_pad_pos", p.int(), EXACT)
    file.require("out_int_pad_pos", (bits - 2 * p).int(), EXACT)
    signs = torch.where(weight < 0, -1.0, 1.0).double()
    correction = border_sums(signs, tuple(shifted.shape[2:]), stride, padding).long()
    zero = bits - 2 * p - correction
    file.require("out_zero_pad_correction", correction.expand_as(p).int(), EXACT)
    file.require("out_int_pad_zero", zero.int(), EXACT)
    file.require("out_int_pad_neg", (zero - correction).int(), EXACT)

    root = (file["param_bn_var"] + file.number("hp_eps")).sqrt()
    multiplier = file["param_alpha"] * file["param_bn_weight"] / root
    bias = file["param_bn_bias"] - file["param_bn_mean"] * file["param_bn_weight"] / root
    file.require("out_fused_multiplier", multiplier, CLOSE)
    file.require("out_fused_bias", bias, CLOSE)
    file.require("out_popcount_multiplier", -2 * multiplier, CLOSE)
    file.require("out_popcount_bias", bias + bits * multiplier, CLOSE)
    file.require("out_y", multiplier.view(1, -1, 1, 1) * zero + bias.view(1, -1, 1, 1), CLOSE)
    file.finish()


CHECKS = {"xnor": check_xnor}
