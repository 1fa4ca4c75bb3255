"""nms and roi_align against loops over the documented rules; torchvision as a user meets it, in fresh processes."""

import math
import os
import subprocess
import sys
from pathlib import Path

from common import torchvision_ops
from common.errors import InputError

import pytest
import torch

KIND = torchvision_ops.install()
ROOT = Path(__file__).parents[2]


def random_boxes(n, extent=100.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator, dtype=dtype) * extent
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator, dtype=dtype) * extent / 3], 1)


def naive_nms(boxes, scores, threshold):
    """Take the best box left, drop what overlaps it by more than the threshold, repeat."""
    boxes, left, kept = boxes.tolist(), sorted(range(len(boxes)), key=lambda i: -scores[i].item()), []
    while left:
        best = boxes[left[0]]
        kept.append(left.pop(0))
        area = lambda b: (b[2] - b[0]) * (b[3] - b[1])
        remaining = []
        for i in left:
            b = boxes[i]
            shared = max(min(b[2], best[2]) - max(b[0], best[0]), 0) * max(min(b[3], best[3]) - max(b[1], best[1]), 0)
            union = area(b) + area(best) - shared
            if union == 0 or shared / union <= threshold:
                remaining.append(i)
        left = remaining
    return kept


def naive_roi_align(features, rois, scale, bins_high, bins_wide, sampling, aligned):
    """The rule sample by sample: bilinear with clamped corners, 0 beyond one pixel outside, mean over the grid."""
    _, channels, height, width = features.shape

    def sample(plane, y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return torch.zeros(channels, dtype=features.dtype)
        y, x = max(y, 0.0), max(x, 0.0)
        top, left = int(y), int(x)
        y, top, bottom = (height - 1.0, height - 1, height - 1) if top >= height - 1 else (y, top, top + 1)
        x, left, right = (width - 1.0, width - 1, width - 1) if left >= width - 1 else (x, left, left + 1)
        down, across = y - top, x - left
        upper = (1 - across) * plane[:, top, left] + across * plane[:, top, right]
        lower = (1 - across) * plane[:, bottom, left] + across * plane[:, bottom, right]
        return (1 - down) * upper + down * lower

    out = torch.zeros(len(rois), channels, bins_high, bins_wide, dtype=features.dtype)
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0.0) for c in corners)
        high, wide = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        grid_y = sampling if sampling > 0 else math.ceil(high / bins_high)
        grid_x = sampling if sampling > 0 else math.ceil(wide / bins_wide)
        for p in range(bins_high):
            for q in range(bins_wide):
                for i in range(grid_y):
                    for j in range(grid_x):
                        y = y1 + p * high / bins_high + (i + 0.5) * high / bins_high / grid_y
                        x = x1 + q * wide / bins_wide + (j + 0.5) * wide / bins_wide / grid_x
                        out[k, :, p, q] += sample(features[int(image)], y, x) / max(grid_y * grid_x, 1)
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 40, 300])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_equals_the_naive_form(n, threshold):
    for seed in range(4):
        boxes = random_boxes(n, seed=seed, dtype=torch.float64)
        scores = torch.rand(n, generator=torch.Generator().manual_seed(seed + 99))
        assert torchvision_ops.nms(boxes, scores, threshold).tolist() == naive_nms(boxes, scores, threshold)


def test_nms_settles_chains_across_blocks(monkeypatch):
    # Each box overlaps its neighbours only, so every other one stays: the deepest chain of decisions there is.
    start = torch.arange(101.0, dtype=torch.float64)
    boxes = torch.stack([start, start * 0, start + 1.8, start * 0 + 1], 1)
    for block in (1, 7, 256):
        monkeypatch.setattr(torchvision_ops, "BLOCK", block)
        kept = torchvision_ops.nms(boxes, -start, 0.2)
        assert kept.tolist() == list(range(0, 101, 2))
        mixed = random_boxes(60, seed=block, dtype=torch.float64)
        scores = torch.rand(60, generator=torch.Generator().manual_seed(block))
        assert torchvision_ops.nms(mixed, scores, 0.1).tolist() == naive_nms(mixed, scores, 0.1)


@pytest.mark.parametrize("share, threshold, kept", [(3, 0.3, [0]), (7, 0.7, [0, 1])])
def test_nms_compares_with_the_threshold_in_double(share, threshold, kept):
    """float(3 / 10) exceeds 0.3 by its rounding, float(7 / 10) does not exceed 0.7: the compiled kernel sees that."""
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, share, 1]])
    assert torchvision_ops.nms(boxes, torch.tensor([0.9, 0.8]), threshold).tolist() == kept


