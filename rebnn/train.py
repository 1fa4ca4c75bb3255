"""Resilient binary networks: a student becomes binary in two steps, and γ keeps its weights from oscillating.

python train.py --config cfg.yaml                      digits: teacher and both steps, about a minute on two CPU cores
python train.py --config configs/cifar10_resnet18.yaml
torchrun --nproc_per_node=8 train.py --config configs/imagenet_resnet18.yaml

Configs of detectors and of BERT are handed to train_detection.py and train_glue.py.
"""

import importlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from common import distributed
from common.config import parse
from common.labelled import batches, describe, epoch_order, place, test_batches
from common.metrics import Accuracy
from common.run import Run, entry, run_folder, stages_to_run

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebnn import data, families, figures, models
from rebnn.config import Config
from rebnn.method import (
    Balance,
    decay_groups,
    distribution_loss,
    kl_divergence,
    label_smoothing_loss,
    learning_rate,
)
from rebnn.pair import build, build_step1, build_step2, check, frozen_teacher

__all__ = ["Config", "build", "evaluate", "main"]

STAGES = ("teacher", "step1", "step2")
BINS = 61
"""bins of the histogram of latent weights"""


def main(argv: list[str]) -> Path:
    """Run the stages of one experiment; returns the run folder."""
    if family := families.family_of_file(families.config_file(argv)):
        return importlib.import_module(f"rebnn.{families.script('train', family)}").main(argv)
    config, command, name = parse(Config, argv, __doc__, STAGES)
    check(config)
    train, test = data.load(config)
    about = describe(config.data, train)
    for stage in stages_to_run(command, "rebnn", STAGES):
        if command.stage == "all" and not wanted(config, stage):
            continue
        with Run("rebnn", config, command, name, stage, about) as run:
            place(train, config.data, run.device)
            place(test, config.data, run.device)
            {"teacher": train_teacher, "step1": train_step1, "step2": train_step2}[stage](run, config, train, test)
    return run_folder(command, name)


def wanted(config: Config, stage: str) -> bool:
    """A teacher is trained unless its weights are given, and so is step 1; step 2 may be left out."""
    given = {"teacher": config.teacher.checkpoint, "step1": config.step2.start, "step2": not config.step2.epochs}
    return not given[stage]


# -- the three stages ------------------------------------------------------------------------------------------------


