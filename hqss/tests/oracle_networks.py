"""Networks and focal frequency loss against the release's numbers."""

import zlib

import common  # noqa: F401

import numpy as np
import torch
from torch import nn

from hqss import models
from hqss.method import focal_frequency_loss

Arrays = dict[str, np.ndarray]
NETWORKS = {
    "Encoder": models.Encoder,
    "Decoder": models.Generator,
    "S2F": models.Remover,
    "F2S": models.Refiner,
    "Discriminator": models.Discriminator,
}


def build(kind: str, arrays: Arrays, name: str | None = None) -> nn.Module:
    """A network in double precision with the weights that the manifest's rule gives to `name`."""
    network = NETWORKS[kind]()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            rng = np.random.default_rng(zlib.crc32(f"{name or kind}.{key}".encode()))
            values = rng.standard_normal(tuple(parameter.shape)) * float(arrays["hp_weight_std"])
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return network.double()


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).double()


def close(found, expected: np.ndarray, relative: float, what: str, absolute: float = 0.0) -> None:
    """The largest difference is at most a share of the largest reference value."""
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    worst, allowed = np.abs(found - expected).max(), relative * np.abs(expected).max() + absolute
    assert worst <= allowed, f"{what}: off by {worst:.3g}, allowed {allowed:.3g}"


def check_network(arrays: Arrays, kind: str) -> None:
    network = build(kind, arrays)
    assert sum(p.numel() for p in network.parameters()) == int(arrays["hp_n_params"])
    inputs = [tensor(arrays[key]).requires_grad_() for key in ("in_x0", "in_x1") if key in arrays]
    output = network(*inputs)
    if kind == "Discriminator" and arrays["out_y"].shape == ():
        output = output[0]  # the release squeezes a batch of one
    close(output, arrays["out_y"], 1e-4, "output")
    (output * tensor(arrays["in_probe"])).sum().backward()
    for number, given in enumerate(inputs):
        close(given.grad, arrays[f"grad_x{number}"], 1e-3, f"gradient of input {number}")
    stored = {key: value for key, value in arrays.items() if key.startswith("grad_p_")}
    # Biases in front of InstanceNorm have next to no gradient.
    absolute = 1e-3 * max(np.abs(value).max() for value in stored.values())
    parameters = dict(network.named_parameters())
    for key, value in stored.items():
        close(parameters[key.removeprefix("grad_p_")].grad, value, 1e-3, key, absolute)
    norms = torch.stack([p.grad.norm() for p in parameters.values()])
    close(norms, arrays["grad_norms"], 1e-3, "norms of gradients")


def check_ffl(arrays: Arrays) -> None:
    prediction, target = tensor(arrays["in_pred"]).requires_grad_(), tensor(arrays["in_target"])
    loss = focal_frequency_loss(prediction, target)
    close(loss, arrays["out_loss"], 1e-5, "loss")
    loss.backward()
    close(prediction.grad, arrays["grad_pred"], 1e-5, "gradient")
    close(focal_frequency_loss(target, target), arrays["out_loss_identical"], 1e-5, "identical inputs")
    equal = prediction.detach().clone()
    equal[:, 1] = target[:, 1]
    close(focal_frequency_loss(equal, target), arrays["out_loss_one_channel_equal"], 1e-5, "an equal channel")