def test_nms_keeps_the_order_of_ties_and_empty_boxes():
    boxes = random_boxes(50, seed=5, dtype=torch.float64).repeat(2, 1)
    boxes[10:20, 2:] = boxes[10:20, :2]  # no area: 0 / 0 suppresses nothing
    scores = (torch.arange(100) % 3).double()
    assert torchvision_ops.nms(boxes, scores, 0.5).tolist() == naive_nms(boxes, scores, 0.5)


def test_nms_compares_with_the_double_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 1, 1]])  # overlap float32(0.1), which is above 0.1
    assert torchvision_ops.nms(boxes, torch.tensor([2.0, 1.0]), 0.1).tolist() == [0]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [0, 1, 2, 3])
def test_roi_align_equals_the_naive_form(sampling, aligned):
    generator = torch.Generator().manual_seed(sampling)
    features = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64)
    # Boxes of a 36 x 44 image, inside, across its border and wholly outside; the last ones have no area or less.
    corner = torch.rand(14, 2, generator=generator, dtype=torch.float64) * 80 - 25
    far = corner + torch.rand(14, 2, generator=generator, dtype=torch.float64) * 50
    far[-2], far[-1] = corner[-2], corner[-1] - 3
    image = torch.randint(2, (14, 1), generator=generator).double()
    arguments = (torch.cat([image, corner, far], 1), 0.25, 3, 4, sampling, aligned)
    expected = naive_roi_align(features, *arguments)
    assert expected.flatten(1).abs().sum(1).count_nonzero() < 14
    torch.testing.assert_close(torchvision_ops.roi_align(features, *arguments), expected, atol=1e-12, rtol=0)


def test_roi_align_at_the_very_border():
    features = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    # One sample a box, at x = -1, just outside -1, at the width, and just outside it.
    x = torch.tensor([-1.0, -1.01, 4.0, 4.01], dtype=torch.float64)
    rois = torch.stack([x * 0, x - 0.5, x * 0 + 1, x + 0.5, x * 0 + 2], 1)
    assert torchvision_ops.roi_align(features, rois, 1.0, 1, 1, 1, False).flatten().tolist() == [1, 0, 1, 0]


def test_roi_align_in_small_chunks(monkeypatch):
    features = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    rois = torch.cat([torch.arange(9.0).fmod(2)[:, None], random_boxes(9, 8)], 1).double()
    whole = torchvision_ops.roi_align(features, rois, 1.0, 2, 2, 2, True)
    monkeypatch.setattr(torchvision_ops, "CHUNK", 100)
    torch.testing.assert_close(torchvision_ops.roi_align(features, rois, 1.0, 2, 2, 2, True), whole, atol=1e-14, rtol=0)


@pytest.mark.parametrize("few", [0, 4, 10**6])
def test_roi_align_gathers_and_multiplies_to_the_same(monkeypatch, few):
    """Bins of few pixels go another way than large ones; in a batch of both every box keeps its place."""
    monkeypatch.setattr(torchvision_ops, "FEW", few)
    features = torch.randn(2, 3, 12, 15, dtype=torch.float64)
    sizes = torch.tensor([[1.0, 1.5], [14, 11], [4, 3], [30, 40], [2, 9]], dtype=torch.float64)
    corner = torch.tensor([[3.0, 2], [0, 0], [-2, -1], [-9, -9], [12, 4]], dtype=torch.float64)
    rois = torch.cat([torch.tensor([[1.0], [0], [1], [0], [0]]).double(), corner, corner + sizes], 1)
    found = torchvision_ops.roi_align(features, rois, 1.0, 3, 2, 0, True)
    torch.testing.assert_close(found, naive_roi_align(features, rois, 1.0, 3, 2, 0, True))


@pytest.mark.parametrize("sampling", [0, 2])
def test_roi_align_gradient(sampling):
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, -2, 1, 4.3, 5.5], [1, 2.2, 0.1, 9, 3], [0, 1, 1, 1.5, 1.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: torchvision_ops.roi_align(x, rois, 1.0, 2, 3, sampling, True), features)


def test_roi_align_of_no_box_keeps_the_graph():
    features = torch.randn(2, 3, 8, 8, requires_grad=True)
    out = torchvision_ops.roi_align(features, torch.zeros(0, 5), 1.0, 2, 5, 0, False)
    assert out.shape == (0, 3, 2, 5)
    out.sum().backward()
    assert features.grad.eq(0).all()


