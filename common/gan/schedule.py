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


class Epoch(NamedTuple):
    """One pass over the training set: who is trained, the kind's own number (from 1), rate factor, whether judged."""

    kind: str
    number: int
    factor: float
    judged: bool


def plan(model: str, optim, interval: int, part: str = "all") -> list[Epoch]:
    """All epochs of a run in their order.

    model: cyclegan (blocks of teacher epochs, then student epochs) or pix2pix (teacher and student in each epoch, kind
    `both`). optim: `common.gan.settings.Optim`. interval: epochs between evaluations, and the length of a block. part:
    `all`, or only the epochs of `teacher` or of `student`.
    """
    total = optim.epochs + optim.decay_epochs

    def factor(epoch: int) -> float:
        if optim.policy == "step":
            return step_factor(epoch - 1, optim.step_epochs)
        return linear_factor(epoch - 1, optim.epochs, optim.decay_epochs)

    ends = lambda number, last: number % interval == 0 or number == last
    if model == "pix2pix":
        kind = "both" if part == "all" else part
        return [Epoch(kind, e, factor(e), ends(e, total)) for e in range(1, total + 1)]
    teachers = {e: Epoch("teacher", e, factor(e), ends(e, total)) for e in range(1, total + 1)}
    epochs, before, students = [], 0, 0
    for block in blocks(optim.epochs, optim.decay_epochs, interval, optim.student_share):
        epochs += [teachers[e] for e in range(before + 1, block.teacher_epoch + 1)]
        rate = block.factor if optim.policy == "linear" else factor(block.teacher_epoch)
        for number in range(1, block.student_epochs + 1):
            students += 1
            epochs.append(Epoch("student", students, rate, ends(number, block.student_epochs)))
        before = block.teacher_epoch
    return [epoch for epoch in epochs if part in ("all", epoch.kind)]
