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
from torch import Tensor

BLOCK = 512  # boxes that `nms` settles at a time: its tables are [BLOCK, boxes left]
CHUNK = 2**24  # elements of the largest intermediate of `roi_align`
WRAPPERS = ("torchvision.ops.boxes", "torchvision.ops.roi_align")
_kept_alive = []  # a torch.library.Library that is collected takes its operators with it


def _overlap(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Whether the intersection over union exceeds the threshold: corners [M, 4], [N, 4] to bool [M, N]."""
    side = torch.min(a[:, None, 2:], b[None, :, 2:]) - torch.max(a[:, None, :2], b[None, :, :2])
    shared = side.clamp(min=0).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    # In double, because the compiled kernel compares its float with a double threshold.
    return (shared / (area_a[:, None] + area_b - shared)).double() > threshold


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
        suppresses = _overlap(dets[block], dets[block], iou_threshold).triu(1)
        # A box stays unless one before it stays and suppresses it. A sweep settles at least one more box;
        # what a sweep leaves unchanged is the greedy answer, the only fixed point.
        stays, before = torch.ones_like(suppresses[0]), None
        while before is None or not torch.equal(stays, before):
            stays, before = ~(suppresses & stays[:, None]).any(0), stays
        kept.append(block[stays])
        left = left[~_overlap(dets[kept[-1]], dets[left], iou_threshold).any(0)]
    return torch.cat(kept)


def _axis_weights(start: Tensor, extent: Tensor, bins: int, samples: int, size: int) -> Tensor:
    """How much each of `size` pixels counts in each bin along one axis: [K, bins, size].

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
    weights = at.new_zeros(*at.shape[:2], size).scatter_add_(2, low, share * (1 - (at - low)))
    return weights.scatter_add_(2, (low + 1).clamp(max=size - 1), share * (at - low))


def roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int,
    sampling_ratio: int, aligned: bool,
) -> Tensor:  # fmt: skip
    """Average of bilinear samples in the bins of each box (He et al., Mask R-CNN, section 3).

    input: [N, C, H, W]; rois: [K, 5] as (image, x1, y1, x2, y2). Returns [K, C, PH, PW]. Has no gradient to
    rois. Interpolation and border rule are separable: a box is two matrix products, over rows and columns.
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
            down = _axis_weights(corner[:, 1], extent[:, 1], pooled_height, sampling_ratio, height)
            across = _axis_weights(corner[:, 0], extent[:, 0], pooled_width, sampling_ratio, width)
        pooled = [input.new_zeros(0, channels, pooled_height, pooled_width, dtype=precision)]
        order = [torch.empty(0, dtype=torch.int64, device=rois.device)]
        for image in range(images):
            flat = input[image].to(precision).transpose(0, 1).reshape(height, channels * width)
            own = (rois[:, 0].long() == image).nonzero()[:, 0]
            for part in own.split(max(CHUNK // max(pooled_height * channels * width, 1), 1)):
                rows = (down[part].flatten(0, 1) @ flat).view(len(part), pooled_height * channels, width)
                both = (rows @ across[part].mT).view(len(part), pooled_height, channels, pooled_width)
                pooled.append(both.transpose(1, 2))
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
