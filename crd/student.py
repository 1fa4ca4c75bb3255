"""The student's step: everything it learns from the teacher's image and from its discriminator."""

import contextlib
from collections.abc import Sequence

from common import distributed
from common.gan.objectives import frozen, full, generator_loss
from common.gan.perceptual import feature_loss, style_loss
from common.gan.steps import Autocast, Check, Sums, adam, descend

import torch
from torch import Tensor, nn

from crd.config import Config
from crd.models import build_relations


class Student:
    """The compressed generator under its Adam.

    vgg: features of the perceptual losses, frozen. The discriminator is the teacher's and is never changed here.
    """

    def __init__(self, config: Config, network: nn.Module, vgg: nn.Module, autocast: Autocast = contextlib.nullcontext):
        self.config, self.network, self.vgg, self.autocast = config, network, vgg, autocast
        self.relations = build_relations(config)
        self.optimiser = adam(network.parameters(), config.optim)

    def step(
        self, batches: Sequence[tuple], answers: Sequence[Tensor], discriminator: nn.Module, check: Check
    ) -> dict[str, Tensor]:
        """One step on a total batch in micro-batches; answers: the teacher's images. Returns the weighted terms."""
        sums = Sums()
        with frozen(discriminator):
            for (source, _target, _index, weight), answer in zip(batches, answers):
                terms = self.terms(source, answer, discriminator, weight)
                (sum(terms.values()) * weight).backward()
                sums.note(terms, weight)
        descend(self.optimiser, sums, check)
        return sums

    def terms(self, source: Tensor, answer: Tensor, discriminator: nn.Module, weight: float = 1.0) -> dict[str, Tensor]:
        """L_S = L_style + L_feature + Σ w R + L_adv of source images [B, 3, H, W], term by term, but those of weight 0.

        weight: the share of the total batch that these images are, by which the caller multiplies all terms.
        """
        perceptual, answer = self.config.perceptual, answer.detach()
        with self.autocast():
            image = self.network(source)
        terms = {}
        if perceptual.style or perceptual.feature:
            with self.autocast():
                own = self.vgg(image)
                with torch.no_grad():
                    target = self.vgg(answer)
            own, target = ([full(maps) for maps in side] for side in (own, target))
            terms["style"] = perceptual.style * style_loss(own, target)
            terms["feature"] = perceptual.feature * feature_loss(own, target)
        for name, values in self.relations.relations(image, answer).items():
            terms[name] = self.relations.weights[name] * self._over_batch(values, weight)
        if self.config.student_gan_weight:
            judged = torch.cat([source, image], 1) if self.config.model == "pix2pix" else image
            with self.autocast():
                logits = discriminator(judged)
            gan = generator_loss(self.config.teaching.gan, full(logits))
            terms["gan"] = self.config.student_gan_weight * gan
        return terms

    def _over_batch(self, values: Tensor, weight: float) -> Tensor:
        """R of the batch from that of its images: the mean, or the sum over the total batch whatever its parts."""
        if self.config.relations.batch == "mean":
            return values.mean()
        return values.sum() * (distributed.world() / weight if weight else 0)

    def state_dict(self) -> dict:
        """The optimiser; the generator itself is the checkpoint's `model`."""
        return {"optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`."""
        self.optimiser.load_state_dict(state["optimiser"])
