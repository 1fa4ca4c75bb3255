"""Labels of a mixed image and of its two regions, and the three losses (sections 2.5 and 2.6)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_labels(labels: Tensor, classes: int, smoothing: float = 0.1) -> Tensor:
    """One-hot labels float32 [B, K] that keep 1 - ε + ε/K for the class and give ε/K to the others.

    Errors: ValueError for a label outside 0 ... K-1, on the CPU at once, elsewhere as the device's own assertion.
    """
    if labels.device.type == "cpu" and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels lie between {int(labels.min())} and {int(labels.max())}, not in 0..{classes - 1}")
    off = smoothing / classes
    target = torch.full((len(labels), classes), off, device=labels.device)
    return target.scatter_(1, labels[:, None], 1 - smoothing + off)


def mix_labels(target: Tensor, own: Tensor) -> Tensor:
    """own·y + (1 - own)·flip(y): [B, K] labels or logits of a batch with those of their partners, own [] or [B]."""
    own = own.view(-1, 1) if own.ndim else own
    return own * target + (1 - own) * target.flip(0)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over the batch of -Σ target·log softmax(logits), both [B, K], in float32."""
    return -(target * logits.float().log_softmax(1)).sum(1).mean()


def consistency(logits: Tensor, reference: Tensor, own: Tensor, mix_probabilities: bool = False) -> Tensor:
    """KL(softmax(m) ‖ softmax(logits)) in float32, m = own·u + (1 - own)·flip(u) of the un-mixed logits u [B, K].

    Summed over classes, mean over the batch; no gradient reaches u. mix_probabilities: mix softmax(u) instead of u.
    """
    reference = reference.detach().float()
    if mix_probabilities:
        log_expected = mix_labels(reference.softmax(1), own).log()
    else:
        log_expected = mix_labels(reference, own).log_softmax(1)
    return F.kl_div(logits.float().log_softmax(1), log_expected, reduction="batchmean", log_target=True)


def pool_regions(tokens: Tensor, source: Tensor) -> Tensor:
    """The mean token of what stays of the target and of the pasted source: [2B, D], targets first.

    tokens: [B, N, D]; source: bool [B, N]. One head call on the result gives both regions' logits.
    """
    masks = torch.stack([~source, source], 1).to(tokens.dtype)  # [B, 2, N]
    means = (masks / masks.sum(2, keepdim=True)) @ tokens
    return means.transpose(0, 1).flatten(0, 1)
