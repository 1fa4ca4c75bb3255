"""The loss on the teacher's answers, the schedule and the parameter groups (sections 2.9 and 4)."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn


def distribution_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-(1/N) Σ_n Σ_c softmax(z_T) · log softmax(z_S), temperature 1; logits [N, C] -> a scalar in fp32 or wider."""
    student, teacher = _wide(student), _wide(teacher)
    return -(F.softmax(teacher, 1) * F.log_softmax(student, 1)).sum(1).mean()


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(T‖S), batch mean: `distribution_loss` less the teacher's own entropy, 0 where both agree."""
    student, teacher = _wide(student), _wide(teacher)
    return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)


def label_smoothing_loss(logits: Tensor, labels: Tensor, epsilon: float = 0.1) -> Tensor:
    """Cross entropy with (1 - ε) one-hot + ε/C; built and unused in the release. logits [N, C], labels [N]."""
    return F.cross_entropy(_wide(logits), labels, label_smoothing=epsilon)


def learning_rate(base: float, epoch: int, epochs: int) -> float:
    """lr(e) = base·(1 - e/E), e = 0 … E-1: the last epoch runs at base/E."""
    return base * (1 - epoch / epochs)


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], decay_norm_bias: bool = True
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Parameters with weight decay (4-D, or with "conv" in the name) and the rest, both by name (section 4).

    The learned biases of RSign and RPReLU are 4-D and thus decayed, as in the release; decay_norm_bias False spares
    them.
    """
    decayed, rest = {}, {}
    for name, parameter in named:
        chosen = parameter.ndim == 4 or "conv" in name
        if name.endswith("bias") and not decay_norm_bias:
            chosen = False
        (decayed if chosen else rest)[name] = parameter
    return decayed, rest


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype.itemsize >= 4 else logits.float()
