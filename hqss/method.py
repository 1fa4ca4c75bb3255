"""High-quality shadow synthesis: the paper's equations as pure functions (sections refer to README.md).

Images are normalised Lab [N, 3, H, W], masks [N, 1, H, W] of 0 and 1. Networks are callables: E (encoder), G
(generator), D_S and D_N (discriminators, one score an image), G1 and G2 (removers). Every loss term is a mean over
its images, so that a batch weighs its images equally; losses are single precision at least.
"""

from collections.abc import Callable
from typing import NamedTuple

from common.gan.objectives import fake_loss, full, generator_loss, real_loss
from common.shadow.color import rgb_to_lab

import torch
from torch import Tensor, nn
from torch.func import functional_call

Network = Callable[..., Tensor]

# -- images (section 2) ----------------------------------------------------------------------------------------------


def normalise(lab: Tensor) -> Tensor:
    """Lab to about [-1, 1]: L/50 - 1, 2(a + 128)/255 - 1 and the same of b."""
    return torch.cat([lab[..., :1, :, :] / 50 - 1, 2 * (lab[..., 1:, :, :] + 128) / 255 - 1], -3)


def denormalise(image: Tensor) -> Tensor:
    """The inverse of `normalise`."""
    return torch.cat([50 * (image[..., :1, :, :] + 1), 255 * (image[..., 1:, :, :] + 1) / 2 - 128], -3)


def training_region(rgb: Tensor, mask: Tensor) -> Tensor:
    """Lab(I·M) of RGB in [0, 1], normalised: the background is black, (-1, 1/255, 1/255)."""
    return normalise(rgb_to_lab(rgb * mask))


def test_region(image: Tensor, mask: Tensor) -> Tensor:
    """((L + 1)·M - 1, ab·M) of a normalised image: the background is (-1, 0, 0), as the release has it in testing."""
    return torch.cat([(image[..., :1, :, :] + 1) * mask - 1, image[..., 1:, :, :] * mask], -3)


test_region.__test__ = False  # not a test, whatever its name begins with


# -- choice of the lit region (section 2, donor rule) ----------------------------------------------------------------


def area_ratios(masks: Tensor) -> Tensor:
    """Ratio [n, n] of |M_j and not M_i| to |M_i|, by one matrix product; 0 on the diagonal, inf where M_i is empty.

    masks: [n, pixels] of 0 and 1 in a type whose sums are exact (float32 below 2^24 pixels).
    """
    common = (masks @ masks.T).double()
    return ratios_of(common)


def ratios_of(common: Tensor) -> Tensor:
    """The same from the matrix of |M_i and M_j| [n, n], which may have been summed over blocks of pixels."""
    area = common.diagonal()
    ratio = torch.where(area[:, None] > 0, (area[None, :] - common) / area[:, None], torch.inf)
    return ratio.fill_diagonal_(0)


def admissible(ratio: Tensor, lower: float = 0.8, upper: float = 1.2) -> Tensor:
    """Whether mask j may give image i its lit region, bool [n, n]; both bounds are included."""
    allowed = (ratio >= lower) & (ratio <= upper)
    return allowed.fill_diagonal_(False)


# -- losses (section 2, table) ---------------------------------------------------------------------------------------


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (full(prediction) - full(target)).abs().mean()


def focal_frequency_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """mean(w·d), d = |F(p) - F(t)|², w = sqrt(d)/max sqrt(d) by image and channel, without gradient (alpha 1).

    F is linear and the images are real: one half-plane transform of the difference holds all of it. Equal channels
    have the weight 0.
    """
    spectrum = torch.fft.rfft2(full(prediction) - full(target), norm="ortho")
    distance = spectrum.real.square() + spectrum.imag.square()
    root = distance.detach().sqrt()
    weight = (root / root.amax((-2, -1), keepdim=True)).nan_to_num(0).clamp(0, 1)
    # Columns 0 and, for an even width, the last stand for themselves, the others for their mirror image too.
    width = prediction.shape[-1]
    twice = torch.full((spectrum.shape[-1],), 2.0, device=distance.device, dtype=distance.dtype)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    return (weight * distance * twice).sum((-2, -1)).mean() / (prediction.shape[-2] * width)


