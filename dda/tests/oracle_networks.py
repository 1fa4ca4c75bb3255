"""What the official networks, their filter and their metrics give; settings, seeds and shapes come from the files."""

import re
import zlib

from common.metrics import ssim_gaussian11, ssim_uniform7

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dda import metrics
from dda.method.losses import halve, l1, multi_scale
from dda.method.prior import resize_linear
from dda.method.slimmable import slim
from dda.models import build
from dda.models.layers import Slimmable
from dda.models.mbcnn import BandPass, GlobalBlock, PosBlock, PreBlock, dct_matrix, effective_kernel

FINE, COARSE = (1, 2, 3, 2, 1), (1, 2, 2, 2, 1)


def rule_weights(network: nn.Module, salt: int = 0) -> nn.Module:
    """Give every parameter the values that the weight rule derives from its key (section 13); returns the network."""
    state = network.state_dict()
    for key, value in state.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()) ^ salt)
        g = rng.standard_normal(tuple(value.shape))
        if key.endswith("it_weights.it_weights"):
            g = 1 + 0.1 * g
        elif key.endswith("ScaleLayer1.kernel"):
            g = np.float64(0.1)
        elif key.endswith("bias"):
            g = 0.05 * g
        else:
            g = g * np.sqrt(2 / np.prod(value.shape[1:]))
        value.copy_(torch.from_numpy(np.asarray(g, np.float32)))
    return network


def widths_of(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """{tag such as w075: width} of a file; stored in float32, so rounded to two decimals."""
    widths = [round(float(w), 2) for w in arrays["hp_widths"]]
    return {f"w{round(100 * w):03d}": w for w in widths}


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def close(found: torch.Tensor, expected: np.ndarray, tolerance: float, what: str, relative: bool = False) -> None:
    """Within the manifest's tolerance; relative: to the largest magnitude of what is expected."""
    found = found.detach().double().numpy()
    assert found.shape == expected.shape, f"{what}: shape {found.shape} for {expected.shape}"
    error = np.abs(found - expected).max()
    bound = tolerance * (np.abs(expected).max() if relative else 1)
    assert error <= bound, f"{what}: off by {error:.1e}, allowed {bound:.1e}"


def read_all(arrays: dict[str, np.ndarray], *patterns: str) -> None:
    """Every key of the file is one that the check has read."""
    unread = [key for key in arrays if not any(re.fullmatch(pattern, key) for pattern in patterns)]
    assert not unread, f"keys read by no check: {unread}"


def check_mbcnn(arrays: dict[str, np.ndarray]) -> None:
    _check_network(arrays, "mbcnn", ("s4", "s2", "s1"))


def check_dmcnn(arrays: dict[str, np.ndarray]) -> None:
    _check_network(arrays, "dmcnn", ("",))


def _check_network(arrays: dict[str, np.ndarray], name: str, scales: tuple[str, ...]) -> None:
    salt, tags = int(arrays["hp_salt"]), widths_of(arrays)
    network = rule_weights(build(name), salt)
    x, y = tensor(arrays["in_x"]), tensor(arrays["in_y"])
    outputs = {
        f"out_{tag}_{scale}".rstrip("_"): (width, number)
        for tag, width in tags.items()
        for number, scale in enumerate(scales)
    }
    for tag, width in tags.items():
        with torch.no_grad():
            maps, finest = network(x, width), network.slice(width)(x)
        for key, (other, number) in outputs.items():
            if other == width:
                close(maps[number], arrays[key], 2e-5, key)
        close(finest, arrays[f"out_{tag}_{scales[-1]}".rstrip("_")], 2e-5, f"the sub-network cut out at {tag}")
    graded = [tag for tag in tags if f"out_loss_{tag}" in arrays]
    assert graded, "the file holds no loss"
    for tag in graded:
        check_gradients(network, _loss(network, x, y, tags[tag]), arrays, tag)
    check_steps(network, arrays)
    fixed = ("hp_salt", "hp_lr", "hp_widths", "hp_step_widths", "in_x", "in_y", "in_steps_[xy]", "out_step_losses")
    read_all(arrays, *fixed, *outputs, "out_after_w[0-9]{3}", *(f"out_(loss|gradnorm)_{tag}" for tag in graded))


def _loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor, width: float) -> torch.Tensor:
    outputs = network(x, width)
    return sum(multi_scale(outputs, y).values()) if len(outputs) > 1 else l1(outputs[0], y)


