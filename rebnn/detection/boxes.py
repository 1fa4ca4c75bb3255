"""Boxes as corners (x1, y1, x2, y2), width x2 - x1, and the code in which a network predicts them (section 3.3)."""

import math

import torch
from torch import Tensor

LIMIT = abs(math.log(16 / 1000))
"""largest |ln| of a predicted ratio of sizes"""


def centre_form(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes, [..., 2] each, of corners [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low


def encode(anchors: Tensor, boxes: Tensor, stds: Tensor) -> Tensor:
    """((g - a) / size of a, ln(size of g / size of a)) / stds, [N, 4], for corners [N, 4]; means are 0."""
    (at, size), (to, wanted) = centre_form(anchors), centre_form(boxes)
    return torch.cat([(to - at) / size, (wanted / size).log()], -1) / stds


def decode(anchors: Tensor, deltas: Tensor, stds: Tensor) -> Tensor:
    """The inverse of `encode` with |ln ratio| held below LIMIT; both broadcast: [..., 4] to corners [..., 4]."""
    at, size = centre_form(anchors)
    shift, ratio = (deltas * stds).split(2, -1)
    centre, half = at + shift * size, size * ratio.clamp(-LIMIT, LIMIT).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners moved into [0, W] x [0, H]; size: (H, W)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of corners [M, 4] and [N, 4], [M, N]; 0 where both are empty."""
    side = torch.min(a[:, None, 2:], b[None, :, 2:]) - torch.max(a[:, None, :2], b[None, :, :2])
    shared = side.clamp(min=0).prod(-1)
    areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)
    return shared / (areas - shared).clamp(min=torch.finfo(shared.dtype).tiny)


class Coder:
    """`encode` and `decode` under the interface of torchvision's detectors; stds are the four divisors."""

    def __init__(self, stds: tuple[float, float, float, float]):
        self.stds = stds

    def encode(self, reference_boxes: list[Tensor], proposals: list[Tensor]) -> list[Tensor]:
        """Codes of the boxes that belong to the proposals, image by image, [N, 4] each."""
        return [encode(of, to, of.new_tensor(self.stds)) for to, of in zip(reference_boxes, proposals)]

    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        """Codes [N, 4·K] of all images' proposals to corners [N, K, 4]; computed in fp32 or wider."""
        anchors = torch.cat(boxes)
        codes = rel_codes.to(anchors.dtype).view(len(anchors), -1, 4)
        return decode(anchors[:, None], codes, anchors.new_tensor(self.stds))
