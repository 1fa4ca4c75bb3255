"""The networks of an experiment, and the pseudo shadows that stage 2 learns from."""

from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import InputError

import torch
from torch import Tensor, nn

from hqss import method, models
from hqss.config import Config

Paint = Callable[[dict[str, Tensor]], Tensor]


def build_synthesis(config: Config) -> dict[str, nn.Module]:
    """E, G, D_S and D_N."""
    n = config.networks
    networks = {
        "encoder": models.Encoder(n.feature),
        "generator": models.Generator(n.feature, n.generator),
        "critic_shadow": models.Discriminator(n.discriminator),
        "critic_lit": models.Discriminator(n.discriminator),
    }
    return {name: models.initialise(network) for name, network in networks.items()}


def build_removal(config: Config) -> dict[str, nn.Module]:
    """G1 and G2."""
    networks = {"coarse": models.Remover(config.networks.remover), "refine": models.Refiner(config.networks.remover)}
    return {name: models.initialise(network) for name, network in networks.items()}


def stage1_files(config: Config, folder: Path) -> list[Path]:
    """Where E and G come from: one checkpoint (beside the stage in `folder`), two files, or none for the control.

    Errors: InputError for files that do not go together or are not there.
    """
    s = config.synthesis
    if config.removal.pairs == "gain":
        return []
    if s.encoder or s.generator:
        if not (s.encoder and s.generator) or s.checkpoint:
            raise InputError("synthesis.encoder and synthesis.generator go together, and without synthesis.checkpoint")
        return [Path(s.encoder), Path(s.generator)]
    path = Path(s.checkpoint) if s.checkpoint else folder.parent / "synthesis" / "last.pt"
    if not path.exists():
        raise InputError(f"{path}: there is no stage 1; run stage synthesis first, or give --synthesis.checkpoint")
    return [path]


def pseudo_shadows(config: Config, files: Sequence[Path], device: torch.device) -> Paint:
    """Values of a batch -> pseudo shadows [N, 3, H, W], by frozen E and G of `stage1_files` or by the control."""
    if not files:
        return lambda v: method.gain_shadow(v["lit"], v["lit_mask"], v["image"], v["shadow_mask"])
    encoder, generator, *_ = build_synthesis(config).values()
    parts = [(files[0], "encoder"), (files[0], "generator")] if len(files) == 1 else [(path,) for path in files]
    for network, part in zip((encoder, generator), parts):
        models.load_weights(network, *part)
        network.requires_grad_(False).to(device)
    return lambda v: method.pseudo_shadow(encoder, generator, v["shadow"], v["lit"], v["lit_mask"])
