"""Learning rate factors, and when which network is trained."""

from collections.abc import Iterator
from typing import NamedTuple


def linear_factor(epoch: int, constant: int, decay: int) -> float:
    """1 for `constant` epochs, then a line that would reach 0 after `decay` + 1; epochs count from 0.

    1 - max(0, e + 1 - n0) / (n1 + 1): the first reduced epoch is n0, the last one runs at 1 / (n1 + 1).
    """
    return 1 - max(0, epoch + 1 - constant) / (decay + 1)


def step_factor(epoch: int, interval: int = 50, factor: float = 0.1) -> float:
    """factor^(e // interval)."""
    return factor ** (epoch // interval)


class Block(NamedTuple):
    """Teacher epochs up to `teacher_epoch` (from 1), then so many student epochs at this learning rate factor."""

    teacher_epoch: int
    student_epochs: int
    factor: float


def blocks(constant: int, decay: int, interval: int, student_share: int) -> Iterator[Block]:
    """CycleGAN with an online teacher: after every `interval` teacher epochs the student trains for `student_share` as
    many; the last block may have fewer teacher epochs, yet has as many student epochs as the others.

    The rate is stepped after a block, so the student's is that of the block's last teacher epoch.
    """
    epochs = constant + decay
    for epoch in range(1, epochs + 1):
        if epoch % interval == 0 or epoch == epochs:
            yield Block(epoch, student_share * interval, 1 - max(0, epoch - constant) / (decay + 1))
