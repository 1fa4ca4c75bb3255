"""torchvision's `nms` and `roi_align` in plain torch, for where its compiled operators cannot be loaded.

A torchvision built for CUDA finds no CUDA libraries beside a CPU-only torch: its operators are never defined,
and `import torchvision` fails. `install` tries the compiled library first and steps back if it loads. Not
replaced: roi_pool, ps_roi_*, deform_conv2d, rotated boxes, torchvision.io, torch.jit.script of detectors.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from pathlib import Path

from common.errors import InputError

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256  # boxes that `nms` settles at a time: its tables are [BLOCK, boxes left]
CHUNK = 2**24  # elements of the largest intermediate of `roi_align`
FEW = 64  # pixels of a bin that `roi_align` gathers one by one
WRAPPERS = ("torchvision.ops.boxes", "torchvision.ops.roi_align")
_kept_alive = []  # a torch.library.Library that is collected takes its operators with it


def _overlap(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Whether the intersection over union exceeds the threshold: corners [M, 4], [N, 4] to bool [M, N]."""
    (left, top, right, bottom), (x1, y1, x2, y2) = a.T[..., None].contiguous(), b.T.contiguous()
    shared = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp_(min=0)
    shared *= (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp_(min=0)
    area_a, area_b = (right - left) * (bottom - top), (x2 - x1) * (y2 - y1)
    # The compiled kernel compares its float with a double threshold: that is, with the next float below it.
    bound = torch.tensor(threshold, dtype=shared.dtype, device=shared.device)
    bound = torch.where(bound.double() > threshold, torch.nextafter(bound, -torch.full_like(bound, torch.inf)), bound)
    return shared.div_(area_a + area_b - shared) > bound


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, exact; equal scores keep their order.

    dets: [N, 4] as (x1, y1, x2, y2); scores: [N]. Returns the kept indices, int64, best score first.
    """
    if dets.ndim != 2 or dets.shape[1] != 4 or scores.shape != dets.shape[:1]:
        raise InputError(f"nms got boxes {[*dets.shape]} and scores {[*scores.shape]}; give [N, 4] and [N]")
    left = torch.sort(scores, descending=True, stable=True).indices
    kept = [left[:0]]
    while len(left):
        block, left = left[:BLOCK], left[BLOCK:]
        suppresses = _overlap(dets[block], dets[block], iou_threshold).triu(1).float()
        # A box stays unless one before it stays and suppresses it. A sweep settles at least one more box;
        # what a sweep leaves unchanged is the greedy answer, the only fixed point.
        stays, before = torch.ones_like(suppresses[0]), None
        while before is None or not torch.equal(stays, before):
            stays, before = (stays @ suppresses == 0).float(), stays  # a sum of at most BLOCK ones, exact
        kept.append(block[stays.bool()])
        left = left[~_overlap(dets[kept[-1]], dets[left], iou_threshold).any(0)]
    return torch.cat(kept)


def _axis(start: Tensor, extent: Tensor, bins: int, samples: int, size: int) -> tuple[Tensor, Tensor]:
    """Which of `size` pixels count in each bin along one axis, and how much: [K, bins, 2·most] both.

    A bin averages bilinear samples at even steps. A sample outside by more than one pixel is 0, one outside
    by less takes the border pixel. samples <= 0 stands for ceil(extent / bins) of each box.
    """
    step = (extent / bins)[:, None, None]
    number = torch.full_like(step, samples) if samples > 0 else step.ceil().clamp(min=0)
    most = int(number.max()) if len(number) else 0
    p, g = (torch.arange(n, device=start.device, dtype=start.dtype) for n in (bins, most))
    at = start[:, None, None] + p[:, None] * step + (g + 0.5) * step / number  # [K, bins, most]
    share = ((at >= -1) & (at <= size) & (g < number)) / number.clamp(min=1)
    at = torch.where(share > 0, at, 0).clamp(0, size - 1)
    low = at.long()
    high = (low + 1).clamp(max=size - 1)
    return torch.cat([low, high], 2), torch.cat([share * (1 - (at - low)), share * (at - low)], 2)


def _first(pixels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The first pixel of each bin [K, bins], and the pixels of each box's widest bin [K]."""
    if not pixels.shape[2]:
        return pixels.new_zeros(pixels.shape[:2]), pixels.new_ones(len(pixels))
    used = weights > 0
    first = torch.where(used, pixels, pixels.amax()).amin(2)
    return first, (torch.where(used, pixels, 0).amax(2) - first).amax(1).clamp(min=0) + 1


def _table(pixels: Tensor, weights: Tensor, size: int) -> Tensor:
    """Weights [K, bins, size] of pixels that are counted from 0."""
    return weights.new_zeros(*pixels.shape[:2], size).scatter_add_(2, pixels.clamp(0, size - 1), weights)


class _WeightedSums(torch.autograd.Function):
    """Σ_n share[b, n] · flat[place[b, n]] of each bag b: [pixels, C], [bags, n] twice -> [bags, C].

    The gradient is such a sum too, over the bags in which a pixel lies; torch's own takes up to five times as long.
    """

    @staticmethod
    def forward(ctx, flat: Tensor, place: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(place, share)
        ctx.pixels = len(flat)
        return F.embedding_bag(place, flat, per_sample_weights=share, mode="sum")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        place, share = ctx.saved_tensors
        found = torch.bincount(place.flatten(), minlength=ctx.pixels)
        order = place.flatten().int().argsort(stable=True)
        bags, starts, shares = order // place.shape[1], found.cumsum(0) - found, share.flatten()[order]
        return F.embedding_bag(bags, grad, starts, per_sample_weights=shares, mode="sum"), None, None


def _gather(
    flat: Tensor, start: Tensor, width: int, down: tuple[Tensor, Tensor], across: tuple[Tensor, Tensor]
) -> Tensor:
    """Bins of boxes as weighted sums of the pixels of all maps [N·H·W, C]: [K, C, PH, PW]; for bins of a few pixels.

    start: where each box's map begins, [K]; down, across: pixels and weights as `_axis` gives them.
    """
    spots, shares = [], []
    for pixels, weights in (down, across):
        first, most = _first(pixels, weights)
        window = torch.arange(int(most.max()), device=flat.device)
        spots.append(first[..., None] + window)
        shares.append(_table(pixels - first[..., None], weights, len(window)))
    rows = spots[0] * width + start[:, None, None]
    place = rows[:, :, None, :, None] + spots[1][:, None, :, None, :]  # [K, PH, PW, rows, columns]
    place = place.clamp(max=len(flat) - 1)  # a window may reach beyond its map, with weight 0
    share = shares[0][:, :, None, :, None] * shares[1][:, None, :, None, :]
    sums = _WeightedSums.apply(flat, *(part.flatten(0, 2).flatten(1) for part in (place, share)))
    return sums.view(*place.shape[:3], -1).permute(0, 3, 1, 2)


def roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int,
    sampling_ratio: int, aligned: bool,
) -> Tensor:  # fmt: skip
    """Average of bilinear samples in the bins of each box (He et al., Mask R-CNN, section 3).

    input: [N, C, H, W]; rois: [K, 5] as (image, x1, y1, x2, y2). Returns [K, C, PH, PW]. Has no gradient to
    rois. Interpolation and border rule are separable: a box with bins of a few pixels gathers them, any other is two
    matrix products, over rows and columns.
    """
    images, channels, height, width = input.shape
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise InputError(f"roi_align got rois {[*rois.shape]}; give [K, 5]: image, x1, y1, x2, y2")
    if len(rois) and not 0 <= int(rois[:, 0].min()) <= int(rois[:, 0].max()) < images:
        raise InputError(f"roi_align got a box outside its batch of {images} images; number them from 0")
    # As in the compiled operator, autocast does not lower the precision in here.
    with torch.autocast(input.device.type, enabled=False):
        precision = torch.promote_types(input.dtype, torch.float32)
        with torch.no_grad():
            corner = rois[:, 1:].to(precision) * spatial_scale - (0.5 if aligned else 0.0)
            extent = (corner[:, 2:] - corner[:, :2]).clamp(min=-torch.inf if aligned else 1.0)
            down = _axis(corner[:, 1], extent[:, 1], pooled_height, sampling_ratio, height)
            across = _axis(corner[:, 0], extent[:, 0], pooled_width, sampling_ratio, width)
            few = _first(*down)[1] * _first(*across)[1] <= FEW
        pooled = [input.new_zeros(0, channels, pooled_height, pooled_width, dtype=precision)]
        order = [torch.empty(0, dtype=torch.int64, device=rois.device)]
        small = few.nonzero()[:, 0]
        if len(small):
            flat = input.to(precision).permute(0, 2, 3, 1).contiguous().view(-1, channels)
            start = rois[:, 0].long() * (height * width)
            for part in small.split(max(CHUNK // (pooled_height * pooled_width * FEW), 1)):
                bins = [(pixels[part], weights[part]) for pixels, weights in (down, across)]
                pooled.append(_gather(flat, start[part], width, *bins))
                order.append(part)
        for image in range(images):
            large = ((rois[:, 0].long() == image) & ~few).nonzero()[:, 0]
            if len(large) or not len(rois):  # without any box, empty products keep the graph
                flat = input[image].to(precision).transpose(0, 1).reshape(height, channels * width)
                for part in large.split(max(CHUNK // max(pooled_height * channels * width, 1), 1)):
                    rows = _table(*(x[part] for x in down), height).flatten(0, 1) @ flat
                    rows = rows.view(len(part), pooled_height * channels, width)
                    both = rows @ _table(*(x[part] for x in across), width).mT
                    pooled.append(both.view(len(part), pooled_height, channels, pooled_width).transpose(1, 2))
                    order.append(part)
        return torch.cat(pooled)[torch.cat(order).argsort()].to(input.dtype)


class _Admit(importlib.abc.MetaPathFinder):
    """Lets torchvision's wrappers call the operators above, where they would ask for the compiled library."""

    def find_spec(self, fullname, path, target=None):
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if fullname in WRAPPERS else None
        if spec is not None:
            spec.loader.exec_module = functools.partial(self.execute, spec.loader.exec_module)
        return spec

    @staticmethod
    def execute(execute, module):
        execute(module)
        module._has_ops, module._assert_has_ops = (lambda: True), (lambda: None)


@functools.cache
def install() -> str:
    """Make torchvision importable; comes before its first import, and further calls do nothing.

    Returns "native" (the operators exist or load), "fallback" (this file's serve) or "absent" (no torchvision).
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return "native"
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return "absent"
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        try:
            torch.ops.load_library(Path(spec.submodule_search_locations[0]) / f"_C{suffix}")
            return "native"
        except OSError:
            continue
    _kept_alive.append(library := torch.library.Library("torchvision", "DEF"))
    for name, kernel in (("nms", nms), ("qnms", nms), ("roi_align", roi_align)):
        library.define(name + torch.library.infer_schema(kernel, mutates_args=()))
    library.impl("nms", nms, "CompositeExplicitAutograd")
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    sys.meta_path.insert(0, _Admit())
    logging.getLogger(__name__).info("torchvision's compiled operators do not load; nms, roi_align run in torch")
    return "fallback"
