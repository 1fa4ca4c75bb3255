"""Binary detectors: Faster-RCNN and SSD with 1-bit weights and activations, their signs held by γ.

python train_detection.py --config configs/embedded_detection.yaml    digits on photographs, two minutes
python train_detection.py --config configs/voc_fasterrcnn_r18.yaml --data.root DIR --detector.weights FILE
torchrun --nproc_per_node=4 train_detection.py --config configs/coco_ssd.yaml --data.root DIR
"""

import itertools
from pathlib import Path

from common import distributed
from common.config import parse
from common.run import Run, entry, run_folder, stages_to_run

import torch
from torch import nn

from rebnn import families, figures
from rebnn.detection import data
from rebnn.detection.config import Config, Step
from rebnn.detection.evaluation import detect, evaluate
from rebnn.detection.pair import build, build_step, check, epochs_or_iterations
from rebnn.detection.pictures import SHOWN, draw_sheet
from rebnn.detection.schedule import multi_step
from rebnn.method import Balance
from rebnn.train import latent_weights, mean_of, mean_over_processes, scales

__all__ = ["Config", "build", "main"]

STAGES = ("step1", "step2")


def main(argv: list[str]) -> Path:
    """Run the stages of one experiment; returns the run folder."""
    file = families.config_file(argv)
    families.require(families.family_of_file(file), "detection", "train", file)
    config, command, name = parse(Config, argv, __doc__, STAGES)
    check(config)
    train, test = data.load(config)
    about = data.describe(config.data, train)
    for stage in stages_to_run(command, "rebnn", STAGES):
        if not epochs_or_iterations(getattr(config, stage)):
            continue
        with Run("rebnn", config, command, name, stage, about) as run:
            train_step(run, config, stage, train, test)
    return run_folder(command, name)


def train_step(run: Run, config: Config, stage: str, train: data.Scenes, test: data.Scenes) -> None:
    """Either step: binary activations, and in step 2 binary weights with their γ (section 2.8)."""
    network, balance = build_step(run, config, stage, len(train.classes))
    fit(run, config, getattr(config, stage), train, test, network, balance)
    few = test.first(SHOWN)
    found = detect(network, few, run.device, config.run.precision)
    if distributed.is_main():
        draw_sheet(run.sample("detections.png"), few, found)
        if balance:
            lines = figures.read_log(run.folder)
            figures.draw_oscillation(lines, run.sample("oscillation.png"))
            figures.draw_latent(lines, run.sample("latent_weights.png"))


def fit(
    run: Run,
    config: Config,
    settings: Step,
    train: data.Scenes,
    test: data.Scenes,
    network: nn.Module,
    balance: Balance | None,
) -> None:
    """The optimiser with warm-up and milestones, with evaluation, the balance of the weights, and checkpoints."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = make_optimiser(parameters, settings)
    per_epoch = data.steps_of(train)
    total = settings.iterations or settings.epochs * per_epoch
    epochs = -(-total // per_epoch)
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
    else:
        for part, scenes in (("train", train), ("test", test)):
            run.log("data", 0, 0, part=part, **scenes.counts)
            run.say(f"{part} images: " + ", ".join(f"{count} {name}" for name, count in scenes.counts.items()))
        if balance:
            run.log("latent", 0, 0, **latent_weights(balance))
    wrapped = distributed.wrap(network)

    def save(best: bool = False) -> None:
        content = {"model": network.state_dict(), "optimiser": optimiser.state_dict()}
        content |= {"progress": progress, "done": done, "seen": seen}
        if balance:
            content["balance"] = balance.state_dict()
        run.save(step, epoch, content, best)

    while epoch <= epochs:
        network.train()
        length = min(per_epoch, total - (epoch - 1) * per_epoch)
        steps = data.batches(train, epoch, run.device, done, run.runtime.micro_batches)
        steps = itertools.islice(steps, length - done)
        for micro_batches in run.progress(steps, length - done, f"epoch {epoch}/{epochs}"):
            position = step if settings.iterations else epoch - 1
            for group in optimiser.param_groups:
                group["lr"] = multi_step(settings.lr, position, settings.milestones, step, settings.warmup)
            optimiser.zero_grad(set_to_none=True)
            for batch in micro_batches:
                network.draw(batch.index)
                with run.autocast():
                    terms = wrapped(batch.images, batch.targets)
                loss = sum(terms.values())
                (loss * batch.weight).backward()
                share = len(batch.index) * (batch.weight > 0)
                seen += torch.stack([loss.detach().double() * share, torch.full_like(seen[0], share)])
            step, done = step + 1, done + 1
            run.watch(step, terms | (scales(balance) if balance else {}), parameters)
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimiser.step()
            if balance:
                balance.step(mean_over_processes)
            if step % run.runtime.log_every == 0:
                notes = {"reconstruction": balance.reconstruction()} if balance else {}
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
        best = False
        if epoch % config.eval_every == 0 or epoch == epochs:
            scored = evaluate(network, test, run.device, config.run.precision)
            run.log("test", step, epoch, seconds=run.elapsed(), train_loss=summary["loss"], **scored)
            run.say(f"epoch {epoch}/{epochs}: loss {summary['loss']:.4f}, mAP {scored['map_area']:.2f}")
            best = scored["map_area"] > progress["best"]
            progress["best"] = max(progress["best"], scored["map_area"])
        epoch, done = epoch + 1, 0
        save(best)


def make_optimiser(parameters: list[nn.Parameter], settings: Step) -> torch.optim.Optimizer:
    """SGD with momentum or Adam, as the step says, in one fused kernel where the device has one."""
    options = {"weight_decay": settings.weight_decay, "fused": parameters[0].device.type in ("cpu", "cuda")}
    if settings.optimiser == "sgd":
        return torch.optim.SGD(parameters, settings.lr, settings.momentum, **options)
    return torch.optim.Adam(parameters, settings.lr, **options)


if __name__ == "__main__":
    entry(main)
