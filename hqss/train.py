"""High-quality shadow synthesis: learn to paint shadows from shadow photographs alone, then learn to remove them.

python train.py --config cfg.yaml                      synthetic shadows on embedded photographs, about a minute
python train.py --config configs/istd.yaml --data.root DIR
torchrun --nproc_per_node=8 train.py --config configs/istd.yaml --data.root DIR --data.batch_size 8
"""

from collections.abc import Callable
from pathlib import Path

from common import checkpoint, distributed
from common.config import parse
from common.randomness import permutation
from common.run import Run, entry, run_folder, stages_to_run
from common.shadow.loader import Part, batches

import torch
from torch import Tensor, nn

from hqss import data, pictures
from hqss.build import build_removal, build_synthesis, pseudo_shadows, stage1_files
from hqss.config import Config
from hqss.evaluation import judge
from hqss.method import rate_factor
from hqss.steps import CriticStep, Pools, RemovalStep, SynthesisStep

__all__ = ["Config", "build", "main"]

STAGES = ("synthesis", "removal")
PICTURES = 10  # epochs between sample pictures, as the release's between checkpoints


def main(argv: list[str]) -> Path:
    """Run the stages of one experiment; returns the run folder."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    train, test = data.load(config)
    for stage in stages_to_run(command, "hqss", STAGES):
        if not wanted(config, stage):
            continue
        with Run("hqss", config, command, name, stage, data.about(config, train)) as run:
            {"synthesis": train_synthesis, "removal": train_removal}[stage](run, config, train, test)
    return run_folder(command, name)


def wanted(config: Config, stage: str) -> bool:
    """Synthesis is trained unless its weights are given or the control of stage 2 does without it."""
    given = config.synthesis.checkpoint or config.synthesis.encoder or config.removal.pairs == "gain"
    return stage == "removal" or not given


def build(config: Config) -> dict[str, nn.Module]:
    """All networks of an experiment by name. Errors: InputError for sizes that they cannot take."""
    data.check(config.data)
    return {**build_synthesis(config), **build_removal(config)}


# -- the two stages --------------------------------------------------------------------------------------------------


def train_synthesis(run: Run, config: Config, train: data.Items, test: data.Photographs) -> None:
    """E and G against D_S and D_N: generator step, then discriminator step on the same fakes (section 2, stage 1)."""
    networks = {name: network.to(run.device) for name, network in build_synthesis(config).items()}
    encoder, generator, *critics = networks.values()
    paint = SynthesisStep(encoder, generator, tuple(critics), config.synthesis)
    tell = CriticStep(*critics, config.synthesis.discriminator)
    adversarial = config.synthesis.adversarial > 0
    optimisers = {"optimiser": adam(config, paint)} | ({"critic_optimiser": adam(config, tell)} if adversarial else {})
    pools = Pools(config.synthesis.pool, config.seed, run.runtime.micro_batches, run.device)
    wrapped_paint = distributed.wrap(paint)
    wrapped_tell = distributed.wrap(tell) if adversarial else None

    def advance(parts: list[tuple[int, Part, float]], step: int) -> dict[str, Tensor]:
        for each in optimisers.values():
            each.zero_grad(set_to_none=True)
        for number, part, weight in parts:
            with run.autocast():
                terms, fakes = wrapped_paint(part.values)
            (sum(terms.values()) * weight).backward()
            if adversarial:
                # The discriminators see fakes from before the generator's step, so both gradients can be taken first.
                real = part.values["shadow"], part.values["lit"]
                with run.autocast():
                    told = wrapped_tell(real, pools.query(number, fakes) if weight else fakes)
                (sum(told.values()) * weight).backward()
                terms |= told
        run.watch(step, terms, [p for module in (paint, tell) for p in module.parameters()])
        for each in optimisers.values():
            each.step()
        return terms

    def after(epoch: int, epochs: int) -> None:
        if distributed.is_main() and ((epoch - 1) % PICTURES == 0 or epoch == epochs):
            item = train.fetch(torch.arange(min(4, len(train))), 0)
            pictures.synthesis(run.sample(f"synthesis_{epoch:03d}.png"), encoder, generator, item, run.device)

    fit(run, config, train, networks, optimisers, config.optim.synthesis_epochs, advance, after=after, pools=pools)


def train_removal(run: Run, config: Config, train: data.Items, test: data.Photographs) -> None:
    """G1 and G2 on pseudo pairs: a lit region in synthetic shadow, and the photograph (section 2, stage 2)."""
    networks = {name: network.to(run.device) for name, network in build_removal(config).items()}
    step_of = RemovalStep(*networks.values(), config.removal.clear)
    files = stage1_files(config, run.folder)
    for number, path in enumerate(files):
        run.require_same(f"synthesis {number}", checkpoint.file_sha256(path))
    darken = pseudo_shadows(config, files, run.device)
    optimiser = adam(config, step_of)
    wrapped = distributed.wrap(step_of)

    def advance(parts: list[tuple[int, Part, float]], step: int) -> dict[str, Tensor]:
        optimiser.zero_grad(set_to_none=True)
        for _, part, weight in parts:
            with run.autocast():
                with torch.no_grad():
                    pseudo = darken(part.values)
                terms = wrapped(pseudo, part.values)
            (sum(terms.values()) * weight).backward()
        run.watch(step, terms, step_of.parameters())
        optimiser.step()
        return terms

    def after(epoch: int, epochs: int) -> None:
        if distributed.is_main() and ((epoch - 1) % PICTURES == 0 or epoch == epochs):
            pictures.removal(run.sample(f"removal_{epoch:03d}.png"), *networks.values(), test, config.removal.clear)

    chosen = None
    if config.optim.select == "test":
        chosen = lambda: judge(*networks.values(), test, config.removal.clear)
    fit(run, config, train, networks, {"optimiser": optimiser}, config.optim.removal_epochs, advance, after, chosen)


def adam(config: Config, module: nn.Module) -> torch.optim.Adam:
    """Adam over a module's parameters."""
    return torch.optim.Adam(module.parameters(), config.optim.lr, (config.optim.beta1, config.optim.beta2))


