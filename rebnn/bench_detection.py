"""What the operators of detection cost where torchvision's compiled ones do not load; a part of bench.py.

`roi_align`: 512 regions of 28 to 112 pixels on a map of 256 channels and stride 4, 7x7 cells of 2x2 samples.
Reference: torchvision's own Python version, eager (whose memory for adaptive samples grows with the whole map).
`nms`: 4,000 boxes in 400 crowds. Reference: the best box and what it suppresses, one after another. Where the compiled
operators load, `roi_align_native` and `nms_native` have those as reference.
"""

import sys

from common import torchvision_ops
from common.cost import compare, interleaved

import torch
import torchvision
from torch import Tensor

REGIONS, CHANNELS, HEIGHT, WIDTH, STRIDE, CELLS, SAMPLES = 512, 256, 152, 200, 4, 7, 2
BOXES, THRESHOLD = 4000, 0.5


def bench_operators(rounds: int) -> dict[str, dict]:
    """The rows of both operators."""
    torch.manual_seed(0)
    return bench_roi_align(rounds) | bench_nms(rounds)


def bench_roi_align(rounds: int) -> dict[str, dict]:
    """RoIAlign of one image's regions."""
    features = torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    side = 28 + 84 * torch.rand(REGIONS, 2)
    corner = torch.rand(REGIONS, 2) * (torch.tensor([WIDTH, HEIGHT]) * STRIDE - side)
    regions = torch.cat([torch.zeros(REGIONS, 1), corner, corner + side], 1)
    words = (features, regions, 1 / STRIDE, CELLS, CELLS, SAMPLES, True)
    eager = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__
    forms = {"roi_align": lambda: torchvision_ops.roi_align(*words), "eager": lambda: eager(*words)}
    return _rows("roi_align", forms, "eager", rounds, lambda: torch.ops.torchvision.roi_align(*words))


def bench_nms(rounds: int) -> dict[str, dict]:
    """Suppression among boxes that crowd around a few hundred places."""
    centre = torch.rand(400, 2).repeat_interleave(BOXES // 400, 0) * 900
    corner = centre + 6 * torch.randn(BOXES, 2)
    words = (torch.cat([corner, corner + 40 + 20 * torch.rand(BOXES, 2)], 1), torch.rand(BOXES), THRESHOLD)
    forms = {"nms": lambda: torchvision_ops.nms(*words), "plain": lambda: plain_nms(*words)}
    return _rows("nms", forms, "plain", rounds, lambda: torch.ops.torchvision.nms(*words))


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The best box left, without what it overlaps by more than the threshold, and so on."""
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[torchvision.ops.box_iou(boxes[best][None], boxes[left])[0] <= threshold]
    return torch.stack(kept)


def _rows(name: str, forms: dict, reference: str, rounds: int, native) -> dict[str, dict]:
    for form in forms.values():  # a row of forms that disagree would say nothing
        assert torch.allclose(form().double(), forms[reference]().double(), atol=1e-4), name
    compiled = torchvision_ops.install() == "native"
    if compiled:
        forms["native"] = native
    seconds = interleaved(forms, rounds, warmup=1)
    rows = {name: compare(seconds, reference)[name].row(reference=reference)}
    if compiled:
        rows[f"{name}_native"] = compare(seconds, "native")[name].row(reference="native")
    return rows
