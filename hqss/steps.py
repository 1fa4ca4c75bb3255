"""What is wrapped for several processes and called once a micro-batch: the losses of a step as modules."""

import random

from common import distributed
from common.errors import InputError
from common.gan.pool import ImagePool

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hqss import config
from hqss.method import Weights, discriminator_terms, generator_terms, removal_terms, remove

Values = dict[str, Tensor]


class SynthesisStep(nn.Module):
    """Loss terms of E and G, and the pseudo images for the discriminators."""

    def __init__(
        self, encoder: nn.Module, generator: nn.Module, critics: tuple[nn.Module, nn.Module], c: config.Synthesis
    ):
        super().__init__()
        self.encoder, self.generator = encoder, generator
        self.critics = critics  # a tuple is no submodule: they are not trained here
        images = c.self_image, c.self_frequency, c.adversarial, c.colour
        self.weights = Weights(*images, c.cycle_image, c.cycle_frequency, c.cycle_feature)

    def forward(self, v: Values) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        images = v["shadow"], v["lit"], v["shadow_mask"], v["lit_mask"]
        terms, made, _ = generator_terms(self.encoder, self.generator, self.critics, *images, self.weights)
        return terms, (made.pseudo_shadow.detach(), made.pseudo_lit.detach())


class CriticStep(nn.Module):
    """Loss terms of D_S and D_N."""

    def __init__(self, shadow: nn.Module, lit: nn.Module, weight: float):
        super().__init__()
        self.shadow, self.lit, self.weight = shadow, lit, weight

    def forward(self, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return discriminator_terms((self.shadow, self.lit), real, fake, self.weight)


class RemovalStep(nn.Module):
    """Loss terms of G1 and G2 on a pseudo shadow."""

    def __init__(self, coarse: nn.Module, refine: nn.Module, clear: bool):
        super().__init__()
        self.coarse, self.refine, self.clear = coarse, refine, clear

    def forward(self, pseudo: Tensor, v: Values) -> dict[str, Tensor]:
        first, second = remove(self.coarse, self.refine, pseudo, v["rest"], v["lit_mask"], self.clear)
        return removal_terms(first, second, v["lit"], v["image"], v["dilated"])


class Pools:
    """Replay buffers of D_S and D_N, a pair for each micro-batch of each process.

    So several processes do what one does over the same micro-batches.
    """

    def __init__(self, size: int, seed: int, micro_batches: int, device: torch.device):
        self.device = device
        first = distributed.rank() * micro_batches
        draws = lambda number, name: random.Random(f"{seed} {first + number} {name}")
        names = ("shadow", "lit")
        self.pairs = [[ImagePool(size, draws(n, name)) for name in names] for n in range(micro_batches)]

    def query(self, number: int, fakes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What the discriminators of micro-batch `number` of this process see instead of these fakes."""
        shadow, lit = (pool.query(fake) for pool, fake in zip(self.pairs[number], fakes))
        return shadow, lit

    def state_dict(self) -> dict:
        """The pools of all processes; called by every rank."""
        mine = [[pool.state_dict() for pool in pair] for pair in self.pairs]
        if distributed.world() == 1:
            return {"ranks": [mine]}
        everyone: list = [None] * distributed.world()
        dist.all_gather_object(everyone, mine)
        return {"ranks": everyone}

    def load_state_dict(self, state: dict) -> None:
        """Errors: InputError for a run of another number of processes or micro-batches."""
        shape = [len(pairs) for pairs in state["ranks"]]
        if shape != [len(self.pairs)] * distributed.world():
            raise InputError(
                f"the checkpoint holds replay buffers of {len(shape)} processes x {shape[0]} micro-batches;"
                " resume with as many"
            )
        for pair, stored in zip(self.pairs, state["ranks"][distributed.rank()]):
            for pool, content in zip(pair, stored):
                pool.load_state_dict({**content, "images": content["images"].to(self.device)})
