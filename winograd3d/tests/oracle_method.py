"""What 01_matrices to 06_scores_masks hold: transforms, the layer and its gradients, factors, scores and masks."""

from fractions import Fraction

import numpy as np
import torch

from winograd3d.convolution import WinogradConv3d
from winograd3d.functional import winograd_conv3d
from winograd3d.method import (
    compose,
    cook_toom,
    cubic_sparsity,
    effective_gradient,
    equivalent_kernel,
    gram,
    importance,
    input_transform,
    inverse_transform,
    is_exact,
    keep_largest,
    layer_mask,
    matricise,
    pad_to_tiles,
    position_gain,
    positions,
    svd_factors,
    tensors,
    weight_transform,
    winograd,
)
from winograd3d.tests.oracle_archive import Archive, assert_close, single

EXACT, SVD = 1e-6, 1e-5
HALF = Fraction(1, 2)
KNOWN_POINTS = {  # section 13; further cases bring their points along
    "lavin_m2": (2, (0, 1, -1)),
    "lavin_m4": (4, (0, 1, -1, 2, -2)),
    "half_m4": (4, (0, 1, -1, HALF, -2)),
    "m6": (6, (0, 1, -1, 2, -2, HALF, -HALF)),
    "m3": (3, (0, 1, -1, 2)),
}
SCORES = {
    "taylor": "taylor",
    "taylorabs": "taylor_abs",
    "taylor2": "taylor2",
    "l2": "l2",
    "l1": "l1",
    "comp": "l2_comp",
}


def check_matrices(arrays: dict[str, np.ndarray]) -> None:
    """Numerators and denominators of every matrix, reduced."""
    file = Archive(arrays)

    def same(name: str, matrices) -> None:
        assert is_exact(matrices), name
        for kind, rows in matrices._asdict().items():
            for part in ("num", "den"):
                own = [[value.numerator if part == "num" else value.denominator for value in row] for row in rows]
                assert file[f"out_{name}_{kind}_{part}"].tolist() == own, f"{name} {kind}"

    names = {key.removeprefix("out_").removesuffix("_AT_num") for key in arrays if key.endswith("_AT_num")}
    assert names
    for name in names:
        if not name.startswith("ct_"):
            same(name, winograd(int(name[1:])))
            continue
        case = name.removeprefix("ct_")
        if f"hp_{name}" in file:
            m, r = file.ints(f"hp_{name}")
            points = zip(*(file[f"hp_{name}_points_{part}"].tolist() for part in ("num", "den")))
            same(name, cook_toom(m, r, [Fraction(*point) for point in points]))
        else:
            m, points = KNOWN_POINTS[case]
            same(name, cook_toom(m, 3, points))
    file.finish()


def check_tile(arrays: dict[str, np.ndarray]) -> None:
    """One tile through every transform, in double and in single precision."""
    file = Archive(arrays)
    for case in file.cases():
        tile = file.ints(f"hp_{case}_tile")
        for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, single(tile))):
            axes = tensors(tile, dtype=dtype)
            kernel, d = file[f"param_{case}_K"].to(dtype), file[f"in_{case}_d"].to(dtype)
            u = weight_transform(kernel, axes.G)
            v = input_transform(d[None], axes.BT, tile)  # one tile: [n, C, 1]
            m = u.permute(2, 0, 1) @ v
            y = inverse_transform(m, axes.AT, 1, (1, 1, 1))
            shape = positions(tile)
            assert_close(u.unflatten(2, shape), file[f"out_{case}_U"], tolerance, f"{case} U")
            assert_close(v[..., 0].T.unflatten(1, shape), file[f"out_{case}_V"], tolerance, f"{case} V")
            assert_close(m[..., 0].T.unflatten(1, shape), file[f"out_{case}_M"], tolerance, f"{case} M")
            assert_close(y[0], file[f"out_{case}_Y"], tolerance, f"{case} Y")
    file.finish()


def check_conv(arrays: dict[str, np.ndarray]) -> None:
    """The layer and its gradients on and off the range of G₃."""
    file = Archive(arrays)
    for case in file.cases():
        tile, padding = file.ints(f"hp_{case}_tile"), file.ints(f"hp_{case}_pad")
        for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, single(tile))):
            given = {name: file[f"param_{case}_{name}"].to(dtype) for name in ("K", "bias", "Uoff")}
            given["x"] = file[f"in_{case}_x"].to(dtype)
            x, kernel, bias, off = (given[name].requires_grad_() for name in ("x", "K", "bias", "Uoff"))
            dy = file[f"in_{case}_dy"].to(dtype)
            u = weight_transform(kernel, tensors(tile, dtype=dtype).G)
            u.retain_grad()
            y = winograd_conv3d(x, u, bias, tile, padding)
            y.backward(dy)
            assert_close(y, file[f"out_{case}_y"], tolerance, f"{case} y")
            for name, tensor in (("x", x), ("K", kernel), ("bias", bias)):
                assert_close(tensor.grad, file[f"grad_{case}_{name}"], tolerance, f"{case} gradient of {name}")
            grad_u = u.grad.unflatten(2, positions(tile))
            assert_close(grad_u, file[f"grad_{case}_U"], tolerance, f"{case} gradient of U")
            x.grad = None
            y = winograd_conv3d(x, off.flatten(2), bias, tile, padding)
            y.backward(dy)
            assert_close(y, file[f"out_{case}_yoff"], tolerance, f"{case} yoff")
            assert_close(x.grad, file[f"grad_{case}_xoff"], tolerance, f"{case} gradient of x, off")
            assert_close(off.grad, file[f"grad_{case}_Uoff"], tolerance, f"{case} gradient of U, off")
    file.finish()