# -- the loop --------------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    config: Config,
    train: data.Items,
    networks: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    epochs: int,
    advance: Callable[[list[tuple[int, Part, float]], int], dict[str, Tensor]],
    after: Callable[[int, int], None],
    chosen: Callable[[], dict[str, float]] | None = None,
    pools: Pools | None = None,
) -> None:
    """Epochs of steps with schedule, log and checkpoints.

    advance: the micro-batches of a step as (number, part, weight), and the step's number -> loss terms. after: called
    with epoch and epochs. chosen: metrics on the test set, whose least `error_s` decides which epoch is best.pt.
    """
    stateful = {**networks, **optimisers, **({"pools": pools} if pools else {})}
    epoch, step, done, best = 1, 0, 0, float("inf")
    state = run.resume()
    if state:
        epoch, step, done, best = (state[key] for key in ("epoch", "step", "done", "best"))
        for name, part in stateful.items():
            part.load_state_dict(state[name])

    def save(is_best: bool = False) -> None:
        content = {name: part.state_dict() for name, part in stateful.items()}
        run.save(step, epoch, {**content, "done": done, "best": best}, is_best)

    while epoch <= epochs:
        factor = rate_factor(epoch - 1, epochs, config.optim.decay) if config.optim.schedule or pools else 1.0
        for optimiser in optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = config.optim.lr * factor
        order = permutation(config.seed, epoch, len(train))
        total = -(-len(order) // config.data.batch_size)
        feed = {"workers": config.data.workers, "start": done, "micro_batches": run.runtime.micro_batches}
        steps = batches(train, order, epoch, config.data.batch_size, run.device, **feed)
        for parts in run.progress(steps, total - done, f"epoch {epoch}/{epochs}"):
            step, done = step + 1, done + 1
            usable = weighted(parts)
            terms = advance(usable, step) if usable else {}
            if step % run.runtime.log_every == 0:
                run.log("train", step, epoch, lr=config.optim.lr * factor, usable=len(usable), **terms)
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        after(epoch, epochs)
        report = chosen() if chosen else {}
        run.log("test_selected" if chosen else "epoch", step, epoch, seconds=run.elapsed(), **report)
        run.say(f"epoch {epoch}/{epochs}" + "".join(f", {name} {value:.3f}" for name, value in report.items()))
        is_best = report.get("error_s", float("inf")) < best
        best = min(best, report.get("error_s", float("inf")))
        epoch, done = epoch + 1, 0
        save(is_best)


def weighted(parts: list[Part]) -> list[tuple[int, Part, float]]:
    """The micro-batches to train on, each with the share of the batch that its usable items are.

    One process leaves out those without usable items, and so the whole step where there are none, as the release does;
    several processes keep them with weight 0, because every rank takes part in the reduction.
    """
    found = []
    for number, part in enumerate(parts):
        usable = 0 if "unusable" in part.values else len(part.values["image"])
        if usable or distributed.world() > 1:
            found.append((number, part, part.weight * usable / len(part.index)))
    return found


if __name__ == "__main__":
    entry(main)
