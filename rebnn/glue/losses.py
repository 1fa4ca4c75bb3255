"""What the binary BERT is taught with (section 4): the teacher's answers, hidden states and relations."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

MASKED = -100
"""entries of a score matrix up to here belong to padding and count as 0 in direction matching"""


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """-mean softmax(z_T)·log softmax(z_S), the mean over batch and classes; logits [B, C] -> a scalar."""
    return -(F.softmax(teacher, 1) * F.log_softmax(student, 1)).mean()


def direction_matching(student: Tensor, teacher: Tensor) -> Tensor:
    """‖S/‖S‖ - T/‖T‖‖₂ over the whole tensor, a scalar: only directions are compared."""
    return (F.normalize(student.flatten(), dim=0) - F.normalize(teacher.flatten(), dim=0)).norm()


def similarity(x: Tensor) -> Tensor:
    """X·Xᵀ/√d of queries, keys or values [B, heads, L, d], with entries up to -100 set to 0; [B, heads, L, L]."""
    scores = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5
    return scores.masked_fill(scores <= MASKED, 0)


def relation_loss(student: Sequence[Sequence[Tensor]], teacher: Sequence[Sequence[Tensor]]) -> Tensor:
    """Direction matching of QQᵀ, KKᵀ and VVᵀ, summed over layers; each layer's Q, K, V are [B, heads, L, d]. BiBERT."""
    pairs = ((s, t) for ours, theirs in zip(student, teacher) for s, t in zip(ours, theirs))
    return sum(direction_matching(similarity(s.float()), similarity(t.float())) for s, t in pairs)


def hidden_direction(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Direction matching of the hidden states [B, L, D], summed over embeddings and layers. BiBERT."""
    return sum(direction_matching(s.float(), t.float()) for s, t in zip(student, teacher))


def hidden_mse(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the hidden states [B, L, D], summed over embeddings and layers. BiT."""
    return sum(F.mse_loss(s.float(), t.float()) for s, t in zip(student, teacher))
