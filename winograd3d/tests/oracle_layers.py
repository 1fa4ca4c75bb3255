"""What 07_sparse_inference and 08_training_steps hold: packed layers, and both stages of training step by step."""

import numpy as np
import torch

from winograd3d.convolution import WinogradConv3d
from winograd3d.functional import winograd_conv3d
from winograd3d.masks import MaskLearner
from winograd3d.method import expand, kept_channels, kept_columns, kept_positions, product_macs, tile_counts
from winograd3d.packed import PackedConv3d
from winograd3d.tests.oracle_archive import Archive, assert_close, single

EXACT, STEPS = 1e-6, 1e-5
GRANULARITIES = {"pos": "position", "chan": "channel"}
PADDING = (1, 1, 1)


def check_sparse_inference(arrays: dict[str, np.ndarray]) -> None:
    """Masked dense and packed layers give the stored outputs; kept indices and multiply-adds are exact."""
    file = Archive(arrays)
    for case in file.cases():
        tile = file.ints(f"hp_{case}_tile")
        assert 0 <= file.number(f"hp_{case}_sparsity") < 1
        x, bias = file[f"in_{case}_x"], file[f"param_{case}_bias"]
        weight = file[f"param_{case}_U"].flatten(2)
        out_channels, in_channels, n = weight.shape
        size = tuple(x.shape[2:])
        d, h, w = tile_counts(size, PADDING, tile)
        tiles = len(x) * d * h * w
        macs = lambda columns: product_macs(columns, out_channels, tiles)  # noqa: B023 - used within the case
        for kind in ("pos", "chan", "bal"):
            mask, expected = file[f"in_{case}_mask_{kind}"].bool(), file[f"out_{case}_y_{kind}"]
            masked = winograd_conv3d(x, weight * expand(mask), bias, tile, PADDING)
            assert_close(masked, expected, EXACT, f"{case} masked {kind}")
            for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, single(tile))):
                packed = PackedConv3d(weight.to(dtype), mask, bias.to(dtype), tile, PADDING)
                assert_close(packed(x.to(dtype)), expected, tolerance, f"{case} packed {kind} {dtype}")
                assert packed.kept == kept_columns(mask, in_channels)
            assert macs(kept_columns(mask, in_channels)) == int(file[f"out_{case}_macs_{kind}"])
        assert torch.equal(kept_positions(file[f"in_{case}_mask_pos"].bool()), file[f"out_{case}_idx_pos"])
        assert torch.equal(kept_channels(file[f"in_{case}_mask_bal"].bool()), file[f"out_{case}_idx_bal"])
        assert macs(in_channels * n) == int(file[f"out_{case}_macs_dense"])
        direct = 27 * in_channels * out_channels * file[f"out_{case}_y_pos"][:, 0].numel()
        assert direct == int(file[f"out_{case}_macs_direct"])
    file.finish()


def check_training_steps(arrays: dict[str, np.ndarray]) -> None:
    """Three steps that learn the mask, then steps under the fixed one: losses, masks, scores and weights."""
    file = Archive(arrays)
    cases = [key.removeprefix("in_").removesuffix("_x") for key in arrays if key.endswith("_x")]
    assert cases, "the file holds no case"
    sparsities = [round(float(value), 7) for value in file["hp_sparsity_per_step"]]
    options = {
        "lr": file.number("hp_lr"),
        "momentum": file.number("hp_momentum"),
        "weight_decay": file.number("hp_weight_decay"),
    }
    beta, stage1 = file.number("hp_score_beta"), int(file["hp_stage1_steps"])
    for case in cases:
        check_run(file, case, sparsities, options, beta, stage1)
    file.finish()


def check_run(file: Archive, case: str, sparsities: list[float], options: dict, beta: float, stage1: int) -> None:
    """Both stages of one parameterisation and granularity."""
    mode, granularity = case.rsplit("_", 1)
    x, target, base = file[f"in_{case}_x"], file[f"in_{case}_target"], file[f"param_{case}_W0"]
    channels = target.shape[1], x.shape[1]
    learned = {"W": base} if mode == "vanilla" else {name: file[f"param_{case}_{name}"] for name in "PQ"}
    layer = WinogradConv3d(
        torch.zeros(*channels, 3, 3, 3, dtype=torch.float64),
        torch.zeros(channels[0], dtype=torch.float64),
        PADDING,
        mode=mode,
        rank=learned["Q"].shape[0] if "Q" in learned else 1,
        granularity=GRANULARITIES[granularity],
    )
    with torch.no_grad():
        for name, value in learned.items():
            getattr(layer, name).copy_(value.view_as(getattr(layer, name)))
        if mode == "residual":
            layer.W0.copy_(base.view_as(layer.W0))
    optimiser = torch.optim.SGD(layer.parameters(), **options)
    learner = MaskLearner(layer, "taylor", beta)
    learner.start()
    losses, masks = [], []
    for step, sparsity in enumerate(sparsities):
        if step == stage1:
            learner.freeze()
        optimiser.zero_grad()
        loss = 0.5 * (layer(x) - target).square().mean()
        loss.backward()
        if step < stage1:
            learner.update(sparsity)
        optimiser.step()
        losses.append(loss.detach())
        masks.append(layer.mask.clone())
    assert_close(torch.stack(losses), file[f"out_{case}_loss"], STEPS, f"{case} loss")
    assert torch.equal(torch.stack(masks), file[f"out_{case}_masks"].bool()), f"{case} masks"
    assert_close(layer.score, file[f"out_{case}_score"], STEPS, f"{case} score")
    assert_close(layer.bias.detach(), file[f"out_{case}_bias"], STEPS, f"{case} bias")
    for name in learned:
        expected = file[f"out_{case}_{name}"]
        assert_close(getattr(layer, name).detach().view_as(expected), expected, STEPS, f"{case} {name}")
