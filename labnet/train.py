"""LAB-Net: train the two-branch network on triplets of shadow, mask and shadow-free picture.

python train.py --config cfg.yaml                   synthetic shadows on scikit-image photographs, about a minute
python train.py --config configs/istd.yaml --data.root ISTD --loss.vgg vgg16-397923af.pth
torchrun --nproc_per_node=2 train.py --config configs/istd.yaml --data.root ISTD --loss.vgg vgg16-397923af.pth
"""

from collections.abc import Iterator
from pathlib import Path

from common import distributed
from common.config import parse
from common.errors import InputError
from common.images import write_image
from common.randomness import permutation
from common.run import Run, entry, run_folder, stages_to_run
from common.shadow.loader import Part, batches

import numpy as np
import torch
from torch import Tensor, nn

from labnet import data
from labnet.config import Config
from labnet.eval import evaluate
from labnet.method import learning_rate, losses
from labnet.models import LABNet, VGGFeatures
from labnet.restore import remove_shadow
from labnet.transforms import resize

__all__ = ["Config", "build", "main"]

STAGES = ("train",)
SHOWN = 3  # test pictures of samples/


def main(argv: list[str]) -> Path:
    """Train one experiment; returns the run folder."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    if not config.optim.flat + config.optim.decay:
        raise InputError("optim.flat and optim.decay are both 0: there is no epoch to train")
    train, validation, test = data.load(config)
    for stage in stages_to_run(command, "labnet", STAGES):
        with Run("labnet", config, command, name, stage, data.describe(config, train)) as run:
            fit(run, config, train, validation, test)
    return run_folder(command, name)


def build(config: Config) -> LABNet:
    """The network of a config, initialised (section 2)."""
    m = config.model
    return LABNet(
        m.channels,
        eca=m.eca,
        lsa=m.lsa,
        branches=m.branches,
        widths=m.widths,
        dilation=m.dilation,
        output=m.output,
        reach=m.reach,
        lsa_size=m.lsa_size,
        ring=m.ring,
        chunked=m.chunked,
        start=m.start,
    )


class Step(nn.Module):
    """Network and loss as one module, so that DistributedDataParallel sees one forward pass."""

    def __init__(self, network: LABNet, features: VGGFeatures | None, config: Config):
        super().__init__()
        self.network = network
        self.features = [features]  # in a list: it is frozen and belongs neither to the gradient nor to checkpoints
        self.weights = (config.loss.perceptual, config.loss.gradient, config.loss.squared)

    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted loss terms of a batch of `TrainingSet.fetch`."""
        pred = self.network(values["input"], values["mask"], data.where_of(values))
        return losses(pred, values["target"], self.features[0], self.weights, values.get("counted"))


