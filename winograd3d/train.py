"""Low-rank Winograd transformation: train a 3D CNN, learn its Winograd-domain masks, fine-tune what is kept.

python train.py --config cfg.yaml                      moving digits, about a minute on two CPU cores
python train.py --config configs/c3d_ucf101_50.yaml --data.root $DATA
torchrun --nproc_per_node=8 train.py --config configs/r3d18_ucf101_50.yaml --data.root $DATA
"""

import copy
import math
from pathlib import Path

from common import checkpoint, distributed
from common.config import parse
from common.errors import InputError
from common.labelled import batches, describe, epoch_order
from common.run import Run, entry, run_folder, stages_to_run

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from winograd3d import data, models
from winograd3d.config import Config, Stage
from winograd3d.evaluation import evaluate
from winograd3d.masks import MaskLearner, warnings, winograd_layers
from winograd3d.method import cubic_sparsity
from winograd3d.network import build, build_dense, conversion_gap, load_converted, pretrained_path, to_winograd
from winograd3d.pictures import draw_masks

__all__ = ["Config", "build", "main"]

STAGES = ("pretrain", "stage1", "stage2")
GAP_CLIPS = 50  # test clips on which the converted network is compared with the dense one


def main(argv: list[str]) -> Path:
    """Run the stages of one experiment; returns the run folder."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    train, test = data.load(config.data, config.seed)
    about = describe(config.data, train)
    for stage in stages_to_run(command, "winograd3d", STAGES):
        if stage == "pretrain" and config.model.checkpoint:
            continue
        with Run("winograd3d", config, command, name, stage, about) as run:
            {"pretrain": pretrain, "stage1": learn_masks, "stage2": finetune}[stage](run, config, train, test)
    return run_folder(command, name)


# -- the three stages ------------------------------------------------------------------------------------------------


def pretrain(run: Run, config: Config, train, test) -> None:
    """The dense network, from scratch or from given weights, with cross entropy (section 4)."""
    network = build_dense(config, len(train.classes))
    if config.model.init:
        loaded = models.load_weights(network, config.model.init)
        if loaded.pixels and loaded.pixels != config.data.normalisation:
            raise InputError(
                f"{config.model.init}: holds {loaded.layout} weights, "
                f"which expect --data.normalisation {loaded.pixels}, not {config.data.normalisation}"
            )
        run.say(f"{config.model.init}: {loaded.layout} weights, fresh: {', '.join(loaded.fresh) or 'nothing'}")
    network.to(run.device)
    fit(run, config, config.pretrain, train, test, network, optimiser_of(config, network))


def learn_masks(run: Run, config: Config, train, test) -> None:
    """Stage 1: convert, then learn weights and masks together; gradients pass the masks (section 2.8)."""
    dense = build_dense(config, len(train.classes))
    models.load_weights(dense, pretrained_path(run, config))
    network = copy.deepcopy(dense)
    conversion = to_winograd(network, config)
    for layer, reason in conversion.refused.items():
        run.say(f"{layer} stays as it is: {reason}")
    learner = MaskLearner(network, config.prune.score, config.prune.beta, config.prune.scope, mean_over_ranks)
    clips = test.clips(torch.arange(min(GAP_CLIPS, len(test))), 1)[:, 0]
    gap = conversion_gap(dense, network, clips)
    run.say("against the dense network: " + ", ".join(f"{name} {value:.2e}" for name, value in gap.items()))
    network.to(run.device)
    learner.start()
    fit(run, config, config.stage1, train, test, network, optimiser_of(config, network), learner, gap)


def finetune(run: Run, config: Config, train, test) -> None:
    """Stage 2: fine-tune under the fixed masks (section 2.8)."""
    path = run.folder.parent / "stage1" / "last.pt"
    network = build(config, len(train.classes))
    state = load_converted(network, path, "stage1")
    run.require_same("stage 1", checkpoint.file_sha256(path))
    network.to(run.device)
    optimiser = optimiser_of(config, network)
    if config.optim.keep_momentum:
        optimiser.load_state_dict(state["optimiser"])
    for warning in warnings(network):
        run.say(warning)
    gap = {name: state["progress"][name] for name in ("weight_gap", "logit_gap")}
    fit(run, config, config.stage2, train, test, network, optimiser, None, gap)


# -- what the stages are made of -------------------------------------------------------------------------------------


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over processes, as DistributedDataParallel gives it of gradients."""
    return distributed.sum_(tensor) / distributed.world()


