"""Layers, attention, whole networks, losses and schedule against the official code's numbers."""

import zlib

import numpy as np
import torch

from labnet.method import (
    ECA,
    LSA,
    ConvLayer,
    binarise,
    dilate,
    gradient_loss,
    learning_rate,
    losses,
    perceptual_loss,
    regions,
)
from labnet.models import BasicBlock, LABNet, VGGFeatures

Arrays = dict[str, np.ndarray]


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def close(found, expected: np.ndarray, tolerance: float, what: str) -> None:
    """The largest difference is at most tolerance times the largest expected value."""
    found = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found)
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    worst = np.abs(found.astype(np.float64) - expected).max()
    assert worst <= tolerance * np.abs(expected).max(), f"{what}: {worst:.3g} of {np.abs(expected).max():.3g}"


def fill(module: torch.nn.Module, arrays: Arrays, prefix: str = "param_") -> None:
    """Load the parameters that a file holds, all of them."""
    module.load_state_dict({name: tensor(arrays[f"{prefix}{name}"]) for name in module.state_dict()})


def ruled_weights(network: LABNet, gain: float, laplacian: bool) -> None:
    """The weight rule of the oracle files (section 13)."""
    state = {}
    for key, value in network.state_dict().items():
        draws = np.random.default_rng(zlib.crc32(f"labnet.{key}".encode())).standard_normal(value.shape)
        if key.endswith("convop.weight") and laplacian:
            state[key] = tensor(np.broadcast_to([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], value.shape).astype(np.float32))
            continue
        scale = gain / np.sqrt(np.prod(value.shape[1:])) if value.ndim > 1 else 0.05
        state[key] = tensor((draws * scale).astype(np.float32))
    network.load_state_dict(state)


def check_mask_dilation(arrays: Arrays) -> None:
    thresholds = [name.removeprefix("out_bin_") for name in arrays if name.startswith("out_bin_")]
    assert thresholds
    for threshold in thresholds:
        mask = binarise(tensor(arrays["in_mask"]), float(threshold))
        assert np.array_equal(mask, arrays[f"out_bin_{threshold}"])
        assert np.array_equal(dilate(mask), arrays[f"out_dil_{threshold}"])


def check_module(make, arrays: Arrays, case: str, names: dict[str, str], call=None) -> None:
    """Output in single precision; output and gradients in double, because rounding flips single LeakyReLUs.

    make: -> module with the file's parameters. names: parameter name -> name of its gradient's array.
    """
    for dtype in (torch.float32, torch.float64):
        module = make().to(dtype)
        x = tensor(arrays[f"in_x{case}"]).to(dtype).requires_grad_()
        y = module(x) if call is None else call(module, x)
        close(y, arrays[f"out_y{case}"], 1e-5, f"{case} y")
    (y * tensor(arrays[f"in_probe{case}"])).sum().backward()
    close(x.grad, arrays[f"grad_x{case}"], 1e-4, f"{case} grad x")
    for name, parameter in module.named_parameters():
        if name in names:
            close(parameter.grad, arrays[names[name]], 1e-4, f"{case} grad {name}")


def check_conv_layer(arrays: Arrays) -> None:
    cases = [name.removeprefix("hp_k_d") for name in arrays if name.startswith("hp_k_d")]
    assert cases
    for case in cases:
        kernel, dilation = map(int, arrays[f"hp_k_d{case}"])

        def make(case=case, kernel=kernel, dilation=dilation):
            weight, bias = (tensor(arrays[f"param_{name}{case}"]) for name in "wb")
            layer = ConvLayer(weight.shape[1], weight.shape[0], kernel, dilation)
            layer.conv2d.load_state_dict({"weight": weight, "bias": bias})
            return layer

        check_module(make, arrays, case, {"conv2d.weight": f"grad_w{case}"})


def check_eca(arrays: Arrays) -> None:
    cases = [name.removeprefix("in_x") for name in arrays if name.startswith("in_x")]
    assert cases
    for case in cases:

        def make(case=case):
            module = ECA(arrays[f"in_x{case}"].shape[1])
            fill(module, arrays, f"param{case}_")
            close(module.spread(tensor(arrays[f"in_x{case}"])), arrays[f"out_std{case}"], 1e-5, "std")
            return module

        check_module(make, arrays, case, {name: f"grad{case}_{name}" for name, _ in make().named_parameters()})


def check_lsa(arrays: Arrays) -> None:
    """Both forms of the attention, fused and in chunks."""
    cases = [name.removeprefix("hp_down") for name in arrays if name.startswith("hp_down")]
    assert cases
    for case in cases:
        grid = tuple(map(int, arrays[f"hp_down{case}"]))
        where = regions(tensor(arrays[f"in_mask{case}"]), tensor(arrays[f"in_mask_d{case}"]), grid)
        for chunked in (False, True):

            def make(case=case, chunked=chunked):
                module = LSA(arrays[f"in_x{case}"].shape[1], chunked)
                fill(module, arrays)
                return module

            names = {name: f"grad{case}_{name}" for name, _ in make().named_parameters()}
            call = lambda module, x, where=where, grid=grid: module(x, where, grid)
            check_module(make, arrays, case, names, call)


