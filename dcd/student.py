"""The student's step: everything it learns from the teacher's image, features and discriminator."""

import contextlib
from collections.abc import Sequence

from common.gan.objectives import frozen, full, generator_loss
from common.gan.perceptual import feature_loss, style_loss
from common.gan.steps import Autocast, Check, Sums, adam, descend

import torch
from torch import Tensor, nn

from dcd.config import Config
from dcd.method import DiscriminatorDistillation, student_loss, tapped
from dcd.models import compared_layers
from dcd.omgd import PooledDistillation, structural_similarity, total_variation

Answer = tuple[Tensor, list[Tensor]]
"""a teacher's image [B, 3, H, W] and its compared feature maps"""


def loss_weights(config: Config) -> dict[str, float]:
    """The weight of each term of L_S."""
    style, feature = config.perceptual.style, config.perceptual.feature
    if config.distill.perceptual_weights == "as_script":
        style, feature = feature, style
    gan = 0.0 if config.distill.student_gan == "none" else config.distill.student_gan_weight
    weights = {"style": style, "feature": feature, "gan": gan, "dcd": config.distill.lambda_cd}
    return weights | {"ssim": config.distill.ssim, "tv": config.distill.tv}


class Student:
    """The compressed generator and its connectors under one Adam.

    vgg: features of the perceptual losses, frozen. The discriminator is the teacher's and is never changed here.
    """

    def __init__(
        self,
        config: Config,
        network: nn.Module,
        distiller: DiscriminatorDistillation | PooledDistillation,
        vgg: nn.Module,
        autocast: Autocast = contextlib.nullcontext,
    ):
        self.config, self.network, self.distiller, self.vgg = config, network, distiller, vgg
        self.autocast, self.weights = autocast, loss_weights(config)
        self.layers = compared_layers(config) if self.weights["dcd"] else ()
        self.optimiser = adam([*network.parameters(), *distiller.trained()], config.optim)

    def step(
        self, batches: Sequence[tuple], answers: Sequence[Answer], discriminator: nn.Module, check: Check
    ) -> dict[str, Tensor]:
        """One step on a total batch in micro-batches; returns the weighted terms."""
        sums = Sums()
        with frozen(discriminator):
            for (source, _target, _index, weight), answer in zip(batches, answers):
                terms = self.terms(source, answer, discriminator)
                (sum(terms.values()) * weight).backward()
                sums.note(terms, weight)
        descend(self.optimiser, sums, check)
        return sums

    def terms(self, source: Tensor, answer: Answer, discriminator: nn.Module) -> dict[str, Tensor]:
        """The weighted terms of L_S on source images [B, 3, H, W]."""
        teacher_image, teacher_features = answer[0].detach(), answer[1]
        with self.autocast():
            image, features = tapped(self.network, self.layers, source)
        terms = {}
        if self.weights["style"] or self.weights["feature"]:
            with self.autocast():
                own = self.vgg(image)
                with torch.no_grad():
                    target = self.vgg(teacher_image)
            own, target = ([full(maps) for maps in side] for side in (own, target))
            terms |= {"style": style_loss(own, target), "feature": feature_loss(own, target)}
        if self.weights["gan"]:
            terms["gan"] = self._adversarial(source, full(image), teacher_image, discriminator)
        if self.weights["dcd"]:
            with self.autocast():
                terms["dcd"] = self._distance(features, teacher_features, discriminator).sum()
        if self.weights["ssim"]:
            terms["ssim"] = 1 - structural_similarity(full(image), full(teacher_image))
        if self.weights["tv"]:
            terms["tv"] = total_variation(full(image))
        return student_loss(terms, self.weights)

    def _distance(self, features: list[Tensor], teacher_features: list[Tensor], discriminator: nn.Module) -> Tensor:
        """L_DCD or one of its baselines, layer by layer."""
        if self.config.distill.through == "pooled":
            return self.distiller(features, teacher_features)
        through = discriminator.hidden if self.config.distill.through == "discriminator" else nn.Identity()
        return self.distiller(features, teacher_features, through, self.config.networks.norm == "instance")

    def _adversarial(self, source: Tensor, image: Tensor, teacher_image: Tensor, discriminator: nn.Module) -> Tensor:
        """How real the discriminator finds the student's image, next to its source in pix2pix.

        On the teacher's image, as the released CycleGAN run has it, the term has no gradient to the student.
        """
        judged = full(teacher_image) if self.config.distill.student_gan == "teacher_image" else image
        if self.config.model == "pix2pix":
            judged = torch.cat([source, judged], 1)
        with self.autocast():
            logits = discriminator(judged)
        return generator_loss(self.config.teaching.gan, full(logits))

    def state_dict(self) -> dict:
        """Connectors and optimiser; the generator itself is the checkpoint's `model`."""
        return {"distiller": self.distiller.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`."""
        self.distiller.load_state_dict(state["distiller"])
        self.optimiser.load_state_dict(state["optimiser"])
