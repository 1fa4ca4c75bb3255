"""Knowledge condensation distillation: train a teacher, then a student on knowledge that is condensed as it learns.

python train.py --config cfg.yaml                      digits, about a minute on two CPU cores
python train.py --config configs/resnet32x4_resnet8x4_kd.yaml
torchrun --nproc_per_node=8 train.py --config configs/imagenet_resnet34_resnet18.yaml
"""

import time
from collections.abc import Callable
from pathlib import Path

from common import checkpoint, distributed
from common.config import parse
from common.labelled import batches, describe, epoch_order, place, test_batches
from common.metrics import Accuracy
from common.randomness import uniform
from common.run import Run, entry, run_folder, stages_to_run

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kcd import data, distillers, models
from kcd.config import Config
from kcd.method import Condenser, learning_rate
from kcd.pair import InitStep, StudentStep, build, build_pair

__all__ = ["Config", "build", "evaluate", "main"]

STAGES = ("teacher", "init", "student")
SMALL_NETWORKS = ("MobileNetV2", "ShuffleV1", "ShuffleV2")
RANDOM_RANK = 64  # slot of the fixed random order of the control "random"


def main(argv: list[str]) -> Path:
    """Run the stages of one experiment; returns the run folder."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    train, test = data.load(config)
    about = describe(config.data, train)
    for stage in stages_to_run(command, "kcd", STAGES):
        if not wanted(config, stage):
            continue
        with Run("kcd", config, command, name, stage, about) as run:
            place(train, config.data, run.device)
            place(test, config.data, run.device)
            {"teacher": train_teacher, "init": initialise, "student": distil}[stage](run, config, train, test)
    return run_folder(command, name)


def wanted(config: Config, stage: str) -> bool:
    """A teacher is trained unless its weights are given; only three methods have an initialisation."""
    if stage == "teacher":
        return not config.teacher.checkpoint
    return stage == "student" or distillers.find(config.distill.method).init_stage


# -- the three stages ------------------------------------------------------------------------------------------------


def train_teacher(run: Run, config: Config, train, test) -> None:
    """Plain cross entropy with the student's recipe (section 4)."""
    network = models.build(config.teacher.name, len(train.classes), config.teacher.width)
    network = network.to(run.device, memory_format=torch.channels_last)
    rate = base_rate(config, config.teacher.name)
    optimiser = sgd(config, network.parameters(), rate)
    epochs = config.teacher.epochs or config.optim.epochs
    wrapped = distributed.wrap(network)

    def terms(batch) -> dict[str, Tensor]:
        with run.autocast():
            logits = wrapped(batch.images)
        return {"ce": F.cross_entropy(logits.float(), batch.labels)}

    fit(run, config, train, test, network, {"model": network}, optimiser, epochs, rate, terms)


def initialise(run: Run, config: Config, train, test) -> None:
    """The first stage of AB, FT and FSP (section 2.7): full set, constant rate, nothing recorded."""
    student, teacher, distiller = build_pair(run, config, train)
    step = InitStep(student, distiller)
    slow = config.distill.method == "factor" and config.student.name.lower().startswith(("resnet", "wrn"))
    rate = 0.01 if slow else base_rate(config, config.student.name)
    optimiser = sgd(config, [p for p in step.parameters() if p.requires_grad], rate)
    wrapped = distributed.wrap(step)

    def terms(batch) -> dict[str, Tensor]:
        with run.autocast():
            return {config.distill.method: wrapped(batch.images, teacher(batch.images)[0])}

    saved = {"model": student, "distiller": distiller}
    fit(run, config, train, None, step, saved, optimiser, config.distill.init_epochs, None, terms)


def distil(run: Run, config: Config, train, test) -> None:
    """The paper's algorithm: T epochs of distillation that record values, then condense, and so on (section 2.5)."""
    student, teacher, distiller = build_pair(run, config, train)
    if distiller.init_stage:
        initialised = checkpoint.load_own(run.folder.parent / "init" / "last.pt", "kcd", "init")["state"]
        student.load_state_dict(initialised["model"])
        distiller.load_state_dict(initialised["distiller"])
    step = StudentStep(student, distiller, config)
    rate = base_rate(config, config.student.name)
    optimiser = sgd(config, [p for m in (student, *distiller.main_modules()) for p in m.parameters()], rate)
    condenser = build_condenser(config, train, run.device)
    wrapped = distributed.wrap(step)

    def terms(batch) -> dict[str, Tensor]:
        with run.autocast():
            features, teacher_logits = teacher(batch.images)
            losses, logits = wrapped(batch.images, batch.labels, batch.index, features, teacher_logits)
        if batch.weight:
            condenser.record(batch.index, logits, teacher_logits, batch.labels)
        return losses

    saved = {"model": student, "distiller": distiller}
    fit(run, config, train, test, step, saved, optimiser, config.optim.epochs, rate, terms, condenser)


# -- what the stages are made of -------------------------------------------------------------------------------------


