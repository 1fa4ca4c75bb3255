"""How both stages are judged: region errors of removal, and synthesis against a shadow that is known."""

from collections.abc import Callable

from common.errors import InputError
from common.shadow.metrics import REGIONS, White, score, summary
from common.shadow.relight import relit
from common.shadow.sources import SyntheticTriplets
from common.shadow.synthesis import darken, draw

import numpy as np
import torch
from torch import Tensor, nn

from hqss import donors, method
from hqss.build import Paint
from hqss.config import Data
from hqss.data import TEST_SEED, Photographs, Test
from hqss.inference import online_errors, restore
from hqss.items import Crop, dilate, prepare

Restore = Callable[[Test], np.ndarray]


def judge(coarse: nn.Module, refine: nn.Module, test: Photographs, clear: bool) -> dict[str, float]:
    """The release's routine after each epoch: D65 error at full size by region, over pixels (pp) and images."""
    triplets = [test.triplet(index) for index in range(len(test))]
    return online(lambda t: restore(coarse, refine, t.shadow, t.given, clear), triplets)


def online(restorer: Restore, triplets: list[Test], prefix: str = "") -> dict[str, float]:
    """error_{s,ns,all} over images and error_pp_* over pixels, D65 at full size (section 6).

    ns_official: the release's non-shadow region, nearly the whole picture (section 9).
    """
    results = [restorer(triplet) for triplet in triplets]
    frees, masks = [t.free for t in triplets], [t.mask for t in triplets]
    found = {}
    for name in (*REGIONS, "ns_official"):
        region, _, official = name.partition("_")
        over_pixels, over_images = online_errors(results, frees, masks, region, bool(official))
        found |= {f"{prefix}error_{name}": over_images, f"{prefix}error_pp_{name}": over_pixels}
    return found


def removal(
    coarse: nn.Module,
    refine: nn.Module,
    test: Photographs,
    clear: bool,
    size: tuple[int, int] | None,
    white: White = "d50",
) -> dict[str, float]:
    """The MATLAB protocol at `size` (psnr_, ssim_, error_ of all, ns, s), the release's routine (online_), and for
    comparison the photograph as it is (input_) and the classical affine relight (affine_).

    white: of the errors' Lab. Names end in _full where size is None, and in _d65 for that white. Where masks are
    detected ones, true_mask_ gives the same with the true masks at inference (section 9).
    """
    suffix = ("" if size else "_full") + ("" if white == "d50" else f"_{white}")
    triplets = [test.triplet(index) for index in range(len(test))]
    ours = lambda t: restore(coarse, refine, t.shadow, t.given, clear)
    ways: dict[str, Restore] = {"": ours, "input_": lambda t: t.shadow, "affine_": lambda t: relit(t.shadow, t.given)}
    if test.detected is not None:
        ways["true_mask_"] = lambda t: restore(coarse, refine, t.shadow, t.mask, clear)
    found = {}
    for prefix, restorer in ways.items():
        values = summary([score(restorer(t), t.free, t.mask, size, white) for t in triplets])
        kept = values if prefix in ("", "true_mask_") else {k: v for k, v in values.items() if k.startswith("error")}
        found |= {f"{prefix}{name}{suffix}": value for name, value in kept.items()}
    return {**found, **online(ours, triplets, "online_"), "images": len(triplets)}


def is_known(test: Photographs) -> bool:
    """Whether the true shadow of a lit region is known: shadows are synthetic, on crops of one size."""
    return isinstance(test.source, SyntheticTriplets) and test.source.size is not None


@torch.inference_mode()
def synthesis(paint: Paint, test: Photographs, settings: Data, device: torch.device) -> dict[str, float]:
    """Pseudo shadows against the true shadow of the same lit region, known where shadows are synthetic (section 11).

    synth_error: Lab error (sum over channels) in the lit region. darkness: share of the true drop in L that was made,
    0 for a copy and 1 for the truth. detail: correlation of the gradients of L with the photograph's. copy_ and gain_:
    the lit region as it is, and times one factor. Errors: InputError for photographs, whose truth nobody knows.
    """
    if not is_known(test):
        raise InputError(
            "stage synthesis is judged on synthetic crops: data.name embedded or photos, with data.test_side"
        )
    partners = donors.build(test.mask, len(test), settings.ratio_min, settings.ratio_max, settings.donors)
    rows: dict[str, list[Tensor]] = {}
    for index in range(len(test)):
        item, truth = known(test, partners, index, settings)
        if item["lit_mask"].sum() < settings.min_pixels or item["shadow_mask"].sum() < settings.min_pixels:
            continue
        batch = {name: value[None] for name, value in item.items()}
        pseudo = paint({name: value.to(device) for name, value in batch.items()}).cpu().float()
        gain = method.gain_shadow(batch["lit"], batch["lit_mask"], batch["image"], batch["shadow_mask"])
        images = {"": pseudo, "copy_": batch["lit"], "gain_": gain}
        for prefix, image in images.items():
            for name, value in compared(image[0], truth, item["lit"], item["lit_mask"]).items():
                rows.setdefault(f"{prefix}{name}", []).append(value)
    if not rows:
        raise InputError("no synthetic test photograph has a lit region; raise data.test_count")
    return {name: float(torch.stack(values).mean()) for name, values in rows.items()} | {
        "lit_regions": len(rows["detail"])
    }


def known(test: Photographs, partners: donors.Donors, index: int, settings: Data) -> tuple[dict[str, Tensor], Tensor]:
    """A test item, and its lit region under the shadow of the same photograph [3, size, size]."""
    rgb, mask = test.read(index)
    lit = test.mask(partners.draw(TEST_SEED, 0, index)) & (1 - mask)
    drawn = draw(TEST_SEED, index, rgb.shape[:2])
    dark = darken(torch.from_numpy(rgb.copy()).permute(2, 0, 1).float() / 255, drawn.w, drawn.b).clamp(0, 1)
    dark = np.ascontiguousarray(dark.permute(1, 2, 0).numpy())
    frame = settings.size, settings.size, Crop(0, 0, False)
    dilated = dilate(lit, settings.dilation, settings.dilation_size)
    item = prepare(rgb, mask, lit, dilated, *frame, settings.background)
    return item, prepare(dark, mask, lit, dilated, *frame, settings.background)["lit"]


def compared(image: Tensor, truth: Tensor, lit: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """synth_error, darkness and detail of one pseudo shadow, [3, H, W] normalised; mask [1, H, W] of the lit region."""
    inside = mask[0] > 0
    found, true, before = (method.denormalise(x) for x in (image, truth, lit))
    error = (found - true).abs().sum(0)[inside].mean()
    drop = (before - true)[0][inside].mean()
    share = (before - found)[0][inside].mean() / drop.clamp(min=1e-3)
    return {"synth_error": error, "darkness": share, "detail": correlation(found[0], before[0], inside)}


def correlation(one: Tensor, two: Tensor, inside: Tensor) -> Tensor:
    """Pearson correlation of the differences between neighbours that both lie inside, images [H, W]."""
    pairs = []
    for axis in (0, 1):
        both = inside.narrow(axis, 1, inside.shape[axis] - 1) & inside.narrow(axis, 0, inside.shape[axis] - 1)
        pairs.append(torch.stack([x.diff(dim=axis)[both] for x in (one, two)]))
    x, y = torch.cat(pairs, 1)
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-12)