def train_teacher(run: Run, config: Config, train, test) -> None:
    """A real network on labels, for data sets whose teacher nobody hands out."""
    network = models.teacher(config.teacher.name, len(train.classes))
    network = network.to(run.device, memory_format=torch.channels_last)
    wrapped = distributed.wrap(network)

    def losses(batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with run.autocast():
            logits = wrapped(batch.images)
        return {"ce": F.cross_entropy(logits.float(), batch.labels)}, {}

    optimiser = adam(network.parameters(), config.teacher.lr)
    fit(run, config, train, test, network, optimiser, config.teacher.lr, config.teacher.epochs, losses)


def train_step1(run: Run, config: Config, train, test) -> None:
    """Binary activations, real weights (section 2.8)."""
    ask = frozen_teacher(run, config, len(train.classes))
    network = build_step1(run, config, len(train.classes))
    distil(run, config, train, test, network, config.step1, ask)


def train_step2(run: Run, config: Config, train, test) -> None:
    """Binary weights too, from step 1's, with fresh scales and γ."""
    ask = frozen_teacher(run, config, len(train.classes))
    network, balance = build_step2(run, config, len(train.classes))
    distil(run, config, train, test, network, config.step2, ask, balance)
    if distributed.is_main():
        lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        figures.draw_oscillation(lines, run.sample("oscillation.png"))
        figures.draw_latent(lines, run.sample("latent_weights.png"))


def distil(
    run: Run, config: Config, train, test, network: nn.Module, step, ask: Callable, balance: Balance | None = None
) -> None:
    """Either step: the student learns the teacher's distribution; labels are not used (section 2.9)."""
    decayed, rest = decay_groups(network.named_parameters(), config.decay_norm_bias)
    groups = [
        {"params": [*decayed.values()], "weight_decay": step.weight_decay},
        {"params": [*rest.values()], "weight_decay": 0.0},
    ]
    wrapped = distributed.wrap(network)

    def losses(batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        target = ask(batch.images)
        with run.autocast():
            logits = wrapped(batch.images)
        terms = {"distribution": distribution_loss(logits, target)}
        if config.loss.label_weight:
            smoothed = label_smoothing_loss(logits, batch.labels, config.loss.label_smoothing)
            terms["label"] = config.loss.label_weight * smoothed
        return terms, {"kl": kl_divergence(logits.detach(), target)}

    fit(run, config, train, test, network, adam(groups, step.lr), step.lr, step.epochs, losses, balance)


def adam(groups: Iterable, rate: float) -> torch.optim.Adam:
    """Adam as in section 4, in one fused kernel where the device has one."""
    groups = list(groups)
    first = groups[0]["params"][0] if isinstance(groups[0], dict) else groups[0]
    return torch.optim.Adam(groups, rate, (0.9, 0.999), 1e-8, fused=first.device.type in ("cpu", "cuda"))


# -- the loop --------------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    config: Config,
    train,
    test,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    rate: float,
    epochs: int,
    losses: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]],
    balance: Balance | None = None,
) -> None:
    """Epochs of Adam with linear decay, with evaluation, the balance of the weights, and checkpoints.

    losses: batch -> ({name: weighted loss term}, {name: what is logged beside them}).
    """
    everything = torch.arange(len(train), device=run.device)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    progress = {"best": 0.0, "history": []}
    seen = torch.zeros(2, dtype=torch.float64, device=run.device)  # sum of losses, samples of this epoch
    epoch, step, done = 1, 0, 0
    state = run.resume()
    if state:
        epoch, step, done, progress = (state[key] for key in ("epoch", "step", "done", "progress"))
        network.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        seen.copy_(state["seen"])
        if balance:
            balance.load_state_dict(state["balance"])
    elif balance:
        run.log("latent", 0, 0, **latent_weights(balance))

    def save(best: bool = False) -> None:
        content = {"model": network.state_dict(), "optimiser": optimiser.state_dict()}
        content |= {"progress": progress, "done": done, "seen": seen}
        if balance:
            content["balance"] = balance.state_dict()
        run.save(step, epoch, content, best)

    while epoch <= epochs:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(rate, epoch - 1, epochs)
        network.train()
        order = epoch_order(config.seed, epoch, everything)
        total = -(-len(order) // config.data.batch_size)
        steps = batches(
            train, order, epoch, config.data, run.device, start=done, micro_batches=run.runtime.micro_batches
        )
        for micro_batches in run.progress(steps, total - done, f"epoch {epoch}/{epochs}"):
            optimiser.zero_grad(set_to_none=True)
            for batch in micro_batches:
                terms, notes = losses(batch)
                loss = sum(terms.values())
                (loss * batch.weight).backward()
                share = len(batch.index) * (batch.weight > 0)
                seen += torch.stack([loss.detach().double() * share, torch.full_like(seen[0], share)])
            step, done = step + 1, done + 1
            run.watch(step, terms | (scales(balance) if balance else {}), parameters)
            optimiser.step()
            if balance:
                balance.step(mean_over_processes)
            if step % run.runtime.log_every == 0:
                notes |= {"reconstruction": balance.reconstruction()} if balance else {}
                run.log("train", step, epoch, lr=optimiser.param_groups[0]["lr"], **terms, **notes)
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        summary = {"loss": mean_of(seen)}
        if balance:
            report = balance.report()
            run.log("oscillation", step, epoch, **report)
            run.log("latent", step, epoch, **latent_weights(balance))
            summary |= {name: report[name] for name in ("flip", "sequential", "epoch_flip", "exact_zeros")}
        progress["history"].append(summary)
        accuracy = evaluate(network, test, config, run.device)
        run.log("test", step, epoch, seconds=run.elapsed(), train_loss=summary["loss"], **accuracy)
        run.say(f"epoch {epoch}/{epochs}: loss {summary['loss']:.4f}, top1 {accuracy['top1']:.2f}")
        best = accuracy["top1"] > progress["best"]
        progress["best"] = max(progress["best"], accuracy["top1"])
        epoch, done = epoch + 1, 0
        save(best)


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of a tensor over ranks, as DistributedDataParallel forms it for gradients."""
    return distributed.sum_(tensor).div_(distributed.world()) if distributed.world() > 1 else tensor


def mean_of(seen: Tensor) -> float:
    """The mean loss of the epoch over all ranks' samples; starts the sums anew."""
    total, samples = distributed.sum_(seen).tolist()
    seen.zero_()
    return total / samples


def scales(balance: Balance) -> dict[str, Tensor]:
    """What must stay finite beside the losses: γ, and the inverse of the smallest scale α."""
    return {"gamma": balance.gamma.amax(), "1/alpha (a scale has reached 0)": 1 / balance.smallest_scale()}


def latent_weights(balance: Balance, name: str | None = None) -> dict:
    """Histograms of the latent weights of a binary layer, by default the first: its first channel, and all of it."""
    name = name or next(iter(balance.layers))
    weight = balance.layers[name].latent().detach().float()
    edge = float(weight.abs().max())
    counts = [torch.histc(part, BINS, -edge, edge) for part in (weight[0], weight)]
    edges = torch.linspace(-edge, edge, BINS + 1)
    return {"layer": name, "edges": edges, "counts": counts[0].long(), "layer_counts": counts[1].long()}


@torch.inference_mode()
def evaluate(network: nn.Module, test, config: Config, device: torch.device) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent on the whole test set."""
    distributed.sync_buffers(network)
    network.eval()
    meter = Accuracy()
    for images, labels in test_batches(test, config.data, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
            meter.update(network(images).float(), labels)
    return meter.result()


if __name__ == "__main__":
    entry(main)
