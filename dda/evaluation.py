"""The routed evaluation of a test set: every number of the protocol (section 6), and the routed network of a config."""

import math
from pathlib import Path

from common import distributed
from common.images import write_image
from common.metrics import psnr_float

import numpy as np
import torch
from torch import Tensor, nn

from dda.classes import tile_scores
from dda.config import Config
from dda.inference import Demoirer, Result, overlay
from dda.method.routing import by_rank, calibrate
from dda.metrics import Rounding, psnr_fitted, scores, to_uint8

NAMES = ("psnr_uint8", "psnr_float", "ssim_uniform7", "ssim_gaussian11", "ciede2000")
NAMES += ("psnr_input", "psnr_fitted", "psnr_hard", "gmac_image", "seconds_image")


def calibration(config: Config, train, device: torch.device) -> list[float]:
    """Global thresholds between the widths, from the first training images; only for the route that uses them."""
    if config.routing.kind != "threshold":
        return []
    scored = tile_scores(train, config, device, config.tiles.test, config.routing.calibration)
    return calibrate(scored.score, len(config.widths))


def demoirer(config: Config, network: nn.Module, thresholds: list[float]) -> Demoirer:
    """The routed network that a config describes."""
    return Demoirer(
        network,
        config.widths,
        tile=config.tiles.test,
        routing=config.routing,
        prior=config.prior,
        overlap=config.tiles.blend,
        seed=config.seed,
        thresholds=thresholds,
        precision=config.run.precision,
    )


def evaluate(
    network: nn.Module, test, config: Config, thresholds: list[float], picture: Path | None = None
) -> dict[str, float]:
    """Every number of the protocol, averaged over the test images; the same on all ranks.

    psnr_input is the moiré image's, psnr_fitted the same after its best global gain and offset.
    picture: where the first image goes as moiré, result, clean and width map side by side.
    """
    routed = demoirer(config, network, thresholds)
    rows = []
    for number in range(distributed.rank(), len(test), distributed.world()):
        image, clean = (torch.from_numpy(array).permute(2, 0, 1) for array in test.read(number))
        mask = test.mask(number)
        hardness = None if mask is None else torch.as_tensor(mask)
        result = routed(image, number, hardness)
        restored = result.image.cpu()[None]
        row = scores(restored, clean[None], config.rounding)
        row |= {
            "psnr_input": psnr_float(image[None].double() / 255, clean[None].double() / 255),
            "psnr_fitted": psnr_fitted(image[None], clean[None]),
            "psnr_hard": psnr_hard(routed, result, clean, hardness, config.rounding),
        }
        row |= {"gmac_image": result.macs / 1e9, "seconds_image": result.seconds}
        rows.append([float(value) for value in row.values()])
        if number == 0 and picture is not None:
            marked = overlay(image, result, len(config.widths))
            shown = [image, to_uint8(restored, config.rounding)[0], clean, marked]
            write_image(picture, np.ascontiguousarray(torch.cat(shown, 2).permute(1, 2, 0).numpy()))
    total = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(NAMES)).sum(0)  # a process may have no image
    device = next(network.parameters()).device
    found = dict(zip(NAMES, (distributed.sum_(total.to(device)) / len(test)).tolist()))
    return {name: value for name, value in found.items() if value == value}


def psnr_hard(routed: Demoirer, result: Result, clean: Tensor, hardness: Tensor | None, rounding: Rounding) -> float:
    """PSNR over the third of the tiles with most true moiré; NaN where nobody knows it."""
    if hardness is None:
        return float("nan")
    truth = routed.cut(hardness[None], result.grid).mean((1, 2, 3))
    hard = by_rank(truth, 3) == 0
    tiles, targets = (routed.cut(images, result.grid)[hard] for images in (result.image.cpu(), clean))
    restored = to_uint8(tiles, rounding).double()
    return float(20 * math.log10(255) - 10 * (restored - targets.double()).square().mean().clamp(min=1e-9).log10())
