"""The plain step that the speed of a student's step is measured against: what can be rebuilt without a paper."""

from collections.abc import Callable

from common.gan.discriminators import build_discriminator
from common.gan.generators import InstanceNorm, build_generator
from common.gan.objectives import fake_loss, frozen, generator_loss, real_loss
from common.gan.settings import Optim
from common.gan.steps import adam

import torch
from torch import Tensor, nn

ARCHITECTURE, TEACHER_WIDTH, STUDENT_WIDTH = "mobile_resnet_9blocks", 64, 16


def released_norms(network: nn.Module) -> nn.Module:
    """Put torch's own nn.InstanceNorm2d, which the released code has, in place of ours; returns the network."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                setattr(module, name, nn.InstanceNorm2d(child.channels))
    return network


def reference_step(source: Tensor, real: Tensor) -> tuple[Callable[[], None], Callable[[], object], list[Tensor]]:
    """The step, its generator's forward alone, and the tensors that exist anyway.

    Teacher forward, student step with a least-squares adversarial term and L1 to the teacher's image, discriminator
    step on real and generated images, two Adams; networks of the published widths with torch's own layers.
    source, real: [B, 3, H, W].
    """
    teacher = released_norms(build_generator(ARCHITECTURE, TEACHER_WIDTH))
    student = released_norms(build_generator(ARCHITECTURE, STUDENT_WIDTH))
    discriminator = released_norms(build_discriminator())
    optimisers = [adam(network.parameters(), Optim()) for network in (student, discriminator)]

    def losses() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = teacher(source)
        image = student(source)
        with frozen(discriminator):
            return generator_loss("lsgan", discriminator(image)) + (image - target).abs().mean(), image

    def step() -> None:
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss, image = losses()
        loss.backward()
        optimisers[0].step()
        judged = real_loss("lsgan", discriminator(real)) + fake_loss("lsgan", discriminator(image.detach()))
        (judged / 2).backward()
        optimisers[1].step()

    return step, losses, [*student.parameters(), *discriminator.parameters()]
