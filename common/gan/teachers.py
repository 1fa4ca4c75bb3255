"""Teachers that are trained from scratch while they teach: CycleGAN's and pix2pix's steps (appendix A.4)."""

import contextlib
import random
from collections.abc import Sequence

from common import distributed
from common.gan.networks import discriminator_of, generator_of
from common.gan.objectives import fake_loss, frozen, full, generator_loss, real_loss
from common.gan.pool import ImagePool
from common.gan.settings import Networks, Optim, Teaching
from common.gan.steps import Autocast, Check, Sums, adam, descend, gather

import torch
from torch import Tensor, nn


class CycleTeacher:
    """Generators source -> target (G_A) and back (G_B); D_A judges target images, D_B source images."""

    main = ("G_A", "D_A")

    def __init__(
        self,
        networks: dict[str, nn.Module],
        teaching: Teaching,
        optim: Optim,
        *,
        rng: random.Random | None = None,
        autocast: Autocast = contextlib.nullcontext,
    ):
        self.networks, self.teaching, self.autocast = networks, teaching, autocast
        both = lambda kind: [p for side in "AB" for p in networks[f"{kind}_{side}"].parameters()]
        self.generators, self.discriminators = adam(both("G"), optim), adam(both("D"), optim)
        rng = rng or random.Random(distributed.rank())
        self.pools = {side: ImagePool(teaching.pool_size, rng) for side in "AB"}

    @staticmethod
    def build(networks: Networks) -> dict[str, nn.Module]:
        """The four networks with fresh weights."""
        generators = {f"G_{side}": generator_of(networks, networks.teacher_width) for side in "AB"}
        return generators | {f"D_{side}": discriminator_of(networks, 3) for side in "AB"}

    def step(self, batches: Sequence[tuple], check: Check) -> dict[str, Tensor]:
        """Both generators, then both discriminators on fakes from before the generators' step; weighted terms."""
        n, mode, sums = self.networks, self.teaching.gan, Sums()
        fakes = []
        with frozen(n["D_A"], n["D_B"]):
            for source, target, _index, weight in batches:
                terms, fake = self._generator_terms(source, target)
                (sum(terms.values()) * weight).backward()
                sums.note(terms, weight)
                fakes.append(fake)
        descend(self.generators, sums, check)
        judged = Sums()
        for (source, target, _index, weight), (fake_target, fake_source) in zip(batches, fakes):
            for side, real, fake in (("A", target, fake_target), ("B", source, fake_source)):
                # B's pool holds the fake target images, which D_A judges. An empty share of a batch is not remembered.
                shown = self.pools["B" if side == "A" else "A"].query(fake) if weight else fake.detach()
                with self.autocast():
                    logits = [full(n[f"D_{side}"](images)) for images in (real, shown)]
                loss = (real_loss(mode, logits[0]) + fake_loss(mode, logits[1])) / 2
                (loss * weight).backward()
                judged.note({f"D_{side}": loss}, weight)
        descend(self.discriminators, judged, check)
        return {**sums, **judged}

    def _generator_terms(self, source: Tensor, target: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        n, t = self.networks, self.teaching
        with self.autocast():
            fake_target = n["G_A"](source)
            back_source = n["G_B"](fake_target)
            fake_source = n["G_B"](target)
            back_target = n["G_A"](fake_source)
            logits = full(n["D_A"](fake_target)), full(n["D_B"](fake_source))
            same = (n["G_A"](target), n["G_B"](source)) if t.identity else ()
        l1 = lambda x, y: (full(x) - y).abs().mean()
        terms = {
            "G_A": generator_loss(t.gan, logits[0]),
            "G_B": generator_loss(t.gan, logits[1]),
            "cycle_A": t.cycle_source * l1(back_source, source),
            "cycle_B": t.cycle_target * l1(back_target, target),
        }
        if same:
            terms["identity_A"] = t.cycle_target * t.identity * l1(same[0], target)
            terms["identity_B"] = t.cycle_source * t.identity * l1(same[1], source)
        return terms, (full(fake_target).detach(), full(fake_source).detach())

    def state_dict(self) -> dict:
        """Networks, both optimisers and the pools of all processes; to be called by every one of them."""
        pools = gather({side: pool.state_dict() for side, pool in self.pools.items()})
        return _state(self) | {"pools": pools}

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`. A run with more processes than before begins with empty pools in the new ones."""
        _load(self, state)
        device = next(self.networks["G_A"].parameters()).device
        if distributed.rank() < len(state["pools"]):
            for side, pool in self.pools.items():
                kept = state["pools"][distributed.rank()][side]
                pool.load_state_dict({**kept, "images": kept["images"].to(device)})


class PairTeacher:
    """Generator G and a discriminator D of input and output side by side."""

    main = ("G", "D")

    def __init__(
        self,
        networks: dict[str, nn.Module],
        teaching: Teaching,
        optim: Optim,
        *,
        autocast: Autocast = contextlib.nullcontext,
    ):
        self.networks, self.teaching, self.autocast = networks, teaching, autocast
        self.generators, self.discriminators = (adam(networks[name].parameters(), optim) for name in "GD")

    @staticmethod
    def build(networks: Networks) -> dict[str, nn.Module]:
        """The two networks with fresh weights."""
        return {"G": generator_of(networks, networks.teacher_width), "D": discriminator_of(networks, 6)}

    def step(self, batches: Sequence[tuple], images: Sequence[Tensor], check: Check) -> dict[str, Tensor]:
        """The discriminator's gradient, the generator's through the discriminator as it was, then both steps.

        images: the generator's, with their graphs, one batch for each micro-batch. Returns the weighted terms.
        """
        d, mode, judged, sums = self.networks["D"], self.teaching.gan, Sums(), Sums()
        for (source, target, _index, weight), image in zip(batches, images):
            with self.autocast():
                fake = full(d(torch.cat([source, full(image).detach()], 1)))
                real = full(d(torch.cat([source, target], 1)))
            terms = {"D_fake": fake_loss(mode, fake), "D_real": real_loss(mode, real)}
            (sum(terms.values()) / 2 * weight).backward()
            judged.note({**terms, "D": sum(terms.values()) / 2}, weight)
        with frozen(d):
            for (source, target, _index, weight), image in zip(batches, images):
                with self.autocast():
                    logits = full(d(torch.cat([source, full(image)], 1)))
                terms = {
                    "G_gan": self.teaching.adversarial * generator_loss(mode, logits),
                    "G_reconstruction": self.teaching.reconstruction * (full(image) - target).abs().mean(),
                }
                (sum(terms.values()) * weight).backward()
                sums.note(terms, weight)
        descend(self.discriminators, judged, check)
        descend(self.generators, sums, check)
        return {**judged, **sums}

    def state_dict(self) -> dict:
        """Networks and both optimisers."""
        return _state(self)

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`."""
        _load(self, state)


TEACHERS = {"cyclegan": CycleTeacher, "pix2pix": PairTeacher}


def _state(teacher: CycleTeacher | PairTeacher) -> dict:
    parts = {name: network.state_dict() for name, network in teacher.networks.items()}
    optimisers = {"generators": teacher.generators, "discriminators": teacher.discriminators}
    return parts | {name: optimiser.state_dict() for name, optimiser in optimisers.items()}


def _load(teacher: CycleTeacher | PairTeacher, state: dict) -> None:
    for name, network in teacher.networks.items():
        network.load_state_dict(state[name])
    teacher.generators.load_state_dict(state["generators"])
    teacher.discriminators.load_state_dict(state["discriminators"])
