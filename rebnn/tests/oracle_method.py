"""What the oracles of the binariser, the activations, the losses and the oscillation hold, checked in float64."""

from common.metrics import Accuracy

import numpy as np
import torch
from torch import Tensor, nn

from rebnn import models
from rebnn.data import EIGENVALUES, EIGENVECTORS, lighting
from rebnn.method import (
    Balance,
    BinaryConv2d,
    balanced_gamma,
    binarise,
    binarise_released,
    cam,
    decay_groups,
    distribution_loss,
    flip_fraction,
    kl_divergence,
    label_smoothing_loss,
    learning_rate,
    reconstruction_loss,
    rsign,
)
from rebnn.method.balance import unpack
from rebnn.method.binariser import (
    GAMMA_HIGH,
    GAMMA_LOW,
    LEVEL,
    changed_proportion,
    largest,
    round_pass_intended,
    round_pass_released,
)
from rebnn.models.resnet import BinaryResNet, Block

EXACT, TIGHT, CLOSE = 0.0, 1e-6, 1e-5


class Archive:
    """The arrays of a file as tensors, floats in float64; `finish` fails where something was never looked at."""

    def __init__(self, arrays: dict[str, np.ndarray], dtype: torch.dtype = torch.float64):
        self.arrays, self.dtype, self.unread = arrays, dtype, set(arrays)

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        value = torch.from_numpy(self.arrays[name])
        return value.to(self.dtype) if value.is_floating_point() else value

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def number(self, name: str) -> float:
        return self[name].item()

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Everything whose name begins with the prefix, without it."""
        return {name.removeprefix(prefix): self[name] for name in self.arrays if name.startswith(prefix)}

    def require(self, name: str, value: Tensor, tolerance: float) -> None:
        """|a - b| ≤ tolerance·max|b|, b of the file (≤ tolerance where b is all 0)."""
        wanted = self[name]
        assert value.shape == wanted.shape, f"{name}: {list(value.shape)} for {list(wanted.shape)}"
        scale = wanted.abs().max().item() if wanted.numel() else 0.0
        error = (value.detach() - wanted).abs().max().item() if wanted.numel() else 0.0
        assert error <= tolerance * (scale or 1.0), f"{name}: off by {error:.3g}, largest {scale:.3g}"

    def finish(self) -> None:
        # The margin says how near a sign was to flipping: information, not a result.
        assert not self.unread - {"out_sign_margin"}, f"never looked at: {sorted(self.unread)}"


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


# -- the binariser ---------------------------------------------------------------------------------------------------


def check_binarize(arrays: dict[str, np.ndarray]) -> None:
    """The released function without and with a previous gradient, executed and intended γ; the paper's."""
    file = Archive(arrays)
    constants = [round(file.number(f"hp_{name}"), 9) for name in ("bin", "gamma_lo", "gamma_hi")]
    assert constants == [LEVEL, GAMMA_LOW, GAMMA_HIGH]
    weight, scale, grad = file["in_weight"], file["in_scaling_factor"], file["in_grad_output"]
    file.require("out_gmax", largest(grad), TIGHT)
    for case, previous in (("noprev", None), ("prev", file["in_prev_grad"])):
        proportion = changed_proportion(weight, previous)
        p = proportion * largest(grad)
        file.require(f"out_proportion_{case}", proportion, TIGHT)
        file.require(f"out_p_{case}", p, TIGHT)
        file.require(f"out_gamma_code_{case}", round_pass_released(p), TIGHT)
        file.require(f"out_gamma_intended_{case}", round_pass_intended(p), TIGHT)
        executed = {"gamma": round_pass_released(p).view_as(scale)}
        intended = {"gamma": proportion.view_as(scale), "clip": True}
        for suffix, options in (("", executed), ("_intended", intended)):
            w, s = leaf(weight), leaf(scale)
            binary = binarise_released(w, s.abs(), **options)
            file.require("out_weight_binary", binary, TIGHT)
            binary.backward(grad)
            file.require(f"grad_weight_{case}{suffix}", w.grad, TIGHT)
            file.require(f"grad_scaling_factor_{case}{suffix}", s.grad, TIGHT)
    before, alpha = file["in_prev_weight"], leaf(file["in_alpha"])
    file.require("out_flip_fraction_paper", flip_fraction(before, weight), TIGHT)
    gamma = balanced_gamma(before, weight, file["in_prev_grad_output"])
    file.require("out_gamma_paper", gamma, TIGHT)
    w, gamma = leaf(weight), gamma.view_as(alpha)
    binary = binarise(w, alpha.abs(), gamma)
    file.require("out_weight_binary_paper", binary, TIGHT)
    binary.backward(grad)
    file.require("grad_weight_paper", w.grad, TIGHT)
    file.require("grad_alpha_paper", alpha.grad, TIGHT)
    file.require("out_alpha_cam", cam(weight).flatten(), TIGHT)
    loss = reconstruction_loss(weight, alpha.detach().abs(), gamma)
    file.require("out_reconstruction_loss_paper", loss, TIGHT)
    file.finish()