def check_equivalent_kernel(arrays: dict[str, np.ndarray]) -> None:
    """A weight off the range as a stride-m convolution, and the same output both ways."""
    file = Archive(arrays)
    tile, u, x = file.ints("hp_tile"), file["param_U"].flatten(2), file["in_x"]
    axes = tensors(tile)
    kernel = equivalent_kernel(u, axes.AT, axes.BT)
    assert_close(kernel, file["out_E"], EXACT, "E")
    assert_close(winograd_conv3d(x, u, None, tile, (1, 1, 1)), file["out_y"], EXACT, "y")
    strided = torch.nn.functional.conv3d(pad_to_tiles(x, (1, 1, 1), tile), kernel, stride=tile)
    n, _, *counts = strided.shape
    blocks = strided.view(n, len(u), *tile, *counts).permute(0, 1, 5, 2, 6, 3, 7, 4)
    y = blocks.reshape(n, len(u), *(c * m for c, m in zip(counts, tile)))
    d, h, w = file["out_y"].shape[2:]
    assert_close(y[..., :d, :h, :w], file["out_y"], EXACT, "y through E")
    file.finish()


def check_lowrank(arrays: dict[str, np.ndarray]) -> None:
    """Composition in both views with its gradients, singular values, truncations, the effective gradient."""
    file = Archive(arrays)
    for case in file.cases():
        tile, rank = file.ints(f"hp_{case}_tile"), int(file[f"hp_{case}_rank"])
        axes = tensors(tile)
        base = weight_transform(file[f"param_{case}_K"], axes.G)
        assert_close(base, file[f"out_{case}_W0"], EXACT, f"{case} W0")
        grad = file[f"in_{case}_dW"]
        for view, short in (("kernel", ""), ("filter", "f")):
            p, q = (file[f"param_{case}_{name}{short}"].requires_grad_() for name in "PQ")
            weight = compose(p, q, tuple(base.shape), base)
            weight.backward(grad)
            assert_close(weight, file[f"out_{case}_W{short}"], EXACT, f"{case} W {view}")
            assert_close(p.grad, file[f"grad_{case}_P{short}"], EXACT, f"{case} gradient of P, {view}")
            assert_close(q.grad, file[f"grad_{case}_Q{short}"], EXACT, f"{case} gradient of Q, {view}")
            values = torch.linalg.svdvals(matricise(base, view))
            assert_close(values, file[f"out_{case}_sv_{view}"], SVD, f"{case} singular values, {view}")
            truncated = compose(*svd_factors(base, view, rank), tuple(base.shape))
            assert_close(truncated, file[f"out_{case}_svd_{view}"], SVD, f"{case} truncation, {view}")
        assert_close(effective_gradient(grad, axes.G), file[f"out_{case}_effgrad"], EXACT, f"{case} effgrad")
        check_preconditioned_layer(file[f"param_{case}_K"], tile, grad, file[f"out_{case}_effgrad"])
    file.finish()


def check_preconditioned_layer(kernel, tile, grad, expected) -> None:
    """The switch `precondition` gives a vanilla layer's weight this gradient."""
    layer = WinogradConv3d(kernel, None, (1, 1, 1), tile=tile, mode="vanilla", precondition=True)
    layer.effective_weight().backward(grad)
    assert_close(layer.W.grad, expected, EXACT, "gradient under precondition")


def check_scores_masks(arrays: dict[str, np.ndarray]) -> None:
    """Scores to float precision, masks exactly, from scores in double precision."""
    file = Archive(arrays)
    for case in file.cases():
        axes = tensors(file.ints(f"hp_{case}_tile"))
        weight, grad = file[f"param_{case}_W"], file[f"grad_{case}_W"]
        gain = position_gain(axes.AT, axes.BT)
        assert_close(gain, file[f"out_{case}_compweight"], EXACT, f"{case} compweight")
        for short, name in SCORES.items():
            for granularity, kind in (("position", "pos"), ("channel", "chan")):
                score = importance(name, granularity, weight, grad, gain)
                assert_close(score, file[f"out_{case}_{short}_{kind}"], EXACT, f"{case} {name} {granularity}")
                masks = [key for key in arrays if key.startswith(f"out_{case}_") and key.endswith(f"_{short}_{kind}")]
                for key in masks:
                    word = key.split("_")[2]
                    if "mask" not in word:
                        continue
                    balanced = word.startswith("b")
                    sparsity = int(word.removeprefix("b").removeprefix("mask")) / 100
                    mask = layer_mask(score, sparsity, "channel_balanced" if balanced else granularity)
                    assert torch.equal(mask, file[key].bool()), key
        p, q = file[f"param_{case}_P"], file[f"param_{case}_Q"]
        now = gram(p, q, weight.shape[1], "kernel", "position")
        assert_close(now, file[f"out_{case}_gram_pos"], EXACT, f"{case} gram")
    for key in arrays:
        if key.startswith("out_tie_keep"):
            kept = keep_largest(file["in_tie_score"], int(key.removeprefix("out_tie_keep")))
            assert torch.equal(kept, file[key].bool()), key
        elif key.startswith("out_sched_"):
            settings = [round(float(value), 6) for value in file[f"hp{key[3:]}"]]
            own = torch.tensor([cubic_sparsity(t, *settings) for t in range(len(file[key]))], dtype=torch.float64)
            assert_close(own, file[key], EXACT, key)
    file.finish()
