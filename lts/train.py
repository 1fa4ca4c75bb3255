"""Lottery ticket scratcher: train in full precision, then quantised, freezing the weights that have settled.

python train.py --config cfg.yaml                      digits, about a minute on two CPU cores
python train.py --config configs/cifar100_resnet20_2bit.yaml
torchrun --nproc_per_node=4 train.py --config configs/imagenet_resnet18_2bit.yaml --float.checkpoint resnet18.pth
"""

from contextlib import nullcontext
from pathlib import Path

from common import checkpoint, distributed
from common.config import parse
from common.errors import InputError, NonFiniteError
from common.labelled import batches, describe, epoch_order, place, test_batches
from common.metrics import Accuracy
from common.run import Run, entry, run_folder, stages_to_run

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lts import accounting, data
from lts.config import Config
from lts.experiment import Account, build, build_scratcher, check, learning_rate, optimisers, quantise_as
from lts.method import Scratcher, collapsed, initialise, narrowest, scratchable_layers
from lts.weights import load_weights

__all__ = ["Config", "build", "evaluate", "main"]

STAGES = ("float", "quantised")


def main(argv: list[str]) -> Path:
    """Run the stages of one experiment; returns the run folder."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    check(config)
    train, test = data.load(config)
    about = describe(config.data, train)
    for stage in stages_to_run(command, "lts", STAGES):
        if stage == "float" and config.float.checkpoint:
            continue
        with Run("lts", config, command, name, stage, about) as run:
            place(train, config.data, run.device)
            place(test, config.data, run.device)
            {"float": train_float, "quantised": train_quantised}[stage](run, config, train, test)
    return run_folder(command, name)


# -- the two stages --------------------------------------------------------------------------------------------------


def train_float(run: Run, config: Config, train, test) -> None:
    """Plain cross entropy in full precision, with the recipe of the quantised stage (section 4)."""
    network = on_device(run, config, build(config, len(train.classes), quantised=False))
    epochs = config.float.epochs or config.optim.epochs
    milestones = config.optim.milestones if config.float.milestones is None else config.float.milestones
    fit(run, config, train, test, network, epochs, milestones)


def train_quantised(run: Run, config: Config, train, test) -> None:
    """The paper's algorithm: quantisation-aware training that freezes the weights whose levels have settled."""
    network = build(config, len(train.classes), quantised=False)
    path = float_weights(run, config)
    load_weights(network, path)
    run.require_same("float checkpoint", checkpoint.file_sha256(path))
    network = on_device(run, config, quantise_as(config, network))
    with run.autocast():
        initialise(network, first_images(run, config, train))
    require_ranges(network)
    steps = -(-len(train) // config.data.batch_size)
    scratcher = build_scratcher(config, network, steps)
    image, _ = train.fetch(torch.arange(1, device=train.labels.device), 0)
    levels = scratchable_layers(network)  # none where the config quantises no weight
    account = Account(network, image.to(run.device), config.freeze.record_counts) if levels else None
    fit(run, config, train, test, network, config.optim.epochs, config.optim.milestones, scratcher, account)


def float_weights(run: Run, config: Config) -> Path:
    """The best full-precision checkpoint, given or of stage `float`. Errors: InputError."""
    path = Path(config.float.checkpoint or run.folder.parent / "float" / "best.pt")
    if not path.exists():
        raise InputError(f"{path}: there are no full-precision weights; run stage float, or give --float.checkpoint")
    return path


def first_images(run: Run, config: Config, train) -> Tensor:
    """The first (micro-)batch of the first epoch, which the quantisers are initialised on; rank 0's counts."""
    order = epoch_order(config.seed, 1, torch.arange(len(train), device=run.device))[: config.data.batch_size]
    (first,) = batches(train, order, 1, config.data, run.device, micro_batches=run.runtime.micro_batches)
    return first[0].images


def on_device(run: Run, config: Config, network: nn.Module) -> nn.Module:
    """The network where it computes, with BatchNorm over all processes if asked for."""
    if config.optim.sync_batchnorm and run.device.type == "cuda" and distributed.world() > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network.to(run.device, memory_format=torch.channels_last)


# -- the loop --------------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    config: Config,
    train,
    test,
    network: nn.Module,
    epochs: int,
    milestones: tuple[int, ...],
    scratcher: Scratcher | None = None,
    account: Account | None = None,
) -> None:
    """Epochs of SGD (and Adam for the quantisers) with evaluation and checkpoints; the scratcher watches every step."""
    o = config.optim
    everything = torch.arange(len(train), device=run.device)
    parameters = [*network.parameters()]
    trained = optimisers(network, o.lr, o.lr_quantiser, o.momentum, o.weight_decay)
    rates = o.lr, o.lr_quantiser
    wrapped = distributed.wrap(network)
    progress = {"best": 0.0}
    epoch, step, done = 1, 0, 0
    state = run.resume()
    if state:
        epoch, step, done, progress = state["epoch"], state["step"], state["done"], state["progress"]
        network.load_state_dict(state["model"])
        for optimiser, saved in zip(trained, state["optimisers"]):
            optimiser.load_state_dict(saved)
        restore(state, scratcher, account, config.freeze.legacy_resume, run.device)

    def save(best: bool = False) -> None:
        content = {"model": network.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in trained]}
        content |= {"progress": progress, "done": done}
        content |= {"scratcher": scratcher.state_dict()} if scratcher else {}
        content |= {"account": account.state_dict()} if account else {}
        run.save(step, epoch, content, best)

    while epoch <= epochs:
        for optimiser, base in zip(trained, rates):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(base, epoch, milestones, o.decay)
        network.train()
        order = epoch_order(config.seed, epoch, everything)
        total = -(-len(order) // config.data.batch_size)
        steps = batches(
            train, order, epoch, config.data, run.device, start=done, micro_batches=run.runtime.micro_batches
        )
        for micro_batches in run.progress(steps, total - done, f"epoch {epoch}/{epochs}"):
            for optimiser in trained:
                optimiser.zero_grad(set_to_none=True)
            for batch in micro_batches:
                with run.autocast():
                    logits = wrapped(batch.images)
                loss = F.cross_entropy(logits.float(), batch.labels)
                (loss * batch.weight).backward()
            step, done = step + 1, done + 1
            watch(run, step, loss, network, parameters)
            if scratcher:
                scratcher.observe()
            with scratcher.held() if scratcher else nullcontext():
                for optimiser in trained:
                    optimiser.step()
            if account:
                account.note(scratcher)
            if step % run.runtime.log_every == 0:
                run.log("train", step, epoch, lr=trained[0].param_groups[0]["lr"], ce=loss.detach())
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        require_ranges(network)
        accuracy = evaluate(network, test, config, run.device)
        if scratcher:
            scratcher.find_rows()
        report = close_epoch(run, account, epoch == epochs)
        run.log("test", step, epoch, **accuracy)
        run.log("frozen", step, epoch, seconds=run.elapsed(), **report)
        frozen = f", frozen {report['frozen_weights']:.3f}" if report else ""
        run.say(f"epoch {epoch}/{epochs}: " + ", ".join(f"{k} {v:.2f}" for k, v in accuracy.items()) + frozen)
        best = accuracy["top1"] > progress["best"]
        progress["best"] = max(progress["best"], accuracy["top1"])
        epoch, done = epoch + 1, 0
        save(best)


def restore(state: dict, scratcher: Scratcher | None, account: Account | None, legacy: bool, device) -> None:
    """Bring scratcher and account to where a checkpoint left them. Errors: InputError for another schedule or bits."""
    try:
        if scratcher:
            scratcher.load_state_dict(state["scratcher"], legacy)
    except ValueError as error:
        raise InputError(f"the checkpoint cannot be continued: {error}") from error
    if account:
        account.load_state_dict(state["account"], device)


def watch(run: Run, step: int, loss: Tensor, network: nn.Module, parameters: list[Tensor]) -> None:
    """Note loss, gradient and the narrowest quantiser. Errors: NonFiniteError; InputError for collapsed bounds."""
    narrow = narrowest(network).to(run.device)
    try:
        run.watch(step, {"ce": loss, "range": torch.where(narrow > 0, 0.0, torch.nan)}, parameters)
    except NonFiniteError:
        require_ranges(network)
        raise


def require_ranges(network: nn.Module) -> None:
    """Refuse to go on with a quantiser whose range is not positive. Errors: InputError naming it."""
    if names := collapsed(network):
        raise InputError(
            f"the bounds of {', '.join(names[:5])} have collapsed (u <= l, or not a number): nothing can be "
            "quantised between them; lower optim.lr_quantiser, or look for constant weights or inputs"
        )


def close_epoch(run: Run, account: Account | None, last: bool) -> dict:
    """The epoch's account for the log; after the last one, a plot of the frozen share over time."""
    if account is None:
        return {}
    report = account.close_epoch()
    if last and distributed.is_main():
        accounting.plot_frozen(run.sample("frozen.png"), {"all layers": account.ledger.curve()})
    return report


@torch.inference_mode()
def evaluate(network: nn.Module, test, config: Config, device: torch.device) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent on the whole test set; quantised weights are computed once."""
    distributed.sync_buffers(network)
    network.eval()
    meter = Accuracy()
    for images, labels in test_batches(test, config.data, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
            meter.update(network(images).float(), labels)
    return meter.result()


if __name__ == "__main__":
    entry(main)
