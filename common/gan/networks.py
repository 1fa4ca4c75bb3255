"""From a config's settings to its networks, and whether images suit them."""

from common.errors import InputError
from common.gan.data import PAIRED, Domains
from common.gan.discriminators import build_discriminator
from common.gan.generators import GENERATORS, build_generator
from common.gan.settings import Networks

from torch import nn


def generator_of(networks: Networks, width: int) -> nn.Module:
    """A generator of a config with fresh weights."""
    options = {} if networks.generator == "unet_256" else {"blocks": networks.blocks}
    return build_generator(networks.generator, width, networks.norm, **options)


def discriminator_of(networks: Networks, channels: int) -> nn.Module:
    """A discriminator of a config with fresh weights."""
    options = {"layers": networks.discriminator_layers} if networks.discriminator == "n_layers" else {}
    kind, width = networks.discriminator, networks.discriminator_width
    return build_discriminator(kind, channels, width, networks.norm, **options)


def smallest_map(networks: Networks) -> int:
    """The smallest side that the discriminator's hidden layers take, pixels."""
    return 3 * 2**networks.discriminator_layers if networks.discriminator == "n_layers" else 1


def require_fit(model: str, domains: Domains, networks: Networks) -> None:
    """Whether a config's images suit its model and networks, before any of them is read. Errors: InputError."""
    if model == "pix2pix" and domains.name not in PAIRED:
        raise InputError(f"data.name {domains.name}: pix2pix needs pairs; give one of {', '.join(PAIRED)}")
    multiple, size = GENERATORS[networks.generator].multiple, domains.crop_size
    if size % multiple:
        raise InputError(f"data.crop_size {size}: {networks.generator} takes sides that are a multiple of {multiple}")
    if size < smallest_map(networks):
        raise InputError(f"data.crop_size {size}: the discriminator takes at least {smallest_map(networks)} pixels")
    if domains.preprocess == "none" and max(domains.batch_size, domains.test_batch_size) > 1:
        raise InputError("data.preprocess none leaves images of any size; give data.batch_size and test_batch_size 1")
