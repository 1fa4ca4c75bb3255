"""The measures of GLUE, each on a whole set (section 6); a measure without a value, such as 0/0, is 0."""

import torch
from torch import Tensor


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries; int64 [N]."""
    return float((predicted == labels).double().mean())


def f1(predicted: Tensor, labels: Tensor) -> float:
    """Harmonic mean of precision and recall of class 1; int64 [N]."""
    hits = ((predicted == 1) & (labels == 1)).sum()
    return _ratio(2 * hits.double(), ((predicted == 1).sum() + (labels == 1).sum()).double())


def matthews(predicted: Tensor, labels: Tensor) -> float:
    """Matthews' correlation of two classes 0 and 1; int64 [N]."""
    return pearson(predicted.double(), labels.double())


def pearson(predicted: Tensor, wanted: Tensor) -> float:
    """Correlation of two series, float [N]; 0 where one is constant."""
    a, b = (x.double() - x.double().mean() for x in (predicted, wanted))
    return _ratio((a * b).sum(), (a.square().sum() * b.square().sum()).sqrt())


def spearman(predicted: Tensor, wanted: Tensor) -> float:
    """Correlation of the ranks, equal values sharing their mean rank; float [N]."""
    return pearson(ranks(predicted), ranks(wanted))


def ranks(x: Tensor) -> Tensor:
    """The rank of each value from 0 on, the mean rank for equal ones; float64 [N]."""
    _, group, sizes = x.unique(return_inverse=True, return_counts=True)
    ends = sizes.cumsum(0)
    return (ends - (sizes + 1) / 2).double()[group]


def _ratio(above: Tensor, below: Tensor) -> float:
    return float(above / below) if float(below) > 0 else 0.0


MEASURES = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}


def measured(names: tuple[str, ...], logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The named measures in per cent, and `score`, by which best.pt is chosen.

    logits [N, C], labels [N]. score: the first measure, or the mean of two correlations.
    """
    predicted = logits.argmax(1) if labels.dtype == torch.int64 else logits[:, 0]
    found = {name: 100 * MEASURES[name](predicted, labels) for name in names}
    both = "spearman" in names
    return found | {"score": sum(found.values()) / len(found) if both else found[names[0]]}