def build_condenser(config: Config, train, device: torch.device) -> Condenser:
    """The knowledge set of a config, on the device."""
    c = config.condense
    condenser = Condenser(
        len(train),
        version=c.version,
        criterion=c.criterion,
        tau=c.tau,
        interval=c.interval,
        stages=c.stages,
        warmup=c.warmup,
        alpha=c.alpha,
        mix_min=c.mix_min,
        record_scope=c.record_scope,
        at_last_epoch=c.at_last_epoch,
        balance=train.labels.to(device) if c.balance_classes else None,
        random=uniform(config.seed, 0, torch.arange(len(train), device=device), RANDOM_RANK),
        device=device,
    )
    data.load_official_state(config, train, condenser)
    return condenser


def base_rate(config: Config, network: str) -> float:
    """The learning rate of section 4: 0.05, and 0.01 for the three small networks."""
    return config.optim.lr or (0.01 if network in SMALL_NETWORKS else 0.05)


def sgd(config: Config, parameters, rate: float) -> torch.optim.SGD:
    """SGD with momentum over what is trained."""
    return torch.optim.SGD(parameters, rate, config.optim.momentum, weight_decay=config.optim.weight_decay)


# -- the loop --------------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    config: Config,
    train,
    test,
    module: nn.Module,
    saved: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    epochs: int,
    rate: float | None,
    terms_of: Callable[..., dict[str, Tensor]],
    condenser: Condenser | None = None,
) -> None:
    """Epochs of SGD over the kept points, with evaluation, condensation and checkpoints.

    module: in training mode during an epoch. saved: {name: module} that a checkpoint holds. rate: base learning rate
    of the step schedule, None for the optimiser's constant one. terms_of: batch -> {name: weighted loss term}.
    """
    everything = torch.arange(len(train), device=run.device)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    progress = {"visits": 0, "best": 0.0, "overhead": 0.0}
    epoch, step, done = 1, 0, 0
    state = run.resume()
    if state:
        epoch, step, done = state["epoch"], state["step"], state["done"]
        for name, part in saved.items():
            part.load_state_dict(state[name])
        optimiser.load_state_dict(state["optimiser"])
        progress = state["progress"]
        if condenser:
            condenser.load_state_dict(state["condenser"])
            data.replay(train, condenser)

    def save(best: bool = False) -> None:
        content = {name: part.state_dict() for name, part in saved.items()}
        content |= {"optimiser": optimiser.state_dict(), "progress": progress, "done": done}
        if condenser:
            condenser.merge(distributed.sum_)
            content["condenser"] = condenser.state_dict()
        run.save(step, epoch, content, best)

    while epoch <= epochs:
        if rate is not None:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(rate, epoch, config.optim.decay_epochs, config.optim.decay)
        module.train()
        for part in saved.values():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        order = epoch_order(config.seed, epoch, condenser.kept if condenser else everything)
        total = -(-len(order) // config.data.batch_size)
        steps = batches(
            train, order, epoch, config.data, run.device, start=done, micro_batches=run.runtime.micro_batches
        )
        for micro_batches in run.progress(steps, total - done, f"epoch {epoch}/{epochs}"):
            optimiser.zero_grad(set_to_none=True)
            for batch in micro_batches:
                terms = terms_of(batch)
                (sum(terms.values()) * batch.weight).backward()
            step, done = step + 1, done + 1
            run.watch(step, terms, parameters)
            optimiser.step()
            if step % run.runtime.log_every == 0:
                run.log("train", step, epoch, lr=optimiser.param_groups[0]["lr"], **terms)
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        progress["visits"] += len(order)
        report = {"kept": len(order), "sample_visits": progress["visits"] / (epoch * len(train))}
        if condenser:
            report |= condense(run, condenser, train, epoch, epochs, progress)
        accuracy = evaluate(saved["model"], test, config, run.device) if test is not None else {}
        if accuracy:
            run.log("test", step, epoch, **accuracy)
        run.log("knowledge", step, epoch, seconds=run.elapsed(), **report)
        run.say(f"epoch {epoch}/{epochs}: {len(order)} points" + "".join(f", {k} {v:.2f}" for k, v in accuracy.items()))
        best = accuracy.get("top1", 0.0) > progress["best"]
        if best:
            progress["best"] = accuracy["top1"]
        epoch, done = epoch + 1, 0
        save(best)


def condense(run: Run, condenser: Condenser, train, epoch: int, epochs: int, progress: dict) -> dict:
    """The end of an E-step: merge the record and, every T epochs, rank, keep and summarise."""
    began = time.perf_counter()
    condenser.merge(distributed.sum_)
    change = data.condense(train, condenser) if condenser.due(epoch, epochs) else {}
    progress["overhead"] += time.perf_counter() - began
    report = {"condensation_seconds": progress["overhead"]}
    if change:
        labels = train.labels.to(run.device)[change["kept"]]
        report["kept_per_class"] = torch.bincount(labels, minlength=len(train.classes))
        report |= {"lost": len(change["lost"]), "reentered": change["reentered"]}
    if "blends" in change and distributed.is_main():
        data.draw_blends(change["blends"], run.sample(f"blends_{epoch:03d}.png"))
    return report


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