def check_fixed_gamma(arrays: dict[str, np.ndarray]) -> None:
    """RBONN's binariser, which is handed |scale|, and IDa-Det's, which takes it inside and loses its sign."""
    file = Archive(arrays)
    weight, scale = leaf(file["in_weight"]), leaf(file["in_scale"])
    inside = scale + (scale.abs() - scale).detach()
    binary = binarise_released(weight, inside, torch.full_like(scale, file.number("hp_gamma")))
    file.require("out_weight", binary, TIGHT)
    binary.backward(file["in_grad_output"])
    file.require("grad_weight", weight.grad, TIGHT)
    file.require("grad_scale", scale.grad, TIGHT)
    file.finish()


def check_layer(arrays: dict[str, np.ndarray]) -> None:
    """A released layer, called twice, and ReActNet's baseline on the same input."""
    file = Archive(arrays)
    grad_y = file["in_grad_y"]
    geometry = [int(file[f"hp_{name}"]) for name in ("kernel", "stride", "padding")]
    for suffix, binarizer in (("", "released"), ("_reactnet", "reactnet")):
        latent, x = file[f"param_weight{suffix}"], leaf(file["in_x"])
        layer = BinaryConv2d(x.shape[1], len(latent), *geometry, binarizer=binarizer).double()
        layer.weight.data.copy_(latent)
        if binarizer == "released":
            layer.scaling_factor.data.copy_(file["param_scaling_factor"])
            Balance(layer, "released")
        y = layer(x)
        file.require(f"out_y{suffix}", y, TIGHT)
        y.backward(grad_y)
        file.require(f"grad_x{suffix}", x.grad, TIGHT)
        file.require(f"grad_weight{suffix}", layer.weight.grad, TIGHT)
        if binarizer == "released":
            file.require("grad_scaling_factor", layer.scaling_factor.grad, TIGHT)
            first = layer.weight.grad.clone()
            layer(file["in_x"]).backward(grad_y)
            file.require("grad_weight_second_call", layer.weight.grad - first, TIGHT)
    file.finish()


def check_activation(arrays: dict[str, np.ndarray]) -> None:
    """Sign with its quadratic gradient, and the clamp as executed and as intended, in float32."""
    file = Archive(arrays, torch.float32)
    x = leaf(file["in_x"].view(1, 1, -1, 1))
    y = rsign(x, torch.zeros(1, 1, 1, 1))
    y.backward(file["in_grad"].view_as(x))
    file.require("out_y", y.flatten(), EXACT)
    file.require("grad_x", x.grad.flatten(), TIGHT)
    p = file["in_p"]
    file.require("out_round_pass_code", round_pass_released(p), EXACT)
    file.require("out_round_pass_intended", round_pass_intended(p), EXACT)
    file.finish()


# -- losses, schedule, lighting --------------------------------------------------------------------------------------