def check_gradients(network: nn.Module, loss: torch.Tensor, arrays: dict[str, np.ndarray], tag: str) -> None:
    """The loss within 1e-4, and the norm of every parameter's gradient as section 13 allows."""
    np.testing.assert_allclose(loss.item(), arrays[f"out_loss_{tag}"], rtol=1e-4)
    network.zero_grad(set_to_none=True)
    loss.backward()
    norms = np.array([0.0 if p.grad is None else p.grad.norm().item() for p in network.parameters()])
    expected = arrays[f"out_gradnorm_{tag}"].astype(np.float64)
    assert norms.shape == expected.shape
    assert ((norms == 0) == (expected == 0)).all(), "a gradient is missing or should not be there"
    error = np.abs(norms - expected) / np.maximum(expected, 1e-12)
    assert (error <= 1e-3).mean() >= 0.8 and error.max() <= 5e-2, f"{tag}: gradient norms off by {error.max():.1e}"


def check_steps(network: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Adam steps, one width each, then the finest output of the first batch at every width that the file names."""
    rule_weights(network, int(arrays["hp_salt"]))
    network.zero_grad(set_to_none=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=float(arrays["hp_lr"]))
    xs, ys = tensor(arrays["in_steps_x"]), tensor(arrays["in_steps_y"])
    losses = []
    for x, y, width in zip(xs, ys, arrays["hp_step_widths"]):
        loss = _loss(network, x, y, round(float(width), 2))
        optimiser.zero_grad(set_to_none=False)  # the official optimiser keeps moving what another width has moved
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, arrays["out_step_losses"], rtol=1e-4)
    after = [key for key in arrays if key.startswith("out_after_w")]
    assert after, "the file holds no output after the steps"
    for key in after:
        with torch.no_grad():
            close(network(xs[0], int(key[-3:]) / 100)[-1], arrays[key], 1e-3, key)


def _block(name: str, channels: int) -> Slimmable:
    if name == "global":
        return GlobalBlock(channels)
    growth = channels // 2
    return PreBlock(channels, growth, FINE, "official") if name == "pre" else PosBlock(channels, growth, COARSE)


def check_mbcnn_blocks(arrays: dict[str, np.ndarray]) -> None:
    """The three kinds of block by themselves, fed the first channels of a full-width input."""
    salt, tags = int(arrays["hp_salt"]), widths_of(arrays)
    for name in ("pre", "global", "pos"):
        x = tensor(arrays[f"in_{name}"])
        channels = x.shape[1]
        block = rule_weights(_block(name, channels), salt)
        for tag, width in tags.items():
            with torch.no_grad():
                found = block(x[:, : slim(channels, width)], width)
            close(found, arrays[f"out_{name}_{tag}"], 1e-4, f"{name} {tag}")
    read_all(arrays, "hp_salt", "hp_widths", "in_(pre|global|pos)", "out_(pre|global|pos)_w[0-9]{3}")


def check_lbf(arrays: dict[str, np.ndarray]) -> None:
    """The band-pass filter in both forms, its kernel and its gradients."""
    x = tensor(arrays["in_x"]).requires_grad_()
    theta = tensor(arrays["param_it_weights"])
    close(dct_matrix(), arrays["out_dct_matrix"], 1e-5, "K")
    close(effective_kernel(theta), arrays["out_effective_kernel_official"], 1e-5, "effective kernel")
    layer = BandPass("official")
    layer.it_weights.it_weights.data.copy_(theta)
    y = layer(x)
    close(y, arrays["out_official"], 1e-5, "official")
    y.square().sum().backward()
    close(x.grad, arrays["grad_official_x"], 1e-5, "gradient of the input", relative=True)
    grad = layer.it_weights.it_weights.grad
    close(grad, arrays["grad_official_it_weights"], 1e-5, "gradient of the strengths", relative=True)
    inverse = F.conv2d(x, effective_kernel(theta, "idct")[:, :, None, None])
    close(inverse, arrays["out_keras_idct"], 1e-5, "inverse transform")
    kernels = ("out_dct_matrix", "out_effective_kernel_official", "out_official", "out_keras_idct")
    read_all(arrays, "in_x", "param_it_weights", "grad_official_(x|it_weights)", *kernels)


def check_metrics(arrays: dict[str, np.ndarray]) -> None:
    """PSNR, both SSIMs, CIEDE2000 and the truncation to 8 bits."""
    nchw = lambda name: tensor(arrays[name]).permute(2, 0, 1)[None]
    clean = nchw("in_gt")
    for kind in ("noise", "moire"):
        found = metrics.scores(nchw(f"in_{kind}").float() / 255, clean)
        pairs = {"psnr": "psnr_uint8", "ssim": "ssim_uniform7", "ssim_gauss11": "ssim_gaussian11", "ciede": "ciede2000"}
        for name, own in pairs.items():
            bound = 1e-4 if "ssim" in name else 1e-3
            close(found[own][0], arrays[f"out_{name}_{kind}"], bound, f"{name} {kind}")
        a, b = (nchw(name).double() / 255 for name in (f"in_{kind}", "in_gt"))
        assert found["ssim_uniform7"] == ssim_uniform7(a, b) and found["ssim_gaussian11"] == ssim_gaussian11(a, b)
    table = metrics.to_uint8(torch.arange(256) / 255)
    assert np.array_equal(table.numpy(), arrays["out_quant_table"]), "quantisation"
    cut = metrics.to_uint8(tensor(arrays["in_float_nchw"])).permute(0, 2, 3, 1)
    assert np.array_equal(cut.numpy(), arrays["out_uint8_nhwc"]), "truncation"
    joint = metrics.psnr_joint(tensor(arrays["in_batch_a"]), tensor(arrays["in_batch_b"]))
    close(joint, arrays["out_batch_psnr"], 1e-3, "PSNR of a batch")
    names = "out_(psnr|ssim|ciede|ssim_gauss11)_(noise|moire)"
    more = ("out_quant_table", "in_float_nchw", "out_uint8_nhwc", "in_batch_[ab]", "out_batch_psnr")
    read_all(arrays, "in_(gt|noise|moire)", names, *more)


def check_transforms(arrays: dict[str, np.ndarray]) -> None:
    """The smaller targets of the multi-scale loss, and both resizings of FHDMi."""
    from dda.data import resize_test

    half = halve(tensor(arrays["in_clear"]))
    close(half, arrays["out_clear2"], 1e-6, "half")
    close(halve(half), arrays["out_clear4"], 1e-6, "quarter")
    picture = arrays["in_fhd"]
    size = (picture.shape[0] * 1024 // 1080, picture.shape[1])
    train = resize_linear(tensor(picture).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy()
    for found, key in ((train, "out_fhd_cv2_linear"), (resize_test(picture, size), "out_fhd_pil_bilinear")):
        assert found.shape == arrays[key].shape, key
        assert np.abs(found.astype(int) - arrays[key].astype(int)).max() <= 1, key
    assert np.array_equal(train, arrays["out_fhd_cv2_linear"]), "the integer formula is exact"
    read_all(arrays, "in_clear", "out_clear[24]", "in_fhd", "out_fhd_(cv2_linear|pil_bilinear)")


CHECKS = {
    "mbcnn": check_mbcnn,
    "mbcnn_blocks": check_mbcnn_blocks,
    "dmcnn": check_dmcnn,
    "lbf": check_lbf,
    "metrics": check_metrics,
    "transforms": check_transforms,
}
