"""SMMix: a network trained on images that it has mixed itself, by the regions that it attends to.

python train.py --config cfg.yaml                      digits on a canvas, about a minute on two CPU cores
torchrun --nproc_per_node=4 train.py --config configs/imagenet_deit_tiny.yaml --data.root $IMAGENET
"""

import time
from pathlib import Path

from common import checkpoint, distributed
from common.config import parse
from common.errors import InputError
from common.labelled import batches, describe, place, test_batches
from common.metrics import Accuracy
from common.run import Run, entry, run_folder, stages_to_run

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from smmix import data, models, visualise
from smmix.adapters import Adapter, adapt
from smmix.config import Config
from smmix.method import infer_grid, pool_regions, region_sizes
from smmix.mixing import build_mixer, step_random, transmix_share
from smmix.models.weights import load_for_finetuning
from smmix.optim import adamw, base_rate, learning_rate

__all__ = ["Config", "build", "evaluate", "main"]

STAGES = ("train",)
CLASSES = {"canvas": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}
SIZES = {"canvas": 16, "cifar10": 32, "cifar100": 32}


def main(argv: list[str]) -> Path:
    """Train one network; returns the run folder."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    distributed.start(config.run.device)  # before the data, whose batches are divided among the processes
    train, test = data.load(config)
    for stage in stages_to_run(command, "smmix", STAGES):
        with Run("smmix", config, command, name, stage, describe(config.data, train)) as run:
            place(train, config.data, run.device)
            place(test, config.data, run.device)
            fit(run, config, train, test)
    return run_folder(command, name)


def build(config: Config, classes: int | None = None) -> nn.Module:
    """The network of a config. Errors: InputError for an unknown name or an image that it cannot take."""
    return models.build(
        config.model.name,
        classes or CLASSES[config.data.name],
        image_size=SIZES.get(config.data.name, config.data.size),
        drop_path=config.model.drop_path,
        channels=1 if config.data.name == "canvas" else None,
    )


class Student(nn.Module):
    """What a training step asks of the network: class logits, and the logits of both regions of a mixed image."""

    def __init__(self, adapter: Adapter, config: Config):
        super().__init__()
        self.network, self.adapter, self.shared_head = adapter.network, adapter, config.model.shared_head
        self.attentive = config.mix.method == "transmix"
        self.parallel = distributed.world() > 1

    def forward(self, images: Tensor, source: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Logits [B, K], those of target and source region where source [B, N] is given, and scores for TransMix."""
        logits, tokens, *scores = self.adapter(images) if self.attentive else self.adapter.run(images)
        regions = ()
        if source is not None:
            head = classifier(self.network) if self.shared_head else self.network.token_head
            regions = head(pool_regions(tokens, source)).chunk(2)
        if self.parallel:  # DistributedDataParallel waits for the gradient of every parameter
            logits = logits + 0 * sum(p.sum() for p in self.network.token_head.parameters())
        return logits, regions, scores[0] if scores else None


