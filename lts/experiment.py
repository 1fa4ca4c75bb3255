"""What the stages of an experiment are made of: networks, optimisers, the scratcher, and the account of what froze."""

from common import checkpoint
from common.errors import InputError
from common.randomness import uniform

import torch
from torch import Tensor, nn

from lts import accounting, models
from lts.config import Config
from lts.data import CLASSES
from lts.method import Schedule, Scratcher, quantise, quantiser_parameters, scratchable_layers

RANDOM_ORDER = 64  # slot of the fixed random order of the control "random"


def build(config: Config, classes: int | None = None, quantised: bool = True) -> nn.Module:
    """The network of a stage with fresh weights. Errors: InputError for a network, bits or layer that do not exist."""
    classes = classes or CLASSES[config.data.name]
    network = models.build(config.model.name, classes, config.model.width)
    return quantise_as(config, network) if quantised else network


def quantise_as(config: Config, network: nn.Module) -> nn.Module:
    """Quantise a network in place as the config says. Errors: InputError."""
    q = config.quant
    try:
        overrides = dict(map(parse_override, q.overrides))
        return quantise(network, q.weight_bits, q.activation_bits, q.quantiser, q.first_last, overrides)
    except ValueError as error:
        raise InputError(f"quant: {error}") from error


def parse_override(text: str) -> tuple[str, tuple[int, int]]:
    """`LAYER=W/A` -> (LAYER, (W, A)). Errors: InputError."""
    layer, _, bits = text.partition("=")
    try:
        weight, activation = map(int, bits.split("/"))
    except ValueError:
        raise InputError(f"quant.overrides: {text} is not LAYER=W/A, such as conv1=8/8") from None
    return layer, (weight, activation)


def check(config: Config) -> None:
    """Refuse what cannot work before any data is read. Errors: InputError."""
    with torch.device("meta"):
        network = build(config)
    f = config.freeze
    if f.mode != "none":
        schedule(config, 1)
        if not scratchable_layers(network):
            raise InputError("freeze: no weight is quantised, so none can settle on a level; give freeze.mode none")
    if (f.select == "random") != (f.counts is not None) or (f.counts and f.mode == "none"):
        raise InputError(
            "freeze.select random needs freeze.counts, the checkpoint of a run with freeze.record_counts, "
            "and a mode; nothing else takes counts"
        )


def schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """The threshold of a config. Errors: InputError for a warm-up that leaves no epoch, or no step in an epoch."""
    f = config.freeze
    try:
        return Schedule(f.mode, steps_per_epoch, f.warmup, config.optim.epochs, f.rate)
    except ValueError as error:
        raise InputError(f"freeze: {error}") from error


def optimisers(
    network: nn.Module, lr: float, lr_quantiser: float, momentum: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """SGD over weights, biases and BatchNorm, and Adam over the quantisers' scalars where there are any (2.5)."""
    learned = [*quantiser_parameters(network)]
    ids = {id(p) for p in learned}
    others = [p for p in network.parameters() if id(p) not in ids]
    sgd = torch.optim.SGD(others, lr, momentum, weight_decay=weight_decay)
    return [sgd, torch.optim.Adam(learned, lr_quantiser)] if learned else [sgd]


def learning_rate(base: float, epoch: int, milestones: tuple[int, ...], decay: float) -> float:
    """The step schedule: times `decay` for each milestone that lies before the epoch (1-based)."""
    return base * decay ** sum(epoch > m for m in milestones)


def build_scratcher(config: Config, network: nn.Module, steps_per_epoch: int) -> Scratcher | None:
    """The scratcher of a config, None for the baseline. Errors: InputError for counts of another run."""
    f = config.freeze
    if f.mode == "none":
        return None
    options = {"ema": f.ema, "bounds_gradient": f.bounds_gradient, "frozen": f.frozen}
    options |= {"clean_start": f.clean_start, "record_steps": f.record_steps}
    if f.select == "random":
        device = next(network.parameters()).device
        options["counts"] = read_counts(f.counts).to(device)
        options["random"] = lambda layer, n: uniform(config.seed, layer, torch.arange(n, device=device), RANDOM_ORDER)
    try:
        return Scratcher(network, schedule(config, steps_per_epoch), **options)
    except ValueError as error:
        raise InputError(f"freeze: {f.counts}: {error}") from error


def read_counts(path: str) -> Tensor:
    """The frozen weights of each layer after every step of a run, int [steps, layers]. Errors: InputError."""
    counts = checkpoint.load_own(path, "lts", "quantised")["state"]["account"]["counts"]
    if counts is None:
        raise InputError(f"{path}: holds no counts; train it with --freeze.record_counts true")
    return counts


class Account:
    """What a quantised stage reports: frozen shares and their cost, and how stable the levels are.

    images: a batch of the size to count multiply-adds for, one image. record: keep the counts of every step.
    """

    def __init__(self, network: nn.Module, images: Tensor, record: bool):
        self.layers = scratchable_layers(network)
        sizes = {name: layer.weight.numel() for name, layer in self.layers.items()}
        macs = accounting.layer_macs(network, images)
        parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        self.ledger = accounting.Ledger(sizes, macs, parameters)
        self.history = accounting.LevelHistory()
        self.counts: list[Tensor] | None = [] if record else None

    def note(self, scratcher: Scratcher | None) -> None:
        """Take down one step; nothing leaves the device."""
        if scratcher is None:
            first = next(iter(self.layers.values()))
            counts = torch.zeros(len(self.layers), dtype=torch.int64, device=first.weight.device)
        else:
            counts = scratcher.frozen_counts()
        self.ledger.note(counts)
        if self.counts is not None:
            self.counts.append(counts.int())

    def close_epoch(self) -> dict[str, float]:
        """Numbers for the log, and the levels of all weights for the curve."""
        self.history.note([layer.integer_weight()[0] for layer in self.layers.values()])
        return self.ledger.close_epoch()

    def state_dict(self) -> dict:
        """Everything that a resumed run and eval.py need."""
        return {
            "ledger": self.ledger.state_dict(),
            "history": self.history.state_dict(),
            "summary": self.ledger.summary(),
            "per_layer": self.ledger.per_layer(),
            "frozen_curve": self.ledger.curve(),
            "counts": None if self.counts is None else torch.stack([*self.counts]).cpu() if self.counts else None,
        }

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Undo `state_dict`."""
        self.ledger.load_state_dict(state["ledger"], device)
        self.history.load_state_dict(state["history"])
        if self.counts is not None and state["counts"] is not None:
            self.counts = [*state["counts"].to(device)]
