"""Discriminator-cooperated feature distillation: the teacher's discriminator transforms what is compared.

Section numbers are those of README.md's table. Source: the released code, whose faults README.md lists.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Transform = Callable[[Tensor], Tensor]


class Connector(nn.Sequential):
    """Brings a feature map to an image's channels: 1x1 convolution, BatchNorm, ReLU; [N, C, H, W] -> [N, c, H, W].

    Weights N(0, 0.02²), BatchNorm N(1, 0.02²), no bias in the convolution (section 2).
    """

    def __init__(self, channels: int, image_channels: int):
        super().__init__(nn.Conv2d(channels, image_channels, 1, bias=False), nn.BatchNorm2d(image_channels), nn.ReLU())
        nn.init.normal_(self[0].weight, 0.0, 0.02)
        nn.init.normal_(self[1].weight, 1.0, 0.02)


def layers_of(generator: str, blocks: int = 9) -> tuple[str, ...]:
    """Names of the four compared layers: for ResNets the end of the encoder and three depths of the blocks (section 2).

    Errors: ValueError for a ResNet of fewer than three blocks.
    """
    if generator == "unet_256":
        inner = "model.model.1.model.3.model"
        return f"{inner}.0", f"{inner}.3.model.3.model.0", f"{inner}.3.model.4", "model.model.1.model.4"
    if blocks < 3:
        raise ValueError(f"a generator of {blocks} blocks has no three depths; give at least 3 blocks or the layers")
    return tuple(f"model.{9 + blocks * part // 3}" for part in range(4))


def tapped(network: nn.Module, names: Sequence[str], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The network's output, and what the named modules put out on the way, in the order of the names."""
    found: dict[str, Tensor] = {}
    keep = lambda name: lambda _module, _inputs, output: found.__setitem__(name, output)
    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        y = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return y, [found[name] for name in names]


class DiscriminatorDistillation(nn.Module):
    """L_DCD: features of both generators, seen through the teacher's discriminator (section 2).

    student_channels, teacher_channels: widths C of the compared layers. image_channels: the discriminator's, 3, or 6
    where it judges input and output together. train_teacher: whether the teacher's connectors learn, with batch
    statistics (the pix2pix run), or stay as drawn, with running statistics (the CycleGAN run). smallest: sides below
    it are enlarged to it, because the discriminator halves its input several times. Connectors are `netSs`, `netTs`.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        image_channels: int = 3,
        *,
        train_teacher: bool = False,
        smallest: int = 1,
    ):
        super().__init__()
        if len(student_channels) != len(teacher_channels) or not student_channels:
            raise ValueError(f"{len(student_channels)} student layers against {len(teacher_channels)} of the teacher")
        self.netTs = nn.ModuleList(Connector(c, image_channels) for c in teacher_channels)
        self.netSs = nn.ModuleList(Connector(c, image_channels) for c in student_channels)
        self.train_teacher, self.smallest = train_teacher, smallest
        self.netTs.requires_grad_(train_teacher)
        self.train()

    def train(self, mode: bool = True) -> "DiscriminatorDistillation":
        super().train(mode)
        self.netTs.train(mode and self.train_teacher)
        return self

    def trained(self) -> list[nn.Parameter]:
        """The connectors' parameters that the student's optimiser takes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], transform: Transform, per_sample: bool = True
    ) -> Tensor:
        """The term of each layer, [L]; their sum is L_DCD.

        student, teacher: feature maps [N, C_l, H_l, W_l]; the teacher's are detached. transform: the discriminator up
        to its last hidden activation, frozen. per_sample: the transform treats samples separately (no BatchNorm), so
        that all maps of one size pass it as one batch.
        """
        own = [connector(features) for connector, features in zip(self.netSs, student)]
        if self.train_teacher:
            target = [connector(features.detach()) for connector, features in zip(self.netTs, teacher)]
            seen = self._seen([*own, *target], transform, per_sample)
            own, target = seen[: len(own)], seen[len(own) :]
        else:
            with torch.no_grad():
                target = [connector(features) for connector, features in zip(self.netTs, teacher)]
                target = self._seen(target, transform, per_sample)
            own = self._seen(own, transform, per_sample)
        return torch.stack([distance(s, t) for s, t in zip(own, target)])

    def _seen(self, maps: list[Tensor], transform: Transform, per_sample: bool) -> list[Tensor]:
        """What the transform makes of each map; maps of one size go together where that changes nothing."""
        maps = [enlarged(one, self.smallest) for one in maps]
        if not per_sample:
            return [transform(one) for one in maps]
        seen: list[Tensor] = maps
        for shape in dict.fromkeys(one.shape for one in maps):
            places = [place for place, one in enumerate(maps) if one.shape == shape]
            parts = transform(torch.cat([maps[place] for place in places])).chunk(len(places))
            seen = [parts[places.index(place)] if place in places else one for place, one in enumerate(seen)]
        return seen


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference, in single precision at least."""
    precision = torch.promote_types(student.dtype, torch.float32)
    return (student.to(precision) - teacher.to(precision)).abs().mean()


def enlarged(maps: Tensor, side: int) -> Tensor:
    """Maps whose shorter side is below `side` pixels, enlarged bilinearly until it is not (deep layers of a U-Net)."""
    shortest = min(maps.shape[-2:])
    if shortest >= side:
        return maps
    size = [-(-length * side // shortest) for length in maps.shape[-2:]]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def student_loss(terms: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    """The weighted terms of L_S = L_style + L_feature + L_adv + λ_CD L_DCD (section 2), without those of weight 0."""
    return {name: weights[name] * term for name, term in terms.items() if weights[name]}
