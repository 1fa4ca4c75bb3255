"""Contrastive representation distillation (Tian et al., 2020) that knows every sample by its global index.

Memories span all N training samples, so any subset of them may be visited: condensation needs no rebuilding.
"""

import math
from collections.abc import Callable

from common.errors import InputError
from common.randomness import bits, integers, uniform

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kcd.distillers.losses import full_precision, normalise

# Draws of their own, clear of those that augmentation takes for the same (seed, epoch, index).
MEMORY_SLOT, POSITIVE_SLOT, NEGATIVE_SLOT = 1 << 14, 1 << 15, 1 << 16
# Sampling holds a key for each (row, sample); rows are processed in chunks of at most this many keys (int64), so that
# the temporaries stay near 200 MB whatever the batch.
CHUNK_KEYS = 1 << 22


@full_precision
def crd_loss(
    student: Tensor,
    teacher: Tensor,
    memory_student: Tensor,
    memory_teacher: Tensor,
    sample_idx: Tensor,
    z: Tensor,
    temperature: float,
    share: Callable[[Tensor], Tensor] = lambda z: z,
) -> tuple[Tensor, Tensor]:
    """Noise-contrastive loss of both directions, and the normalisers used.

    student, teacher: unit embeddings [B, D]; memories: [N, D], no gradient; sample_idx: [B, 1 + K], the positive
    first; z: [2], 0 where not yet fixed, to be estimated as N * mean(exp) from this batch and passed through `share`.
    Returns a 0-dim loss and z [2]. Source: spec 2.6, CRD; NCE with P = exp / Z and noise 1 / N.
    """
    n_data, n_negatives = len(memory_student), sample_idx.shape[1] - 1
    # All N products and a gather cost less memory than copying (1 + K) rows of D numbers for each sample.
    logits = torch.stack(
        [
            (student @ memory_teacher.detach().T).gather(1, sample_idx),
            (teacher @ memory_student.detach().T).gather(1, sample_idx),
        ]
    )  # [2, B, 1 + K]
    logits = logits / temperature
    with torch.no_grad():
        z = torch.where(z > 0, z, share(logits.exp().mean((1, 2)) * n_data))
    noise = n_negatives / n_data
    # log(P / (P + c)) = -softplus(log c - log P) does not overflow at small temperatures.
    odds = logits - z.log().view(2, 1, 1) - math.log(noise + 1e-7)
    positive = F.softplus(-odds[:, :, 0]).sum()
    negative = (F.softplus(odds[:, :, 1:]) - math.log(noise / (noise + 1e-7))).sum()
    return (positive + negative) / len(student), z


def _gather_rows(x: Tensor, counts: list[int]) -> Tensor:
    """The rows of every rank, [sum of counts, ...], in rank order; ranks may differ in their number of rows."""
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


def _everybody(*tensors: Tensor) -> list[Tensor]:
    """The rows of all ranks of tensors with a common length; the tensors themselves in a single process."""
    if not dist.is_initialized():
        return list(tensors)
    mine = torch.tensor([len(tensors[0])], device=tensors[0].device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, mine)
    # The sizes of the buffers to receive have to be known on the host: one small copy a step, on several ranks only.
    sizes = torch.cat(counts).tolist()
    return [_gather_rows(tensor, sizes) for tensor in tensors]