def check_losses(arrays: dict[str, np.ndarray]) -> None:
    """Distributional loss, label smoothing, accuracy and KL."""
    file = Archive(arrays)
    teacher, labels = file["in_teacher"], file["in_label"]
    epsilon = file.number("hp_epsilon")
    losses = {
        "kd": lambda student: distribution_loss(student, teacher),
        "label_smooth": lambda student: label_smoothing_loss(student, labels, epsilon),
    }
    for name, loss_of in losses.items():
        student = leaf(file["in_student"])
        loss = loss_of(student)
        file.require(f"out_{name}", loss, TIGHT)
        loss.backward()
        file.require(f"grad_student_{name}", student.grad, TIGHT)
    file.require("out_true_kl", kl_divergence(file["in_student"], teacher), TIGHT)
    meter = Accuracy()
    meter.update(file["in_student"], labels)
    for name, value in meter.result().items():
        file.require(f"out_{name}", torch.tensor([value], dtype=torch.float64), TIGHT)
    file.finish()


def check_lighting(arrays: dict[str, np.ndarray]) -> None:
    """The colour noise on bytes, exact; the eigenvalues and vectors are the ones that we carry."""
    file = Archive(arrays)
    file.require("param_eigval", torch.tensor(EIGENVALUES, dtype=torch.float64), TIGHT)
    file.require("param_eigvec", torch.tensor(EIGENVECTORS, dtype=torch.float64), TIGHT)
    image = file["in_image"].numpy()
    for name in [name for name in arrays if name.startswith("in_alpha_std")]:
        lit = lighting(image, file[name].numpy())
        wanted = file[name.replace("in_alpha", "out_image")].numpy()
        assert lit.dtype == np.uint8 and np.array_equal(lit, wanted), name
    file.finish()


def check_schedule(arrays: dict[str, np.ndarray]) -> None:
    """Learning rates of all epochs, and the two groups of parameters of the full-size network."""
    file = Archive({name: a for name, a in arrays.items() if a.dtype.kind != "U"})
    epochs = int(file["hp_epochs"])
    rates = torch.tensor([learning_rate(file.number("hp_lr"), e, epochs) for e in range(epochs)], dtype=torch.float64)
    wanted = file["out_lr_per_epoch"]
    assert rates.shape == wanted.shape and (rates - wanted).abs().max() <= 1e-9
    names = [str(name) for name in arrays["out_group_decay_names"]]
    blocks = sum(name.endswith("binary_conv.weight") for name in names)
    with torch.device("meta"):
        network = models.build({16: "resnet18", 32: "resnet34"}[blocks], 1000)
    decayed, rest = decay_groups(network.named_parameters())
    assert list(decayed) == names
    assert list(rest) == [str(name) for name in arrays["out_group_other_names"]]
    assert sum(p.numel() for p in decayed.values()) == int(file["out_group_decay_numel"])
    assert sum(p.numel() for p in rest.values()) == int(file["out_group_other_numel"])
    file.finish()


# -- oscillation -----------------------------------------------------------------------------------------------------


def check_flip_ratio(arrays: dict[str, np.ndarray]) -> None:
    """A layer is led through a sequence of latent weights; its Balance counts what flips."""
    file = Archive(arrays)
    latent = file["in_latent_weights"]  # [T, C_out, M]
    times, channels, m = latent.shape
    layer = BinaryConv2d(m, channels, 1).double()
    layer.weight.data.copy_(latent[0].view_as(layer.weight))
    network = nn.Sequential(layer)
    balance = Balance(network, "none")
    masks, sequential, flips, per_channel, ratios = [], [], [], [], []
    for t in range(1, times):
        before = balance.flipped["0"]
        layer.weight.data.copy_(latent[t].view_as(layer.weight))
        balance.step()
        masks.append(unpack(balance.flipped["0"], m))
        if t > 1:
            sequential.append(unpack(balance.flipped["0"] & before, m))
        counted = balance.counts.clone()
        flips.append(counted)
        report = balance.report()
        ratios.append([report["flip"], report["sequential"]])
        per_channel.append(counted / m)
    masks, sequential = torch.stack(masks), torch.stack(sequential)
    assert torch.equal(masks, file["out_flip_mask"].bool())
    assert torch.equal(sequential, file["out_sequential_mask"].bool())
    ratios, per_channel = torch.tensor(ratios, dtype=torch.float64), torch.stack(per_channel).double()
    file.require("out_flip_ratio", ratios[:, 0], TIGHT)
    file.require("out_flip_ratio_per_channel", per_channel[:, 0], TIGHT)
    file.require("out_sequential_ratio", per_channel[1:, 1].mean(1), TIGHT)
    file.require("out_sequential_ratio", ratios[1:, 1], TIGHT)
    file.require("out_sequential_ratio_per_channel", per_channel[1:, 1], TIGHT)
    file.require("out_two_cycle_ratio", per_channel[1:, 1].mean(1), TIGHT)
    assert torch.equal(masks.sum(0), file["out_flip_count_per_weight"].long())
    file.finish()


