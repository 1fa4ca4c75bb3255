"""What quantizer, layers, freeze_sim, train_sim and schedule hold: the quantiser and the freezing rule."""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lts import accounting
from lts.method import Quantised, Schedule, Scratcher, initialise, quantise
from lts.method.quantisers import BoundedActivation, BoundedWeight, WeightFunction
from lts.tests.archive import Archive, assert_close, assert_equal
from lts.train import optimisers

EXACT, GRADIENT, LAYER = 1e-6, 1e-4, 1e-5
FIRST_LOSSES, LATE, LATE_COUNT = 1e-4, 1e-2, 0.02
MODES = {0: "constant", 1: "linear", 2: "sine"}
BOUNDS = {"lW": "weight_quantiser.lower", "uW": "weight_quantiser.upper"}
BOUNDS |= {"lA": "activation_quantiser.lower", "uA": "activation_quantiser.upper"}


def differentiate(quantiser: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Q(x) and its gradients with respect to x, l and u."""
    x = x.clone().requires_grad_()
    q = quantiser(x) * getattr(quantiser, "factor", 1)
    return q, *torch.autograd.grad(q, (x, quantiser.lower, quantiser.upper), upstream)


def check_quantizer(arrays: dict[str, np.ndarray]) -> None:
    """Values and gradients of both quantisers at every bit width, and at the edges of the levels."""
    file = Archive(arrays)
    kinds = {"w": (BoundedWeight, "weight", "W"), "a": (BoundedActivation, "x", "A")}
    for bits in file["hp_bits"].tolist():
        for kind, (quantiser_class, name, letter) in kinds.items():
            at = f"{kind}{bits}"
            quantiser = quantiser_class(bits)
            quantiser.lower.data.copy_(file[f"param_{at}_l{letter}"])
            quantiser.upper.data.copy_(file[f"param_{at}_u{letter}"])
            found = differentiate(quantiser, file[f"in_{at}_{name}"], file[f"in_{at}_upstream"])
            expected = (f"out_{at}_q", f"grad_{at}_{name}", f"grad_{at}_l{letter}", f"grad_{at}_u{letter}")
            for ours, key, tolerance in zip(found, expected, (EXACT, EXACT, GRADIENT, GRADIENT)):
                assert_close(ours, file[key], tolerance, key)
    w = file["in_edge_weight"].requires_grad_()
    lower, upper = (file[f"hp_edge_{key}"].float().requires_grad_() for key in "lu")
    q = WeightFunction.apply(w, lower, upper, 3)
    assert_close(q, file["out_edge_q"], EXACT, "edge")
    grads = torch.autograd.grad(q, (w, lower, upper), torch.ones_like(q))
    for ours, key, tolerance in zip(grads, ("weight", "lW", "uW"), (EXACT, GRADIENT, GRADIENT)):
        assert_close(ours, file[f"grad_edge_{key}"], tolerance, f"edge {key}")
    file.finish()


def layer_of(file: Archive, name: str) -> Quantised:
    """The quantised layer that a prefix describes."""
    weight, bits = file[f"param_{name}_weight"], int(file[f"hp_{name}_bit"])
    if weight.ndim == 2:
        layer = nn.Linear(*reversed(weight.shape))
    else:
        groups = int(file[f"hp_{name}_groups"])
        stride, padding = int(file[f"hp_{name}_stride"]), int(file[f"hp_{name}_padding"])
        shape = weight.shape[1] * groups, len(weight), tuple(weight.shape[2:])
        layer = nn.Conv2d(*shape, stride, padding, groups=groups, bias=f"param_{name}_bias" in file)
    for key in ("weight", "bias")[: 1 + (f"param_{name}_bias" in file)]:
        getattr(layer, key).data.copy_(file[f"param_{name}_{key}"])
    return quantise(nn.Sequential(layer), bits, bits)[0]


def check_layers(arrays: dict[str, np.ndarray]) -> None:
    """Initialised bounds, output and all gradients of single layers."""
    file = Archive(arrays)
    for name in file.names(r"in_(.*)_x"):
        layer, x = layer_of(file, name), file[f"in_{name}_x"].requires_grad_()
        initialise(nn.Sequential(layer), x.detach())
        parameters = dict(layer.named_parameters())
        for key, own in BOUNDS.items():
            assert_close(parameters[own], file[f"out_{name}_{key}_init"], EXACT, f"{name} {key}")
        y = layer(x)
        assert_close(y, file[f"out_{name}_y"], LAYER, f"{name} output")
        y.backward(file[f"in_{name}_upstream"])
        assert_close(x.grad, file[f"grad_{name}_x"], GRADIENT, f"{name} x")
        for key in filter(lambda key: f"grad_{name}_{key}" in file, ("weight", "bias", *BOUNDS)):
            assert_close(parameters[BOUNDS.get(key, key)].grad, file[f"grad_{name}_{key}"], GRADIENT, f"{name} {key}")
    file.finish()


def check_freeze_sim(arrays: dict[str, np.ndarray]) -> None:
    """Every decision of whole simulated runs, bit for bit."""
    file = Archive(arrays)
    for number in range(int(file["hp_n_sims"])):
        simulate(file, f"s{number}")
    file.finish()


def simulate(file: Archive, sim: str) -> None:
    """One run: the weights and bounds of every forward are given."""
    setting = lambda key: file.number(f"hp_{sim}_{key}")
    weights, lower, upper = (file[f"in_{sim}_{key}"] for key in ("weight", "lW", "uW"))
    layer = nn.Conv2d(1, 1, 1, bias=False) if weights.ndim == 5 else nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(weights[0].clone())
    layer = quantise(nn.Sequential(layer), int(setting("bit")), 32)[0]
    mode = MODES[int(setting("mode"))]
    epochs = (int(setting("warmup_epoch")), int(setting("epochs")))
    schedule = Schedule(mode, int(setting("batch_num")), *epochs, setting("rate"))
    scratcher = Scratcher(nn.Sequential(layer), schedule, ema=setting("ema"), record_steps=True)
    ticket, quantiser, n = layer.ticket, layer.weight_quantiser, 2**layer.weight_bits - 1
    outputs = ("step", "threshold", "distance", "unchange_step", "saved_weight", "level", "q", "fixed", "gradmask")
    outputs = {key: file[f"out_{sim}_{key}"] for key in outputs}
    for t in range(len(weights)):
        expect = lambda key, t=t: outputs[key][t]
        with scratcher.held():
            layer.weight.data.copy_(weights[t])
        quantiser.lower.data.copy_(lower[t])
        quantiser.upper.data.copy_(upper[t])
        q = layer.quantised_weight()
        (gradient,) = torch.autograd.grad(q.sum(), layer.weight)
        scratcher.observe()
        at = f"{sim} forward {t}"
        assert scratcher.step == int(expect("step")), at
        assert_equal((gradient != 0).to(torch.int8), expect("gradmask"), f"{at} gradient")
        assert_close(q, expect("q"), EXACT, f"{at} q")
        assert_close(ticket.level / n, expect("level"), EXACT, f"{at} level")
        assert_close(ticket.distance.abs(), expect("distance"), EXACT, f"{at} distance")
        assert_equal(ticket.frozen_step.float(), expect("unchange_step"), f"{at} freezing steps")
        assert_equal(ticket.distance.signbit(), expect("unchange_step") != 0, f"{at} frozen")
        assert_equal(layer.weight.detach(), expect("saved_weight"), f"{at} saved weights")
        assert int(scratcher.frozen_counts()) == int(expect("fixed")), at
        rate = schedule.threshold(scratcher.step)
        assert (rate is None) == bool(expect("threshold").isnan()), at
        if rate is not None:
            assert_close(torch.tensor(rate / n), expect("threshold"), EXACT, f"{at} threshold")
    with torch.no_grad():
        layer.eval()
        assert_close(layer.quantised_weight(), file[f"out_{sim}_q_eval"], EXACT, f"{sim} evaluation")


def check_schedule(arrays: dict[str, np.ndarray]) -> None:
    """ρ of the growing schedules, whose settings are the arrays' names."""
    file = Archive(arrays)
    for name in file.names(r"out_(.*)_step"):
        mode, steps, warmup, epochs = re.fullmatch(r"(\w+)_(\d+)_(\d+)_(\d+)", name).groups()
        schedule = Schedule(MODES[0] if mode == "fixing" else mode, int(steps), int(warmup), int(epochs))
        ours = [schedule.threshold(step) for step in file[f"out_{name}_step"].tolist()]
        known = [float("nan") if rate is None else rate for rate in ours]
        torch.testing.assert_close(
            torch.tensor(known), file[f"out_{name}_rate"], rtol=EXACT, atol=EXACT, equal_nan=True
        )
    file.finish()


class SmallNet(nn.Module):
    """The network of train_sim (section 13), with channels as the file has them."""

    def __init__(self, file: Archive):
        super().__init__()
        c1, c2, fc = (file[f"param_{name}.weight"] for name in ("c1", "c2", "fc"))
        self.c1 = nn.Conv2d(c1.shape[1], len(c1), tuple(c1.shape[2:]), padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(len(c1))
        self.c2 = nn.Conv2d(c2.shape[1], len(c2), tuple(c2.shape[2:]), stride=2, padding=1, bias=False)
        self.b2 = nn.BatchNorm2d(len(c2))
        self.fc = nn.Linear(fc.shape[1], len(fc))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b1(self.c1(x)))
        return self.fc(F.relu(self.b2(self.c2(x))).mean((2, 3)))


def check_train_sim(arrays: dict[str, np.ndarray]) -> None:
    """A whole small training: loss and frozen weights of every step, costs, the final state and its logits."""
    file = Archive(arrays)
    net = SmallNet(file)
    given = {key: file[f"param_{key}"] for key in file.names(r"param_(.*)")}
    net.load_state_dict(given, strict=False)
    quantise(net, int(file["hp_bit"]), int(file["hp_bit"]))
    x, y = file["in_x"], file["in_y"]
    epochs, steps, size = (int(file[f"hp_{key}"]) for key in ("epochs", "batches", "batch"))
    initialise(net, x[:size])
    for key in file.names(r"out_afterinit_(.*)"):
        assert_close(entry(net, key), file[f"out_afterinit_{key}"], LAYER, f"after initialisation: {key}")
    schedule = Schedule(MODES[int(file["hp_mode"])], steps, int(file["hp_warmup"]), epochs)
    scratcher = Scratcher(net, schedule, ema=file.number("hp_ema"), record_steps=True)
    rates = [file.number(f"hp_{key}") for key in ("lr_m", "lr_q")]
    trained = optimisers(net, *rates, file.number("hp_momentum"), file.number("hp_wd"))
    total = sum(p.numel() for p in net.parameters())
    assert total == int(file["out_total_params"])
    losses, counts = [], []
    net.train()
    for _ in range(epochs):
        for i in range(steps):
            part = slice(i * size, (i + 1) * size)
            loss = F.cross_entropy(net(x[part]), y[part])
            for optimiser in trained:
                optimiser.zero_grad()
            loss.backward()
            scratcher.observe()
            with scratcher.held():
                for optimiser in trained:
                    optimiser.step()
            losses.append(loss.detach())
            counts.append(scratcher.frozen_counts().sum())
    losses, counts = torch.stack(losses), torch.stack(counts)
    assert_close(losses[:steps], file["out_loss"][:steps], FIRST_LOSSES, "losses of the first epoch")
    assert_close(losses, file["out_loss"], LATE, "losses")
    allowed = LATE_COUNT * total
    assert ((counts - file["out_fixed_count"]).abs() <= allowed).all(), "frozen counts"
    ratio = accounting.iteration_ratio(counts, total)
    assert ((ratio - file["out_fixed_ratio"]).abs() <= LATE_COUNT).all(), "frozen ratios"
    cost = torch.stack([torch.as_tensor(accounting.epoch_cost(part)) for part in ratio.split(steps)])
    assert ((cost.float() - file["out_epoch_cost"]).abs() <= LATE_COUNT * steps).all(), "epoch costs"
    final_state(file, net)
    with torch.no_grad():
        assert_close(net.eval()(x), file["out_eval_logits"], LATE, "evaluation")
    file.finish()


def entry(net: nn.Module, key: str) -> Tensor:
    """A state-dict entry by its official name."""
    layer, _, name = key.rpartition(".")
    return net.state_dict()[f"{layer}.{BOUNDS.get(name, name)}"]


def final_state(file: Archive, net: nn.Module) -> None:
    """Weights, bounds, BatchNorm and scratcher state after the last step, with frozen weights in effect."""
    for key in file.names(r"out_final_(.*)"):
        layer, _, name = key.rpartition(".")
        reference, where = file[f"out_final_{key}"], f"final {key}"
        ticket = getattr(net.get_submodule(layer), "ticket", None)
        if name == "init":
            assert not reference.any(), where
        elif name in ("prev_Qweight", "distance", "unchange_step", "saved_weight"):
            # saved_weight is of the last forward: only for frozen weights is that the final value
            frozen = file[f"out_final_{layer}.unchange_step"] != 0
            agree = (ticket.distance.signbit() == frozen).float().mean()
            assert agree >= 1 - LATE_COUNT, f"{where}: frozen weights agree in {agree:.3f}"
            ours = {
                "prev_Qweight": ticket.level / (2 ** net.get_submodule(layer).weight_bits - 1),
                "distance": ticket.distance.abs(),
                "unchange_step": ticket.frozen_step.float(),
                "saved_weight": net.get_submodule(layer).weight.detach(),
            }[name]
            both = frozen & ticket.distance.signbit() if name == "saved_weight" else torch.ones_like(frozen)
            assert_close(ours * both, reference * both, LATE, where)
        elif name == "weight" and ticket is not None:
            free = (file[f"out_final_{layer}.unchange_step"] == 0) & ~ticket.distance.signbit()
            if free.any():  # the parameter behind a frozen entry is not in effect
                assert_close(entry(net, key)[free], reference[free], LATE, where)
        else:
            assert_close(entry(net, key), reference, LATE, where)