def fit(run: Run, config: Config, train, validation, test) -> None:
    """The whole training: Adam over shuffled pictures, 50 epochs at the full rate and 250 along a line (section 4)."""
    network = build(config).to(run.device, memory_format=torch.channels_last)
    features = load_features(config, run.device)
    step_module = distributed.wrap(Step(network, features, config))
    optim = config.optim
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, optim.lr, betas=(optim.beta1, optim.beta2))
    with torch.device("meta"):  # workers need the shape of the attention's grid, no weights
        prepared = data.TrainingSet(train, config, build(config))
    epochs, total = optim.flat + optim.decay, -(-len(train) // config.data.batch_size)

    # `summed` adds up the epoch's loss on the device; `best` is the lowest sum, or validation error, so far.
    epoch, step, done, best = 1, 0, 0, float("inf")
    summed = torch.zeros((), device=run.device)
    state = run.resume()
    if state:
        epoch, step, done, best = state["epoch"], state["step"], state["done"], state["best"]
        network.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        # Each process goes on with its share; only their sum is ever used.
        summed = state["summed"].to(run.device) / distributed.world()

    def save(is_best: bool = False) -> None:
        whole = distributed.sum_(summed.clone())
        content = {"model": network.state_dict(), "optimiser": optimiser.state_dict()}
        run.save(step, epoch, content | {"done": done, "best": best, "summed": whole}, is_best)

    while epoch <= epochs:
        rate = learning_rate(optim.lr, epoch, optim.flat, optim.decay)
        for group in optimiser.param_groups:
            group["lr"] = rate
        network.train()
        order = permutation(config.seed, epoch, len(train))
        for parts in run.progress(steps(prepared, order, epoch, config, run, done), total - done, f"epoch {epoch}"):
            optimiser.zero_grad(set_to_none=True)
            for part in parts:
                with run.autocast():
                    terms = step_module(part.values)
                loss = sum(terms.values()) * part.weight
                loss.backward()
                summed += loss.detach()
            step, done = step + 1, done + 1
            run.watch(step, terms, parameters)
            optimiser.step()
            if step % run.runtime.log_every == 0:
                run.log("train", step, epoch, lr=rate, **{name: term.detach() for name, term in terms.items()})
            if run.should_stop(step):
                save()
                run.leave()
            if run.should_save(step):
                save()
        measured = distributed.sum_(summed.clone()) / distributed.world()
        run.log("epoch", step, epoch, loss_sum=measured, lr=rate, seconds=run.elapsed())
        judged = float(measured)
        run.say(f"epoch {epoch}/{epochs}: summed loss {judged:.4f}")
        if due(config, epoch, epochs):
            draw(run, network, test, config, epoch)
        if validation:
            judged = float("inf")
            if due(config, epoch, epochs):
                scores = evaluate(network, validation, config, run.device, baselines=False)
                run.log("validation", step, epoch, **scores)
                judged = scores[f"error_all_{config.eval.protocols[0]}"]
        is_best = judged < best
        best = min(best, judged)
        summed = torch.zeros_like(summed)
        epoch, done = epoch + 1, 0
        save(is_best)


def steps(prepared, order: Tensor, epoch: int, config: Config, run: Run, done: int) -> Iterator[list[Part]]:
    """The micro-batches of an epoch from a step on, pictures in channels last."""
    options = {"workers": config.data.workers, "start": done, "micro_batches": run.runtime.micro_batches}
    for parts in batches(prepared, order, epoch, config.data.batch_size, run.device, **options):
        for part in parts:
            part.values["input"] = part.values["input"].contiguous(memory_format=torch.channels_last)
            part.values["target"] = part.values["target"].contiguous(memory_format=torch.channels_last)
        yield parts


def load_features(config: Config, device: torch.device) -> VGGFeatures | None:
    """The frozen VGG-16 of the perceptual loss, where its file is given. Errors: CheckpointError, InputError."""
    if config.loss.vgg is None:
        return None
    return VGGFeatures.load(config.loss.vgg).to(device, memory_format=torch.channels_last).eval()


def due(config: Config, epoch: int, epochs: int) -> bool:
    """Whether pictures and validation scores follow this epoch."""
    return epoch == epochs or (config.eval.every > 0 and epoch % config.eval.every == 0)


def draw(run: Run, network: LABNet, test, config: Config, epoch: int) -> None:
    """samples/epoch_NNN.png: shadow, result and shadow-free picture of a few test triplets, one row each."""
    if not distributed.is_main():
        return
    network.eval()
    size, rows = tuple(config.data.test_size) if config.data.test_size else None, []
    for number in range(min(SHOWN, len(test))):
        sample = test.read(number)
        result = remove_shadow(network, sample.shadow, sample.mask, config, run.device)
        rows.append(np.concatenate([resize(sample.shadow, size), result, resize(sample.free, size)], 1))
    widest = max(row.shape[1] for row in rows)
    rows = [np.pad(row, [(0, 0), (0, widest - row.shape[1]), (0, 0)]) for row in rows]
    write_image(run.sample(f"epoch_{epoch:03d}.png"), np.concatenate(rows))


if __name__ == "__main__":
    entry(main)