def check_basic_block(arrays: Arrays) -> None:
    def make():
        cin, cout = arrays["param_conv11.conv2d.weight"].shape[1], arrays["param_conv42.conv2d.weight"].shape[0]
        block = BasicBlock(cin, cout, arrays["param_conv14.conv2d.weight"].shape[0])
        fill(block, arrays)
        assert sum(p.numel() for p in block.parameters()) == int(arrays["hp_n_params"])
        return block

    check_module(make, arrays, "", {name: f"grad_{name}" for name, _ in make().named_parameters()})


def check_net(arrays: Arrays) -> None:
    """A whole network in channels last, as train.py has it."""
    network = LABNet(int(arrays["hp_channels"]))
    ruled_weights(network, float(arrays["hp_gain"]), bool(arrays["hp_laplacian_kept"]))
    assert sum(p.numel() for p in network.parameters()) == int(arrays["hp_n_params"])
    for name, value in network.state_dict().items():
        if f"param_{name}" in arrays:
            assert np.array_equal(value, arrays[f"param_{name}"]), name
    network = network.to(memory_format=torch.channels_last)
    # The files name the grid; the network takes the smaller of the picture and its own limit.
    network.grid = lambda height, width: tuple(map(int, arrays["hp_down"]))
    x = tensor(arrays["in_lab"]).contiguous(memory_format=torch.channels_last).requires_grad_()
    mask = tensor(arrays["in_mask"])
    assert np.array_equal(dilate(mask), arrays["in_mask_d"])
    y = network(x, mask, network.regions(mask))
    (y * tensor(arrays["in_probe"])).sum().backward()
    close(y, arrays["out_y"], 1e-4, "y")
    close(x.grad, arrays["grad_x"], 1e-2, "grad x")
    norms = [p.grad.norm().item() for p in network.parameters()]
    close(np.array(norms), arrays["grad_norms"], 1e-2, "grad norms")


def check_losses(arrays: Arrays) -> None:
    widths = tuple(map(int, arrays["hp_vgg_widths"]))
    vgg = VGGFeatures(widths)
    fill(vgg, arrays, "param_vgg.")
    target = tensor(arrays["in_target"])
    total = lambda pred: sum(losses(pred, target, vgg).values())
    perceptual = lambda pred: perceptual_loss([pred, *vgg(pred)], [target, *vgg(target)])
    functions = {
        "perceptual": perceptual,
        "grad": lambda pred: gradient_loss(pred, target),
        "l2": lambda pred: losses(pred, target, weights=(0, 0, 1))["squared"],
        "total": total,
    }
    for name, function in functions.items():
        pred = tensor(arrays["in_pred"]).requires_grad_()
        value = function(pred)
        value.backward()
        close(value, arrays[f"out_{name}"], 1e-5, name)
        close(pred.grad, arrays[f"grad_pred_{name}"], 1e-5, f"grad {name}")
    with torch.no_grad():
        pred = tensor(arrays["in_pred"])
        for number, level in enumerate([pred, *vgg(pred)]):
            found = np.array([level.mean().item(), level.min().item()])
            close(found, arrays[f"out_feat{number}_mean_min"], 1e-5, f"level {number}")


def check_schedule(arrays: Arrays) -> None:
    assert arrays
    for name, rates in arrays.items():
        flat, decay = map(int, name.removeprefix("out_lr_").split("_"))
        found = [learning_rate(2e-4, epoch, flat, decay) for epoch in range(1, len(rates) + 1)]
        close(np.array(found), rates, 1e-6, name)


def check_init_facts(arrays: Arrays) -> None:
    torch.manual_seed(1)
    network = LABNet(8)
    kernel = ECA(arrays["out_laplacian_before"].shape[0]).convop.weight
    assert np.array_equal(kernel.detach(), arrays["out_laplacian_before"])
    assert kernel.requires_grad == bool(arrays["out_convop_requires_grad"])
    started = network.basicblock1.channel_attention.convop.weight
    assert not np.array_equal(started.detach(), arrays["out_laplacian_before"])
    named = [*network.named_parameters()]
    assert len(named) == len(arrays["out_param_std"])
    for (name, parameter), official in zip(named, arrays["out_param_std"]):
        if parameter.ndim == 1:
            assert official == 0 and not parameter.any(), name
            continue
        expected = np.sqrt(2 / np.prod(parameter.shape[1:]))
        allowed = 4 * expected / np.sqrt(2 * parameter.numel())
        for std in (official, parameter.std(correction=0).item()):
            assert abs(std - expected) <= max(allowed, expected / parameter.numel()), name
    biases = [p for _, p in named if p.ndim == 1]
    assert len(biases) == len(arrays["out_bias_absmax"]) and not arrays["out_bias_absmax"].any()
