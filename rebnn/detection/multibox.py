"""The loss of SSD as BiDet computes it: each prior's box, and the hardest negatives (section 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rebnn.detection.boxes import decode, encode, overlap

STDS = (0.1, 0.1, 0.2, 0.2)
"""the variances: centres in tenths, logarithms of sizes in fifths of a prior"""
NEGATIVES = 3
"""negatives for each positive of an image"""


def corners(priors: Tensor) -> Tensor:
    """(cx, cy, w, h) to corners, [P, 4]."""
    return torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)


def match_priors(priors: Tensor, boxes: Tensor, labels: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """The code of each prior's best box [P, 4], and its class + 1 or 0 for background [P].

    priors: (cx, cy, w, h) [P, 4]; boxes: corners [G, 4], both relative; labels [G]. A prior that overlaps no box by
    the threshold is background, but for each box's best prior; of several boxes that have the same, the last gets it.
    """
    if not len(boxes):
        return torch.zeros_like(priors), labels.new_zeros(len(priors))
    places = corners(priors)
    overlaps = overlap(boxes, places)
    most, box = overlaps.max(0)
    best = overlaps.argmax(1)
    forced = torch.full_like(box, -1)
    forced = forced.scatter_reduce(0, best, torch.arange(len(boxes), device=boxes.device), "amax")
    box = torch.where(forced >= 0, forced, box)
    kept = (most >= threshold) | (forced >= 0)
    return encode(places, boxes[box], priors.new_tensor(STDS)), torch.where(kept, labels[box] + 1, 0)


def multibox_loss(codes: Tensor, logits: Tensor, wanted: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth L1 of the positives and cross entropy of positives and hardest negatives, both over all positives.

    codes, wanted: [B, P, 4]; logits: [B, P, C + 1]; classes: int64 [B, P], 0 = background. An image takes three times
    as many negatives as it has positives, at most P - 1.
    """
    positive = classes > 0
    count = positive.sum().clamp(min=1)
    loss_codes = F.smooth_l1_loss(codes[positive], wanted[positive], reduction="sum")
    entropy = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    order = entropy.detach().masked_fill(positive, 0).argsort(dim=1, descending=True, stable=True)
    number = (NEGATIVES * positive.sum(1, keepdim=True)).clamp(max=classes.shape[1] - 1)
    hardest = torch.arange(classes.shape[1], device=classes.device) < number
    negative = torch.zeros_like(positive).scatter_(1, order, hardest)
    # A positive among the hardest counts once.
    return loss_codes / count, (entropy * (positive | negative)).sum() / count


def decode_priors(priors: Tensor, codes: Tensor) -> Tensor:
    """Codes [..., P, 4] to relative corners [..., P, 4]."""
    return decode(corners(priors), codes, priors.new_tensor(STDS))