def colour_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of a and of b over the pixels of the mask, the two added."""
    difference = (full(prediction)[:, 1:] - full(target)[:, 1:]).abs() * mask
    return (difference.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)).mean()


def held(network: nn.Module) -> Network:
    """The network as it is now, as a function: gradients pass to its inputs, none reaches its parameters.

    The official code makes a deep copy in every step, whose gradients nobody reads.
    """
    values = {name: value.detach() for name, value in network.state_dict(keep_vars=True).items()}
    return lambda *inputs: functional_call(network, values, inputs)


# -- stage 1: synthesis ----------------------------------------------------------------------------------------------


class Synthesis(NamedTuple):
    """What E and G make of a shadow region S and a lit region N; features [N, 16, H, W], images [N, 3, H, W]."""

    shadow_feature: Tensor
    """z_S = E(S)"""
    lit_feature: Tensor
    """z_N = E(N)"""
    shadow: Tensor
    """S^ = G(z_S, S)"""
    lit: Tensor
    """N^ = G(z_N, N)"""
    pseudo_shadow: Tensor
    """P_S = G(z_S, N): the lit region with the shadow"""
    pseudo_lit: Tensor
    """P_N = G(z_N, S): the shadow region, lit"""


def synthesise(encoder: Network, generator: Network, shadow: Tensor, lit: Tensor) -> Synthesis:
    """Self- and inter-reconstruction: one call of E, and one of G that gives both features to both regions."""
    regions = torch.cat([shadow, lit])
    features = encoder(regions)
    z_s, z_n = features.chunk(2)
    images = generator(features, regions, crossed=True)
    return Synthesis(z_s, z_n, *images.chunk(4))


class Weights(NamedTuple):
    """Weights of the loss groups; 0 leaves a group out."""

    self_image: float = 1.0
    self_frequency: float = 1.0
    adversarial: float = 0.05
    colour: float = 0.01
    cycle_image: float = 0.1
    cycle_frequency: float = 0.1
    cycle_feature: float = 0.01


def generator_terms(
    encoder: nn.Module,
    generator: nn.Module,
    critics: tuple[nn.Module, nn.Module],
    shadow: Tensor,
    lit: Tensor,
    shadow_mask: Tensor,
    lit_mask: Tensor,
    weights: Weights,
) -> tuple[dict[str, Tensor], Synthesis, dict[str, Tensor]]:
    """The weighted loss terms of E and G, what was synthesised, and the cycle's images by name.

    The cycle terms go through E and G as they are now without training them a second time; z_S and z_N get gradient
    also as targets. critics: D_S and D_N, which are not trained here.
    """
    made = synthesise(encoder, generator, shadow, lit)
    terms, cycle = {}, {}

    def add(name: str, weight: float, loss: Callable[..., Tensor], *arguments) -> None:
        if weight:
            terms[name] = weight * loss(*arguments)

    add("self_shadow", weights.self_image, l1, made.shadow, shadow)
    add("self_lit", weights.self_image, l1, made.lit, lit)
    add("self_frequency_shadow", weights.self_frequency, focal_frequency_loss, made.shadow, shadow)
    add("self_frequency_lit", weights.self_frequency, focal_frequency_loss, made.lit, lit)
    if weights.adversarial:
        for name, critic, image in zip(("shadow", "lit"), critics, (made.pseudo_shadow, made.pseudo_lit)):
            add(f"adversarial_{name}", weights.adversarial, generator_loss, "lsgan", full(held(critic)(image)))
    add("colour_shadow", weights.colour, colour_loss, made.pseudo_shadow, lit, lit_mask)
    add("colour_lit", weights.colour, colour_loss, made.pseudo_lit, shadow, shadow_mask)
    if weights.cycle_image or weights.cycle_frequency:
        features = torch.cat([made.lit_feature, made.shadow_feature])
        images = held(generator)(features, torch.cat([made.pseudo_shadow, made.pseudo_lit]))
        cycle = dict(zip(("lit", "shadow"), images.chunk(2)))
        for name, target in (("lit", lit), ("shadow", shadow)):
            add(f"cycle_{name}", weights.cycle_image, l1, cycle[name], target)
            add(f"cycle_frequency_{name}", weights.cycle_frequency, focal_frequency_loss, cycle[name], target)
    if weights.cycle_feature:
        again = held(encoder)(torch.cat([made.pseudo_shadow, made.pseudo_lit])).chunk(2)
        add("cycle_feature_shadow", weights.cycle_feature, l1, again[0], made.shadow_feature)
        add("cycle_feature_lit", weights.cycle_feature, l1, again[1], made.lit_feature)
    return terms, made, cycle


def discriminator_terms(
    critics: tuple[Network, Network], real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor], weight: float = 1.0
) -> dict[str, Tensor]:
    """(D_S(S) - 1)² + D_S(P_S)² and the same of D_N; weight: 1 as the release has it, G2R halves."""
    terms = {}
    for name, critic, yes, no in zip(("shadow", "lit"), critics, real, fake):
        scores = full(critic(torch.cat([yes, no]))).chunk(2)
        terms[f"real_{name}"] = weight * real_loss("lsgan", scores[0])
        terms[f"fake_{name}"] = weight * fake_loss("lsgan", scores[1])
    return terms


# -- stage 2: removal ------------------------------------------------------------------------------------------------


def pseudo_shadow(encoder: Network, generator: Network, shadow: Tensor, lit: Tensor, lit_mask: Tensor) -> Tensor:
    """P = G(E(S), N) inside the lit region, N outside."""
    return generator(encoder(shadow), lit) * lit_mask + lit * (1 - lit_mask)


def gain_shadow(lit: Tensor, lit_mask: Tensor, image: Tensor, shadow_mask: Tensor) -> Tensor:
    """Control of ours: the lit region with its L times one factor, mean L of the shadow over mean L of the rest."""
    lightness = image[:, :1] + 1
    area = lambda mask: mask.sum((2, 3), keepdim=True).clamp(min=1)
    mean = lambda mask: (lightness * mask).sum((2, 3), keepdim=True) / area(mask)
    inside, outside = mean(shadow_mask), mean(1 - shadow_mask)
    darker = torch.cat([(lit[:, :1] + 1) * inside / outside.clamp(min=1e-3) - 1, lit[:, 1:]], 1)
    return darker * lit_mask + lit * (1 - lit_mask)


def remove(
    coarse: Network, refine: Network, region: Tensor, rest: Tensor, mask: Tensor, clear: bool = False
) -> tuple[Tensor, Tensor]:
    """Y1 = G1(region) and Y2 = G2(Y1 and the rest of the image, 2M - 1).

    clear False: the two are added, as the release has it; L of both is -1 where there is nothing, so the sum is lower
    by 1 everywhere. clear True: Y1·M + rest·(1 - M).
    """
    first = coarse(region)
    whole = first * mask + rest * (1 - mask) if clear else first + rest
    return first, refine(whole, 2 * mask - 1)


def removal_terms(first: Tensor, second: Tensor, lit: Tensor, image: Tensor, dilated: Tensor) -> dict[str, Tensor]:
    """|Y1 - N|, |Y2 - F|, and |Y2 - F| inside the dilated mask, each a mean over all pixels."""
    return {
        "coarse": l1(first, lit),
        "refined": l1(second, image),
        # Setting what is outside to black on both sides leaves the difference inside.
        "border": l1(second * dilated, image * dilated),
    }


# -- schedule (section 4) --------------------------------------------------------------------------------------------


def rate_factor(epoch: int, epochs: int, decay: int) -> float:
    """1 - max(0, e - decay)/(epochs - decay) in the 0-based epoch e; 1 throughout where decay is not before the end."""
    return 1 - max(0, epoch - decay) / (epochs - decay) if epochs > decay else 1.0
