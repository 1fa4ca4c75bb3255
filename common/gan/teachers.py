"""Teachers that are trained from scratch while they teach: CycleGAN's and pix2pix's steps (appendix A.4).

A step takes a total batch as micro-batches (source, target, index, weight), the weights adding up to 1 over processes.
`check(terms, parameters)` is called between each backward and its optimiser's step.
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Sequence

from common import distributed
from common.errors import InputError
from common.gan.data import PAIRED, Domains
from common.gan.discriminators import build_discriminator
from common.gan.generators import GENERATORS, build_generator
from common.gan.objectives import fake_loss, frozen, full, generator_loss, real_loss
from common.gan.pool import ImagePool
from common.gan.settings import Networks, Optim, Teaching

import torch
import torch.distributed as dist
from torch import Tensor, nn

Check = Callable[[dict[str, Tensor], list[nn.Parameter]], None]
Autocast = Callable[[], contextlib.AbstractContextManager]


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


def adam(parameters: Iterable[nn.Parameter], optim: Optim) -> torch.optim.Adam:
    """Adam with the field's settings and no weight decay."""
    return torch.optim.Adam(parameters, optim.lr, (optim.beta1, 0.999))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters one learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes; the identity for one process."""
    if distributed.world() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = distributed.sum_(torch.cat([g.flatten() for g in gradients])) / distributed.world()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter)


def descend(optimiser: torch.optim.Optimizer, terms: dict[str, Tensor], check: Check) -> None:
    """One step on the gradients that have been added up."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    average_gradients(parameters)
    check(terms, parameters)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


class Sums(dict):
    """Named terms of a step, added up over its micro-batches without a graph."""

    def note(self, terms: dict[str, Tensor], weight: float) -> None:
        for name, term in terms.items():
            value = term.detach() * weight
            self[name] = self[name] + value if name in self else value


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


def gather(value) -> list:
    """The value of every process, in their order."""
    if distributed.world() == 1:
        return [value]
    values = [None] * distributed.world()
    dist.all_gather_object(values, value)
    return values