# -- block, trajectory -----------------------------------------------------------------------------------------------


def check_block_rebnn(arrays: dict[str, np.ndarray]) -> None:
    check_block(arrays, "released")


def check_block_step1(arrays: dict[str, np.ndarray]) -> None:
    check_block(arrays, "real")


def check_block_step2(arrays: dict[str, np.ndarray]) -> None:
    check_block(arrays, "reactnet")


def check_block(arrays: dict[str, np.ndarray], weights: str) -> None:
    """One residual block (3.1): output, all gradients, BatchNorm statistics after the pass."""
    file = Archive(arrays)
    x, state = leaf(file["in_x"]), file.under("param_")
    stride, training = int(file["hp_stride"]), bool(file.number("hp_train"))
    module = Block(x.shape[1], len(state["binary_conv.weight"]), stride, models.WEIGHTS[weights])
    module = module.double().train(training)
    module.load_state_dict(state)
    if weights == "released":
        Balance(module, "released")
    y = module(x)
    file.require("out_y", y, CLOSE)
    y.backward(file["in_grad_y"])
    file.require("grad_x", x.grad, CLOSE)
    for name, parameter in module.named_parameters():
        file.require(f"grad_{name}", parameter.grad, CLOSE)
    for name in file.under("out_after_"):
        file.require(f"out_after_{name}", module.state_dict()[name], CLOSE)
    file.finish()


def check_trajectory_code(arrays: dict[str, np.ndarray]) -> None:
    check_trajectory(arrays, "released", "released")


def check_trajectory_paper(arrays: dict[str, np.ndarray]) -> None:
    check_trajectory(arrays, "paper", "paper")


def check_trajectory(arrays: dict[str, np.ndarray], binarizer: str, rule: str) -> None:
    """Adam steps of a narrow network on the teacher's logits: losses, flips, γ or proportions, final state."""
    file = Archive(arrays)
    inputs, targets, state = file["in_x"], file["in_teacher_logits"], file.under("param_")
    channels, layers = (file[f"hp_{name}"].tolist() for name in ("channels", "layers"))
    network = BinaryResNet(layers, channels, len(state["fc.bias"]), models.WEIGHTS[binarizer]).double().train()
    network.load_state_dict(state)
    balance = Balance(network, rule)
    parts = [part for _, part in balance.places()]
    optimiser = torch.optim.Adam(network.parameters(), round(file.number("hp_lr"), 9))
    losses, flips, sequential, gammas, proportions = [], [], [], [], []
    for step, (x, target) in enumerate(zip(inputs, targets)):
        gammas.append([balance.gamma[part].mean() for part in parts])
        proportions.append(
            [changed_proportion(layer.weight.detach(), layer.weight.grad).mean() for layer in balance.layers.values()]
        )
        loss = distribution_loss(network(x), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        balance.step()
        losses.append(loss.detach())
        counted = balance.report()
        flips.append(counted["flip_ratio"])
        if step:
            sequential.append(counted["sequential_ratio"])
    as_tensor = lambda rows: torch.tensor(rows, dtype=torch.float64)
    file.require("out_loss", torch.stack(losses), CLOSE)
    file.require("out_flip_ratio", as_tensor(flips), CLOSE)
    file.require("out_sequential_oscillation", as_tensor(sequential), CLOSE)
    if "out_gamma_mean_per_layer" in file:
        file.require("out_gamma_mean_per_layer", as_tensor(gammas), CLOSE)
    if "out_proportion_mean_per_layer" in file:
        file.require("out_proportion_mean_per_layer", as_tensor(proportions), CLOSE)
    for name in file.under("out_final_"):
        file.require(f"out_final_{name}", network.state_dict()[name], CLOSE)
    file.finish()
