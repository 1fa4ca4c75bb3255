"""Teacher, student and distiller: what a pair is built of, and what one step of it computes (section 2.6)."""

from collections.abc import Callable
from pathlib import Path

from common import checkpoint
from common.errors import InputError
from common.fold import fold_batchnorm
from common.run import Run

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kcd import distillers, models
from kcd.config import Config


def build(config: Config, classes: int = 100) -> tuple[nn.Module, nn.Module]:
    """Student and teacher networks. Errors: InputError for an unknown network or a width it does not have."""
    distillers.find(config.distill.method)
    student = models.build(config.student.name, classes, config.student.width)
    return student, models.build(config.teacher.name, classes, config.teacher.width)


def build_pair(run: Run, config: Config, train) -> tuple[nn.Module, Callable, nn.Module]:
    """Student, frozen teacher (BatchNorm folded, no gradient) and distiller, on the device."""
    student, teacher = build(config, len(train.classes))
    path = Path(config.teacher.checkpoint or run.folder.parent / "teacher" / "last.pt")
    if not path.exists():
        raise InputError(f"{path}: there is no teacher; run stage teacher first, or give --teacher.checkpoint")
    models.load_weights(teacher, path)
    run.require_same("teacher", checkpoint.file_sha256(path))
    images, _ = train.fetch(torch.arange(2, device=train.labels.device), 1)
    shapes = [feature_shapes(network, images.cpu()) for network in (student, teacher)]
    distiller = distillers.build(
        config.distill.method,
        *shapes,
        n_data=len(train),
        n_classes=len(train.classes),
        seed=config.seed,
        labels=train.labels,
        negatives=config.distill.crd_negatives,
        temperature=config.distill.crd_temperature,
        momentum=config.distill.crd_momentum,
        positives=config.distill.crd_positives,
    )
    asked = distiller.main_loss or run.stage == "init"
    folded = fold_batchnorm(Answer(teacher.requires_grad_(False), asked, distiller.preact))
    folded = folded.to(run.device, memory_format=torch.channels_last)
    student = student.to(run.device, memory_format=torch.channels_last)

    @torch.no_grad()
    def ask(images: Tensor) -> tuple[list[Tensor], Tensor]:
        return folded(images)

    return student, ask, distiller.to(run.device)


@torch.no_grad()
def feature_shapes(network: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """Shapes of f0 … fk for one sample."""
    features, _ = network.eval()(images, is_feat=True)
    return [tuple(feature.shape[1:]) for feature in features]


class StudentStep(nn.Module):
    """γ·CE + α·KD + β·method of a batch, each term by name (section 2.6), and the student's logits."""

    def __init__(self, student: nn.Module, distiller: nn.Module, config: Config):
        super().__init__()
        self.student, self.distiller, self.temperature = student, distiller, config.distill.temperature
        wanted = config.distill.gamma, config.distill.alpha, config.distill.beta
        self.gamma, self.alpha, self.beta = distillers.loss_weights(config.distill.method, *wanted)

    def forward(self, images, labels, index, teacher_features, teacher_logits) -> tuple[dict[str, Tensor], Tensor]:
        if self.distiller.main_loss:
            features, logits = self.student(images, is_feat=True, preact=self.distiller.preact)
        else:
            logits = self.student(images)  # no feature map outlives the forward
        losses = {"ce": self.gamma * F.cross_entropy(logits.float(), labels)}
        if self.alpha:
            losses["kd"] = self.alpha * distillers.kd(logits, teacher_logits, self.temperature)
        if self.distiller.main_loss:
            losses["method"] = self.beta * self.distiller(features, teacher_features, index)
        return losses, logits


class InitStep(nn.Module):
    """The loss of an initialisation stage; only the modules that it trains are in training mode."""

    def __init__(self, student: nn.Module, distiller: nn.Module):
        super().__init__()
        self.student, self.distiller = student, distiller
        self.requires_grad_(False)
        self.trained = distiller.init_modules(student)
        for module in self.trained:
            module.requires_grad_(True)

    def train(self, mode: bool = True) -> "InitStep":
        super().train(False)
        for module in self.trained:
            module.requires_grad_(True).train(mode)
        return self

    def forward(self, images: Tensor, teacher_features: list[Tensor]) -> Tensor:
        features, _ = self.student(images, is_feat=True, preact=self.distiller.preact)
        return self.distiller.init_loss(features, teacher_features)


class Answer(nn.Module):
    """The teacher as the loop asks it: features where the method needs them, and logits."""

    def __init__(self, network: nn.Module, features: bool, preact: bool):
        super().__init__()
        self.network, self.features, self.preact = network, features, preact

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.network(images, is_feat=True, preact=self.preact) if self.features else ([], self.network(images))
