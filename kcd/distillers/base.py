"""The interface of all distillers, and the checks of features that several share."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import InputError

import torch
from torch import Tensor, nn

from kcd.distillers.adaptors import Shape

Shapes = Sequence[Shape]
Features = Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Options:
    """What some distillers need beyond the features' shapes."""

    n_data: int  # samples of the whole training set (CRD's memories)
    n_classes: int
    seed: int  # of CRD's memories and samples
    labels: Tensor | None = None  # int64 [n_data], CRD only
    hint_layer: int = 2  # feature that FitNets regress
    embed_dim: int = 128  # of the embeddings of CC and CRD
    negatives: int = 16384  # CRD's K
    temperature: float = 0.07  # CRD
    momentum: float = 0.5  # CRD
    positives: str = "exact"  # CRD: 'exact' is the sample itself, 'relax' any of its class


class Distiller(nn.Module):
    """The method loss between features f0 ... fk of a student and a teacher; this base adds none (plain KD).

    WEIGHTS: default (gamma, alpha, beta) of cross entropy, KD and the method loss, spec 2.6; None means not given by
    any source. preact: features f1 ... f(k-1) are to be taken before the ReLU. init_stage: trained by `init_loss`
    before the main loop. main_loss: contributes to the main loop.
    """

    WEIGHTS: tuple[float, float, float | None] = (0.1, 0.9, 0.0)
    preact = False
    init_stage = False
    main_loss = False

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__()

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        """The unweighted losses of the single layers; the teacher's features carry no gradient."""
        return []

    def forward(self, student: Features, teacher: Features, index: Tensor) -> Tensor:
        """student, teacher: lists [f0 ... fk] of [B, ...]; index: int64 [B], global sample numbers. 0-dim sum."""
        start = torch.zeros((), device=student[-1].device)
        return sum(self.layer_losses(student, [t.detach() for t in teacher], index), start)

    def main_modules(self) -> list[nn.Module]:
        """Modules that the main loop trains beside the student."""
        return []

    def frozen_modules(self) -> list[nn.Module]:
        """Modules that the main loop must not train."""
        return []

    def init_modules(self, student: nn.Module) -> list[nn.Module]:
        """Modules that the init stage trains; own ones leave the frozen state until the next call of `train`."""
        return [module.requires_grad_(True).train() for module in self.frozen_modules()]

    def train(self, mode: bool = True) -> "Distiller":
        """The main loop's mode: frozen modules stay in eval mode and without gradient whatever is asked."""
        super().train(mode)
        for module in self.frozen_modules():
            module.requires_grad_(False).eval()
        return self

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch to methods that draw samples; a no-op for the others."""


def need_maps(name: str, student: Shapes, teacher: Shapes, layers: slice) -> tuple[Shapes, Shapes]:
    """The shapes of the layers that are compared; InputError unless they are equally many maps, at least one."""
    student, teacher = student[layers], teacher[layers]
    if len(student) != len(teacher) or not student:
        raise InputError(
            f"{name} pairs the layers of both networks but {len(student)} maps of the student stand against "
            f"{len(teacher)} of the teacher; choose networks with equally many stages"
        )
    for shape in (*student, *teacher):
        if len(shape) != 3:
            raise InputError(
                f"{name} compares (C, H, W) maps but a feature has shape {tuple(shape)}; choose other networks"
            )
    return student, teacher


def need_equal_channels(name: str, student: Shapes, teacher: Shapes) -> None:
    for i, (s, t) in enumerate(zip(student, teacher)):
        if s[0] != t[0]:
            raise InputError(
                f"{name} needs equal channels in both networks but map {i} of those it compares has {s[0]} in the "
                f"student and {t[0]} in the teacher; choose another pair of networks or another distiller"
            )
