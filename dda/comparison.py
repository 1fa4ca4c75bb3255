"""Every route with the same weights (section 11): is routing by the prior worth its multiply-adds?

All widths restore every tile once; a route is then a choice among finished tiles, so that all of them see the same.
"""

import statistics

from common.randomness import uniform

import torch
from torch import Tensor, nn

from dda import models
from dda.config import Config
from dda.evaluation import demoirer
from dda.inference import RANDOM_ROUTE, Grid
from dda.method import routing as routes
from dda.method.prior import moire_prior
from dda.metrics import to_uint8

DRAWS = 5  # random routes that are averaged


@torch.inference_mode()
def compare(network: nn.Module, test, config: Config) -> dict[str, dict[str, float]]:
    """{route: {psnr_uint8, psnr_hard, gmac_image, minus_<other>, …}} over the test images.

    psnr_hard: on the third of the tiles with most true moiré (by the prior where the truth is unknown). minus_random
    and minus_wide: mean and standard deviation over images of the paired difference in dB. A route `precondition`
    says whether wide, middle and narrow stand in this order on the hard tiles, and `prior` how its scores correlate
    with the truth.
    """
    routed = demoirer(config, network, [0.0] * (len(config.widths) - 1))
    rows: dict[str, list[tuple[float, float, float]]] = {}
    correlations = []
    for number in range(len(test)):
        image, clean = (torch.from_numpy(a).permute(2, 0, 1).to(routed.device) for a in test.read(number))
        grid = routed.grid(image.shape[1:])
        tiles, targets = routed.cut(image, grid), routed.cut(clean, grid)
        restored = [routed.restore(tiles, torch.full((len(tiles),), index)) for index in range(len(config.widths))]
        restored = to_uint8(torch.stack(restored).flatten(0, 1), config.rounding).double().div(255)
        restored = restored.view(len(config.widths), *tiles.shape)
        score = moire_prior(tiles, config.prior.mode, config.prior.relative_d0).cpu()
        mask = test.mask(number)
        truth = score if mask is None else routed.cut(torch.as_tensor(mask)[None], grid).float().mean((1, 2, 3)).cpu()
        if mask is not None:
            correlations.append(spearman(score, truth))
        hard = routes.by_rank(truth, 3) == 0
        for name, choice in choices(score, truth, len(config.widths), config.seed, number):
            picked = restored[choice.to(tiles.device), torch.arange(len(tiles), device=tiles.device)]
            errors = (picked - targets.double() / 255).square().mean((1, 2, 3)).cpu()
            quality = [float(-10 * part.mean().clamp(min=1e-12).log10()) for part in (errors, errors[hard])]
            rows.setdefault(name, []).append((*quality, spent(network, config, grid, choice) / 1e9))
    found = summary(rows)
    hard = [found[name]["psnr_hard"] for name in ("wide", "middle", "narrow") if name in found]
    found["precondition"] = {"holds": int(hard == sorted(hard, reverse=True))}
    if correlations:
        found["prior_and_truth"] = {"spearman": statistics.mean(correlations)}
    return found


def choices(score: Tensor, truth: Tensor, widths: int, seed: int, number: int) -> list[tuple[str, Tensor]]:
    """(name, width index of each tile) of every route of one image."""
    count = len(score)
    made = [("prior", routes.by_rank(score, widths)), ("inverse", routes.inverse(score, widths))]
    made += [("oracle", routes.by_rank(truth, widths))]
    for draw in range(DRAWS):
        made.append((f"random {draw}", routes.shuffled(draws(seed, number, count, draw), widths)))
    names = ("wide", "middle", "narrow") if widths == 3 else [f"width {index}" for index in range(widths)]
    return made + [(name, torch.full((count,), index)) for index, name in enumerate(names)]


def draws(seed: int, number: int, count: int, draw: int) -> Tensor:
    """Uniform numbers of one random route of an image."""
    return uniform(seed, number, torch.arange(count), RANDOM_ROUTE + 1 + draw)


def spent(network: nn.Module, config: Config, grid: Grid, choice: Tensor) -> int:
    """Multiply-adds of an image."""
    costs = [models.macs(network, width, (grid.height, grid.width)) for width in config.widths]
    return sum(costs[index] for index in choice.tolist())


def summary(rows: dict[str, list[tuple[float, float, float]]]) -> dict[str, dict[str, float]]:
    """Means over images, random draws averaged image by image, and the paired differences of section 11."""
    randoms = [rows.pop(f"random {draw}") for draw in range(DRAWS)]
    rows["random"] = [tuple(statistics.mean(values) for values in zip(*images)) for images in zip(*randoms)]
    found = {}
    for name, values in rows.items():
        quality, hard, gmac = (statistics.mean(column) for column in zip(*values))
        found[name] = {"psnr_uint8": quality, "psnr_hard": hard, "gmac_image": gmac}
    for other in ("random", "inverse", "wide"):
        if other in rows:
            paired = [a[0] - b[0] for a, b in zip(rows["prior"], rows[other])]
            found["prior"][f"minus_{other}"] = statistics.mean(paired)
            found["prior"][f"minus_{other}_sd"] = statistics.stdev(paired) if len(paired) > 1 else 0.0
    return found


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two scores [N]."""
    a, b = (routes.ranks(t).double() for t in (a, b))
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1].nan_to_num())


def print_comparison(found: dict[str, dict[str, float]]) -> None:
    """The routes as a table, the paired differences, and whether the networks are trained well enough to tell."""
    print(f"{'route':<12}{'PSNR':>8}{'hard third':>12}{'GMAC':>10}")
    for name, row in found.items():
        if "psnr_uint8" in row:
            print(f"{name:<12}{row['psnr_uint8']:>8.3f}{row['psnr_hard']:>12.3f}{row['gmac_image']:>10.3f}")
    for other in ("random", "inverse", "wide"):
        if f"minus_{other}" in found["prior"]:
            mean, spread = (found["prior"][f"minus_{other}{end}"] for end in ("", "_sd"))
            print(f"prior - {other}: {mean:+.3f} dB, standard deviation over images {spread:.3f}")
    if "prior_and_truth" in found:
        print(f"rank correlation of the prior with the true moiré: {found['prior_and_truth']['spearman']:.2f}")
    if not found["precondition"]["holds"]:
        print("under-trained, inconclusive: wide, middle and narrow do not stand in this order on the hard third")