def optimiser_of(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    """SGD or Adam over everything trained; groups for the head's rate and for factors without weight decay."""
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    in_head = {id(parameter) for parameter in head.parameters()}
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in network.named_parameters():
        factor = config.optim.head_lr if id(parameter) in in_head else 1.0
        kept_free = name.endswith((".P", ".Q")) and not config.optim.decay_factors
        groups.setdefault((factor, 0.0 if kept_free else config.optim.weight_decay), []).append(parameter)
    made = [{"params": own, "factor": factor, "weight_decay": decay} for (factor, decay), own in groups.items()]
    if config.optim.optimiser == "adam":
        return torch.optim.Adam(made)
    return torch.optim.SGD(made, momentum=config.optim.momentum)


def learning_rate(stage: Stage, step: int, steps: int, epoch: int) -> float:
    """The rate of step 0 … steps − 1, which lies in epoch 1 … epochs (section 4)."""
    if stage.schedule == "cosine":
        return stage.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
    if stage.schedule == "step":
        return stage.lr * stage.decay ** sum(epoch > end for end in stage.decay_epochs)
    return stage.lr


# -- the loop --------------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    config: Config,
    stage: Stage,
    train,
    test,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    learner: MaskLearner | None = None,
    notes: dict[str, float] | None = None,
) -> None:
    """Epochs of cross entropy with evaluation and checkpoints; with a learner, each step also moves the masks.

    The mask of a step comes from the step before; in the first it is all ones. notes: numbers that the checkpoint
    carries on to eval.py.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    everything = torch.arange(len(train))
    per_epoch = -(-len(train) // config.data.batch_size)
    steps = stage.epochs * per_epoch
    progress = {"best": 0.0, **(notes or {})}
    epoch, step, done = 1, 0, 0
    state = run.resume()
    if state:
        epoch, step, done, progress = state["epoch"], state["step"], state["done"], state["progress"]
        network.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    wrapped = distributed.wrap(network)

    def save(best: bool = False) -> None:
        content = {"model": network.state_dict(), "optimiser": optimiser.state_dict()}
        run.save(step, epoch, {**content, "progress": progress, "done": done}, best)

    while epoch <= stage.epochs:
        network.train()
        order = epoch_order(config.seed, epoch, everything)
        fed = batches(train, order, epoch, config.data, run.device, start=done, micro_batches=run.runtime.micro_batches)
        for micro_batches in run.progress(fed, per_epoch - done, f"epoch {epoch}/{stage.epochs}"):
            for group in optimiser.param_groups:
                group["lr"] = group["factor"] * learning_rate(stage, step, steps, epoch)
            optimiser.zero_grad(set_to_none=True)
            loss = 0.0
            for batch in micro_batches:
                with run.autocast():
                    logits = wrapped(batch.images)
                part = F.cross_entropy(logits.float(), batch.labels) * batch.weight
                part.backward()
                loss = loss + part.detach()
            step, done = step + 1, done + 1
            run.watch(step, {"loss": loss}, parameters)
            if config.optim.clip:
                torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip)
            if learner:
                learner.update(sparsity_at(config, step, steps))
            optimiser.step()
            if step % run.runtime.log_every == 0:
                run.log("train", step, epoch, lr=optimiser.param_groups[0]["lr"], loss=loss)
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        epoch, done = epoch + 1, 0
        save(finish_epoch(run, config, network, test, step, epoch - 1, progress))


def sparsity_at(config: Config, step: int, steps: int) -> float:
    """ρ after `step` of the stage's steps, a cubic from the first on (section 2.7)."""
    return cubic_sparsity(step, config.prune.first, config.prune.sparsity, 0, config.prune.ramp * steps)


def finish_epoch(run: Run, config: Config, network: nn.Module, test, step: int, epoch: int, progress: dict) -> bool:
    """Evaluate on one clip of each test video, log, draw the masks; whether this is the best epoch so far."""
    distributed.sync_buffers(network)
    accuracy = evaluate(network, test, config.data, run.device, run.runtime.precision == "bf16", clips=1)
    layers = winograd_layers(network)
    kept = {f"kept/{name}": layer.kept() / layer.columns for name, layer in layers.items()}
    run.log("test", step, epoch, seconds=run.elapsed(), **accuracy, **kept)
    if layers and distributed.is_main():
        draw_masks(layers, run.sample("kept.png"))
    run.say(f"epoch {epoch}: " + ", ".join(f"{name} {value:.2f}" for name, value in accuracy.items()))
    best = accuracy["clip_top1"] > progress["best"]
    progress["best"] = max(progress["best"], accuracy["clip_top1"])
    return best


if __name__ == "__main__":
    entry(main)