def fit(run: Run, config: Config, train, test) -> None:
    """Epochs over mixed batches, with evaluation and checkpoints (section 2.7)."""
    mixer, network = build_mixer(config, len(train.classes)), build(config, len(train.classes))
    if config.model.start:
        load_for_finetuning(network, config.model.start)
        run.require_same("start", checkpoint.file_sha256(config.model.start))
    network.to(run.device)
    score = "class_row" if config.mix.method == "transmix" else config.model.score
    adapter = adapt(network, score=score, layers=config.model.score_layers)
    require_fit(config, adapter, train)
    student = distributed.wrap(Student(adapter, config))
    optimiser, parameters = adamw(config, network), list(network.parameters())
    ema = ModelEmaV3(network, config.optim.ema) if config.optim.ema else None
    saved = {"model": network, "optimiser": optimiser} | ({"ema": ema.module} if ema else {})
    progress = {"best": 0.0, "steps": 0, "looks": 0.0, "looking": 0.0}
    epoch, step, done = 1, 0, 0
    state = run.resume()
    if state:
        epoch, step, done, progress = state["epoch"], state["step"], state["done"], state["progress"]
        for name, part in saved.items():
            part.load_state_dict(state[name])

    def save(best: bool = False) -> None:
        content = {name: part.state_dict() for name, part in saved.items()}
        run.save(step, epoch, content | {"progress": progress, "done": done}, best)

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        began = time.perf_counter()
        with torch.autocast(run.device.type, enabled=False) if config.model.unmixed_fp32 else run.autocast():
            seen = adapter.look(images)
        progress["looking"] += time.perf_counter() - began
        return seen

    def forward(batch, rng) -> tuple[dict[str, Tensor], Tensor | None]:
        """The terms of a micro-batch's loss, and its un-mixed logits where there are any."""
        mixed = mixer(batch.images, batch.labels, look, rng)
        # An autocast of its own: one shared with the un-mixed pass would reuse weights cast without gradient.
        with run.autocast():
            logits, regions, scores = student(mixed.images, mixed.source)
        if scores is not None and mixed.box is not None:
            mixed = mixed._replace(own=transmix_share(mixed, scores))
        return mixer.losses(mixed, logits, *regions), mixed.reference

    while epoch <= config.optim.epochs:
        set_rate(config, optimiser, epoch)
        network.train()
        order = data.order_of(config, train, epoch - 1)
        total = -(-len(order) // config.data.batch_size)
        steps = batches(
            train, order, epoch, config.data, run.device, start=done, micro_batches=run.runtime.micro_batches
        )
        for micro_batches in run.progress(steps, total - done, f"epoch {epoch}/{config.optim.epochs}"):
            optimiser.zero_grad(set_to_none=True)
            draws = draws_of(config, epoch, step)
            first = distributed.rank() * len(micro_batches)
            for batch, rng in zip(micro_batches, draws[first:]):
                terms, unmixed = forward(batch, rng)
                (sum(terms.values()) * batch.weight).backward()
            regions = [mixer.branch(rng) == "regions" for rng in draws_of(config, epoch, step)]
            settle_unused(network, config, any(regions))
            step, done = step + 1, done + 1
            progress["steps"], progress["looks"] = step, progress["looks"] + sum(regions) / len(regions)
            run.watch(step, terms, parameters)
            if config.optim.clip:
                nn.utils.clip_grad_norm_(parameters, config.optim.clip)
            optimiser.step()
            if ema:
                ema.update(network, step)
            if step % run.runtime.log_every == 0:
                free = {} if unmixed is None else {"unmixed_top1": top1(unmixed, batch.labels)}
                run.log("train", step, epoch, lr=optimiser.param_groups[0]["lr"], **terms, **free)
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        accuracy = evaluate(network, test, config, run.device)
        if ema:
            accuracy |= {f"ema_{k}": v for k, v in evaluate(ema.module, test, config, run.device).items()}
        run.log("test", step, epoch, seconds=run.elapsed(), **accuracy)
        run.say(f"epoch {epoch}/{config.optim.epochs}" + "".join(f", {k} {v:.2f}" for k, v in accuracy.items()))
        best = accuracy["top1"] > progress["best"]
        progress["best"] = max(progress["best"], accuracy["top1"])
        epoch, done = epoch + 1, 0
        save(best)
    if distributed.is_main():
        images, _ = test.fetch(torch.arange(min(8, len(test) // 2 * 2), device=test.labels.device), 0)
        visualise.draw(adapter, images.to(run.device), run.sample("mixes.png"), test.statistics)


# -- what a step is made of ------------------------------------------------------------------------------------------


def require_fit(config: Config, adapter: Adapter, train) -> None:
    """Refuse, before anything is written, images whose attention scores fit no grid or no region."""
    images, _ = train.fetch(torch.arange(2, device=train.labels.device), 1)
    device = next(adapter.network.parameters()).device
    try:
        _, scores = adapter.look(images.to(device))
        rows, columns = config.mix.grid or infer_grid(scores.shape[1], *images.shape[2:])
        region_sizes(min(rows, columns), config.mix.low, config.mix.high)
    except (AssertionError, ValueError) as error:  # timm asserts the size of images
        raise InputError(f"model {config.model.name} on data {config.data.name}: {error}") from error
    if rows * columns != scores.shape[1] or images.shape[2] % rows or images.shape[3] % columns:
        raise InputError(
            f"mix.grid {rows} x {columns} does not fit {scores.shape[1]} attention scores on images of "
            f"{images.shape[2]} x {images.shape[3]} pixels"
        )


def classifier(network: nn.Module) -> nn.Module:
    """The linear layer that gives the class logits; Swin's lies inside a head of several."""
    return network.get_classifier() if hasattr(network, "get_classifier") else network.head


def draws_of(config: Config, epoch: int, step: int) -> list:
    """The generators of a step, fresh, one for each micro-batch of each process; all the same for `mix.draws batch`."""
    parts = range(distributed.world() * config.run.micro_batches)
    alone = config.mix.draws == "rank"
    return [step_random(config.seed, epoch, step, part if alone else 0) for part in parts]


def settle_unused(network: nn.Module, config: Config, used: bool) -> None:
    """No gradient for a token head that no process has used, so that AdamW leaves it alone; or zeros, by the switch."""
    for parameter in network.token_head.parameters():
        if not used:
            parameter.grad = None
        if parameter.grad is None and config.mix.zero_unused:
            parameter.grad = torch.zeros_like(parameter)


def set_rate(config: Config, optimiser: torch.optim.Optimizer, epoch: int) -> None:
    """The learning rate of an epoch (1-based)."""
    o = config.optim
    rate = learning_rate(epoch - 1, o.epochs, base_rate(config), o.min_lr, o.warmup, o.warmup_lr)
    for group in optimiser.param_groups:
        group["lr"] = rate


def top1(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of the batch, []."""
    return (logits.argmax(1) == labels).float().mean() * 100


@torch.inference_mode()
def evaluate(network: nn.Module, test, config: Config, device: torch.device) -> dict[str, float]:
    """Top-1 and top-5 in percent of the class head, and the mean cross entropy, on the whole test set."""
    network.eval()
    meter, total = Accuracy(), torch.zeros(2, device=device)
    for images, labels in test_batches(test, config.data, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
            logits = network(images).float()
        meter.update(logits, labels)
        total += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), total.new_tensor(len(labels))])
    loss, samples = distributed.sum_(total).tolist()
    return {**meter.result(), "loss": loss / samples}


if __name__ == "__main__":
    entry(main)