def test_roi_align_keeps_its_precision_under_autocast():
    features, rois = torch.randn(1, 3, 8, 8), torch.tensor([[0, 1.1, 1.2, 6.3, 7.4]])
    plain = torchvision_ops.roi_align(features, rois, 1.0, 2, 2, 2, False)
    exact = torchvision_ops.roi_align(features.double(), rois.double(), 1.0, 2, 2, 2, False)
    torch.testing.assert_close(plain.double(), exact, atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torchvision_ops.roi_align(features, rois, 1.0, 2, 2, 2, False), plain)
        half = torchvision_ops.roi_align(features.bfloat16(), rois.bfloat16(), 1.0, 2, 2, 2, False)
    assert half.dtype == torch.bfloat16


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match=r"\[3, 5\] and scores \[3\]"):
        torchvision_ops.nms(torch.zeros(3, 5), torch.zeros(3), 0.5)
    with pytest.raises(InputError, match="batch of 2"):
        torchvision_ops.roi_align(torch.zeros(2, 1, 4, 4), torch.tensor([[2.0, 0, 0, 1, 1]]), 1.0, 1, 1, 1, False)
    with pytest.raises(InputError, match=r"\[1, 4\]"):
        torchvision_ops.roi_align(torch.zeros(2, 1, 4, 4), torch.zeros(1, 4), 1.0, 1, 1, 1, False)


@pytest.mark.skipif(KIND != "native", reason="the compiled operators of this torchvision do not load here")
def test_agreement_with_the_compiled_operators():
    pytest.importorskip("torchvision")  # registers the compiled operators' gradients
    for seed in range(20):
        boxes = random_boxes(200, seed=seed)
        scores = torch.rand(200, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torchvision_ops.nms(boxes, scores, 0.3), torch.ops.torchvision.nms(boxes, scores, 0.3))
        features = torch.randn(2, 3, 20, 30, dtype=torch.float64, requires_grad=True)
        rois = torch.cat([torch.arange(200.0).fmod(2)[:, None], boxes - 20], 1).double()
        for sampling in (0, 1, 2):
            for aligned in (False, True):
                arguments = (features, rois, 0.3, 3, 4, sampling, aligned)
                ours, theirs = torchvision_ops.roi_align(*arguments), torch.ops.torchvision.roi_align(*arguments)
                torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
                weight = torch.randn_like(ours)
                gradients = [torch.autograd.grad((out * weight).sum(), features)[0] for out in (ours, theirs)]
                torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)


def run(code):
    """Run code in a fresh interpreter and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_without_torchvision():
    code = "import sys; sys.modules['torchvision'] = None; import common; print(common.torchvision_ops.install())"
    assert run(code) == ["absent"]


def test_another_definition_is_left_alone():
    code = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import common
print(common.torchvision_ops.install())
"""
    assert run(code) == ["native"]


def test_torchvision_imports_and_trains_a_detector():
    code = """
import common, torch
assert common.torchvision_ops.install() == common.torchvision_ops.install() != "absent"
import torchvision
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.transforms import v2
torch.manual_seed(0)
assert v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32)])(torch.ones(3, 4, 4)).shape == (3, 4, 4)
assert torchvision.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [0, 0, 9, 9]])
kept = torchvision.ops.batched_nms(boxes, torch.tensor([0.5, 0.9, 0.8]), torch.tensor([0, 0, 1]), 0.5)
assert kept.tolist() == [1, 2]
pooled = torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2)({"0": torch.ones(1, 2, 8, 8)}, [boxes], [(8, 8)])
assert pooled.shape == (3, 2, 3, 3)
sizes = {"min_size": 64, "max_size": 64}
net = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3, **sizes)
target = {"boxes": torch.tensor([[5.0, 5, 40, 50]]), "labels": torch.tensor([1])}
losses = net.train()([torch.rand(3, 64, 64)], [target])
sum(losses.values()).backward()
gradients = [p.grad for p in net.parameters() if p.requires_grad]
assert all(g is not None and g.isfinite().all() for g in gradients)
assert sum(float(g.abs().sum()) > 0 for g in gradients) > len(gradients) * 0.9
assert {"boxes", "labels", "scores"} == set(net.eval()([torch.rand(3, 64, 64)])[0])
print("trained")
"""
    assert run(code) == ["trained"]


@pytest.mark.skipif(KIND != "fallback", reason="only the fallback lacks operators")
def test_what_is_not_replaced_says_so():
    code = """
import common, torch, torchvision
try:
    torchvision.ops.roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2)
except RuntimeError as error:
    print("custom C++ ops" in str(error))
"""
    assert run(code) == ["True"]


def test_importing_common_costs_one_info_line_and_no_torchvision():
    code = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s")
import common
print(common.torchvision_ops.install(), "torchvision" in sys.modules)
"""
    assert run(code) == ["INFO"] * (KIND == "fallback") + [KIND, "False"]
