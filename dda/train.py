"""Dynamic demoiréing acceleration: one network, trained so that its narrow parts restore what has little moiré.

python train.py --config cfg.yaml                      photographs with synthetic moiré, about a minute on two CPU cores
python train.py --config configs/lcdmoire_dmcnn_dda.yaml --data.root DIR
torchrun --nproc_per_node=8 train.py --config configs/fhdmi_mbcnn_dda.yaml --data.root DIR
"""

from pathlib import Path

from common import checkpoint, distributed
from common.config import parse
from common.errors import InputError
from common.run import Run, entry, run_folder, stages_to_run

import torch
from torch import Tensor, nn

from dda import data, models
from dda.classes import Batch, batches, classed, steps_of_epoch
from dda.config import Config, Stage
from dda.evaluation import calibration, demoirer, evaluate
from dda.inference import check_widths
from dda.method.losses import multi_scale
from dda.method.schedule import LOWEST_RATE, multistep, plateau

__all__ = ["Config", "build", "evaluate", "main"]

STAGES = ("first", "second")


def main(argv: list[str]) -> Path:
    """Run the stages of one experiment; returns the run folder."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    check(config)
    train, test = data.load(config.data, config.seed)
    about = data.describe(config.data, train)
    for stage in stages_to_run(command, "dda", STAGES):
        if wanted(config, stage):
            with Run("dda", config, command, name, stage, about) as run:
                fit(run, config, getattr(config, stage), train, test)
    return run_folder(command, name)


def wanted(config: Config, stage: str) -> bool:
    """Stages with epochs; the first also alone without any, and then it stores the weights that were given."""
    return getattr(config, stage).epochs > 0 or (stage == "first" and not config.second.epochs)


def check(config: Config) -> None:
    """Errors: InputError for widths, routes, crops and tiles that cannot be used or do not fit each other."""
    check_widths(config.widths)
    if len(config.widths) not in (1, 3):
        raise InputError(f"{len(config.widths)} widths: the class split knows three classes; give three, or one")
    with torch.device("meta"):
        network = build(config)
        demoirer(config, network, [0.0] * (len(config.widths) - 1))  # refuses routes, tiles and budgets
    for name in STAGES:
        stage = getattr(config, name)
        if wanted(config, name) and (stage.patch % network.multiple or stage.patch > min(config.tiles.train)):
            raise InputError(
                f"{name}.patch {stage.patch} must be a multiple of {network.multiple} and fit tiles.train "
                f"{config.tiles.train}"
            )


def build(config: Config) -> nn.Module:
    """The network of a config with fresh weights."""
    n = config.network
    kind = {"lbf": n.lbf, "head": n.head, "fix_conv5_cat": n.fix_conv5_cat}
    return models.build(n.name, channels=n.channels, start=n.start, **kind)


def fit(run: Run, config: Config, stage: Stage, train, test) -> None:
    """The training of section 2.5: class by class, each through the network of its width."""
    network = build(config)
    load_start(run, config, network)
    network = network.to(run.device, memory_format=layout_of(run.device))
    train = train.to(run.device)
    parameters = list(network.parameters())
    optimiser = torch.optim.Adam(parameters, stage.lr, fused=True)
    classes = classed(train, config, run.device) if stage.epochs else []
    per_epoch = steps_of_epoch(classes, stage) if stage.epochs else 0
    thresholds = calibration(config, train, run.device)
    progress = {"rate": stage.lr, "scores": [], "best": 0.0}
    epoch, step, done = 1, 0, 0
    state = run.resume()
    if state:
        epoch, step, done = state["epoch"], state["step"], state["done"]
        network.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        progress = state["progress"]
    wrapped = distributed.wrap(network)

    def save(best: bool = False) -> None:
        content = {"model": network.state_dict(), "optimiser": optimiser.state_dict(), "thresholds": thresholds}
        run.save(step, epoch, content | {"progress": progress, "done": done}, best)

    if not stage.epochs:
        save(best=True)
    while epoch <= stage.epochs and progress["rate"] >= LOWEST_RATE:
        network.train()
        steps = batches(train, classes, config, stage, epoch, done, run.device)
        for number, parts in run.progress(steps, per_epoch - done, f"epoch {epoch}/{stage.epochs}"):
            set_rate(optimiser, stage, progress["rate"], epoch, step / (stage.epochs * per_epoch))
            optimiser.zero_grad(set_to_none=True)
            for batch in parts:
                terms = loss_terms(run, wrapped, batch, config.widths[number], config.asl)
                (sum(terms.values()) * batch.weight).backward()
            step, done = step + 1, done + 1
            run.watch(step, terms, parameters)
            optimiser.step()
            if step % run.runtime.log_every == 0:
                run.log("train", step, epoch, lr=optimiser.param_groups[0]["lr"], width=config.widths[number], **terms)
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        best = False
        if epoch % stage.validate_every == 0 or epoch == stage.epochs:
            best = validate(run, config, stage, network, test, thresholds, progress, step, epoch)
        epoch, done = epoch + 1, 0
        save(best)
    run.say(f"best PSNR {progress['best']:.2f} dB")


# -- what the loop is made of ----------------------------------------------------------------------------------------


def loss_terms(run: Run, network: nn.Module, batch: Batch, width: float, asl: float) -> dict[str, Tensor]:
    """The loss of section 2.6 at one width, as its terms."""
    moire, clean = (images.to(torch.float32).div(255) for images in (batch.moire, batch.clean))
    with run.autocast():
        outputs = network(moire.contiguous(memory_format=layout_of(moire.device)), width)
    return multi_scale(outputs, clean, asl)


def layout_of(device: torch.device) -> torch.memory_format:
    """Channels last on a GPU; on a CPU the backward passes of 16, 32 or 64 channels take twice as long in it."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def set_rate(optimiser: torch.optim.Optimizer, stage: Stage, rate: float, epoch: int, passed: float) -> None:
    """The learning rate of a step; epoch counts from 1, passed is the share of all steps that are done."""
    if stage.schedule == "multistep":
        rate = rate * multistep(epoch - 1, stage.milestones, stage.decay)
    elif stage.schedule == "linear":
        rate = rate * (1 - passed)
    for group in optimiser.param_groups:
        group["lr"] = rate


def load_start(run: Run, config: Config, network: nn.Module) -> None:
    """The weights a stage begins with: those given, or for the second stage the best of the first."""
    path = config.network.weights
    if run.stage == "second" and config.first.epochs:
        path = str(run.folder.parent / "first" / "best.pt")
    if path:
        models.load_weights(network, path)
        run.require_same("starting weights", checkpoint.file_sha256(path))


def validate(
    run: Run,
    config: Config,
    stage: Stage,
    network: nn.Module,
    test,
    thresholds: list[float],
    progress: dict,
    step: int,
    epoch: int,
) -> bool:
    """The routed evaluation after an epoch; keeps the score, adapts the rate, says whether it is the best so far."""
    found = evaluate(network, test, config, thresholds, run.sample(f"epoch_{epoch:03d}.png"))
    run.log("test", step, epoch, seconds=run.elapsed(), **found)
    run.say(f"epoch {epoch}/{stage.epochs}: PSNR {found['psnr_uint8']:.2f} dB of input {found['psnr_input']:.2f} dB")
    progress["scores"].append(round(found["psnr_uint8"], 5))
    if stage.schedule == "plateau":
        progress["rate"] = plateau(progress["rate"], progress["scores"], stage.plateau)
    best = found["psnr_uint8"] > progress["best"]
    if best:
        progress["best"] = found["psnr_uint8"]
    return best


if __name__ == "__main__":
    entry(main)