def _mean_over_ranks(z: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(z)
        z = z / dist.get_world_size()
    return z


@torch.no_grad()
def update_memory(memory: Tensor, index: Tensor, embedding: Tensor, momentum: float) -> None:
    """memory[index] <- unit(momentum * memory[index] + (1 - momentum) * embedding), in place.

    memory: [N, D]; index: int64 [B]; embedding: [B, D]. Where an index occurs twice its first row counts, so that
    the outcome does not depend on the order of writes.
    """
    first = (index[:, None] == index).to(torch.uint8).argmax(1)
    moved = normalise(momentum * memory[index] + (1 - momentum) * embedding, 1)
    memory.index_copy_(0, index, moved[first])


def initial_memory(n_data: int, dim: int, seed: int, number: int) -> Tensor:
    """A memory [n_data, dim], uniform in +-1 / sqrt(dim / 3), so that rows have unit length in the mean square."""
    slot = MEMORY_SLOT + number * dim + torch.arange(dim)
    parts = torch.arange(n_data)[:, None].split(max(1, CHUNK_KEYS // dim))
    return torch.cat([2 * uniform(seed, 0, rows, slot) - 1 for rows in parts]) * (3 / dim) ** 0.5


class ContrastSampler(nn.Module):
    """Positives and negatives of each sample as a function of (seed, epoch, index).

    labels: int64 [N] in [0, n_classes). Negatives are distinct samples of other classes, drawn with repetition only
    for classes with fewer than `negatives` others. Raises InputError for labels that leave a class without others.
    """

    def __init__(self, labels: Tensor, n_classes: int, negatives: int, positives: str, seed: int):
        super().__init__()
        if positives not in ("exact", "relax"):
            raise InputError(f"positives={positives!r} is unknown to CRD; choose 'exact' or 'relax'")
        if negatives < 1:
            raise InputError(f"CRD needs at least one negative a sample but was given {negatives}; raise `negatives`")
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= n_classes:
            raise InputError(
                f"CRD needs a label in 0..{n_classes - 1} for each training sample but was given {len(labels)} labels"
                + (f" from {int(labels.min())} to {int(labels.max())}" if len(labels) else "")
                + "; check the labels and n_classes"
            )
        labels = labels.to(torch.int64)
        count = torch.bincount(labels, minlength=n_classes)
        others = len(labels) - count[count > 0]
        if others.min() == 0:
            raise InputError("CRD draws negatives from other classes but all samples have one class; give more classes")
        self.negatives, self.relax, self.seed, self.epoch = negatives, positives == "relax", seed, 0
        self.fewest_others, self.most_others = int(others.min()), int(others.max())
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", torch.argsort(labels, stable=True), persistent=False)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("start", count.cumsum(0) - count, persistent=False)

    def _repeated(self, index: Tensor, label: Tensor) -> Tensor:
        """[B, K] independent samples of other classes."""
        start, count = self.start[label][:, None], self.count[label][:, None]
        slot = NEGATIVE_SLOT + torch.arange(self.negatives, device=index.device)
        drawn = integers(self.seed, self.epoch, index[:, None], slot, len(self.labels) - count)
        return self.by_class[drawn + count * (drawn >= start)]

    def _distinct(self, index: Tensor, label: Tensor) -> Tensor:
        """[B, K] distinct samples: those with the highest random keys among the other classes."""
        position = torch.arange(len(self.labels), device=index.device)
        keys = bits(self.seed, self.epoch, index[:, None], NEGATIVE_SLOT + position)
        keys = (keys << 31) | position  # no ties, so every device chooses the same set
        keys.masked_fill_(self.labels == label[:, None], -1)
        return keys.topk(self.negatives, dim=1, sorted=False).indices

    def _negatives(self, index: Tensor) -> Tensor:
        label = self.labels[index]
        if self.most_others < self.negatives:
            return self._repeated(index, label)
        distinct = self._distinct(index, label)
        if self.fewest_others >= self.negatives:
            return distinct
        enough = len(self.labels) - self.count[label] >= self.negatives
        return torch.where(enough[:, None], distinct, self._repeated(index, label))

    def _positives(self, index: Tensor) -> Tensor:
        if not self.relax:
            return index
        label = self.labels[index]
        drawn = integers(self.seed, self.epoch, index, POSITIVE_SLOT, self.count[label])
        return self.by_class[self.start[label] + drawn]

    @torch.no_grad()
    def forward(self, index: Tensor) -> Tensor:
        """index: int64 [B] -> sample numbers int64 [B, 1 + K], the positive first."""
        rows = max(1, CHUNK_KEYS // max(len(self.labels), self.negatives))
        negatives = torch.cat([self._negatives(part) for part in index.split(rows)])
        return torch.cat([self._positives(index)[:, None], negatives], 1)


class Contrast(nn.Module):
    """The two memories [N, D] and the normalisers; loss of a batch of embeddings, then the memories' update."""

    def __init__(self, n_data: int, dim: int, temperature: float, momentum: float, seed: int):
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("memory_student", initial_memory(n_data, dim, seed, 0))
        self.register_buffer("memory_teacher", initial_memory(n_data, dim, seed, 1))
        self.register_buffer("z", torch.zeros(2))  # 0 until the first training batch fixes it

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, sample_idx: Tensor) -> Tensor:
        """student, teacher: unit embeddings [B, D]; index: int64 [B]; sample_idx: [B, 1 + K]. Returns a 0-dim loss.

        In train mode every rank's embeddings then enter the memories of every rank.
        """
        # Clones, because backward still needs the rows that the update below overwrites.
        memory_student, memory_teacher = self.memory_student.clone(), self.memory_teacher.clone()
        share = _mean_over_ranks if self.training else lambda z: z
        loss, z = crd_loss(
            student, teacher, memory_student, memory_teacher, sample_idx, self.z, self.temperature, share
        )
        if self.training:
            self.z.copy_(z)
            index, student, teacher = _everybody(index, student.detach().float(), teacher.detach().float())
            update_memory(self.memory_student, index, student, self.momentum)
            update_memory(self.memory_teacher, index, teacher, self.momentum)
        return loss
