"""Boxes, anchors, matching, losses, networks, data and metrics of the detectors, each against its definition."""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import common  # noqa: F401
from common import photos
from common.errors import CheckpointError, InputError
from common.images import write_image
from common.testing import hostile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from rebnn import models, weights
from rebnn.detection import augment, composed, data, pair, voc
from rebnn.detection.anchors import Anchors, base_anchors, grid, ssd_base_anchors, ssd_priors
from rebnn.detection.backbone import Neck, body
from rebnn.detection.boxes import LIMIT, Coder, clip, decode, encode, overlap
from rebnn.detection.config import Config, Data, Detector, Step
from rebnn.detection.evaluation import coco_metrics, detect
from rebnn.detection.fasterrcnn import RegionAlign
from rebnn.detection.matching import Matcher, Sampler
from rebnn.detection.multibox import STDS, corners, decode_priors, match_priors, multibox_loss
from rebnn.detection.pictures import draw_sheet
from rebnn.detection.records import Found, Scene
from rebnn.detection.schedule import multi_step
from rebnn.detection.sources import VOC_CLASSES, checked
from rebnn.detection.ssd import SSD
from rebnn.detection.weights import load_body, load_detector
from rebnn.method import Balance, BinaryConv2d
from rebnn.models.layers import RealConv2d

TINY = Detector(body="resnet10", width=1 / 16, proposals=30, regions=16, frozen=0, norm_eval=False)


def boxes_like(count: int, seed: int, size: float = 100.0) -> torch.Tensor:
    """Random boxes inside a square."""
    torch.manual_seed(seed)
    low = torch.rand(count, 2) * size * 0.7
    return torch.cat([low, low + 5 + torch.rand(count, 2) * size * 0.25], 1)


# -- boxes, anchors, matching ----------------------------------------------------------------------------------------


def test_codes_are_undone_and_held_within_limits():
    anchors, boxes = boxes_like(20, 0).double(), boxes_like(20, 1).double()
    stds = torch.tensor(STDS, dtype=torch.float64)
    assert torch.allclose(decode(anchors, encode(anchors, boxes, stds), stds), boxes)
    ours = Coder(STDS).decode(torch.zeros(20, 8), [anchors[:5], anchors[5:]])
    assert ours.shape == (20, 2, 4) and torch.allclose(ours, anchors[:, None].expand(-1, 2, -1))
    wide = decode(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 99, -99]]), torch.ones(4))[0]
    assert (wide[2] - wide[0]).item() == pytest.approx(10 * math.exp(LIMIT))
    assert (wide[3] - wide[1]).item() == pytest.approx(10 * 16 / 1000, rel=1e-4)
    assert clip(torch.tensor([[-3.0, -4, 50, 60]]), (20, 30)).tolist() == [[0, 0, 30, 20]]
    assert torch.allclose(overlap(boxes, anchors), torchvision.ops.box_iou(boxes, anchors))
    assert overlap(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_anchors_stand_row_by_row_with_the_ratio_fastest():
    base = base_anchors(4, (8,))
    assert torch.allclose((base[:, 2:] - base[:, :2]).prod(1), torch.full((3,), 32.0**2, dtype=torch.float64))
    ratio = (base[:, 3] - base[:, 1]) / (base[:, 2] - base[:, 0])
    assert torch.allclose(ratio, torch.tensor([0.5, 1, 2], dtype=torch.float64))
    found = grid(base, (2, 3), 4)
    wanted = [base[r] + torch.tensor([x, y, x, y]) * 4 for y in range(2) for x in range(3) for r in range(3)]
    assert torch.equal(found, torch.stack(wanted))
    images = type("Images", (), {"image_sizes": [(8, 12), (8, 8)]})
    two = Anchors((4, 8), (8,))(images, [torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 1, 2)])
    assert len(two) == 2 and all(one.shape == (2 * 3 * 3 + 2 * 3, 4) for one in two)


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_priors_are_8732_inside_the_image_and_end_with_the_largest(name):
    priors = ssd_priors(name)
    assert priors.shape == (8732, 4) and priors.min() >= 0 and priors.max() <= 1
    least = {"voc": 30, "coco": 21}[name]
    assert priors[0].tolist() == pytest.approx([4 / 300, 4 / 300, least / 300, least / 300])
    assert priors[-4, :2].tolist() == pytest.approx([0.5, 0.5])


def test_base_anchors_of_coco_and_of_an_unknown_range():
    levels = ssd_base_anchors(15, 90)
    assert [len(level) for level in levels] == [4, 6, 6, 6, 4, 4]
    sides = [(level[0, 2] - level[0, 0]).item() for level in levels]
    assert sides == [21, 45, 99, 153, 207, 261]
    with pytest.raises(InputError, match=r"from 30 % .* give 20 \(VOC\) or 15 \(COCO\)"):
        ssd_base_anchors(30, 90)


def test_matching_gives_every_box_its_best_anchors():
    overlaps = torch.tensor([[0.8, 0.5, 0.2, 0.10, 0.45], [0.6, 0.2, 0.1, 0.35, 0.45], [0.0, 0.0, 0.0, 0.25, 0.0]])
    assert Matcher(0.7, 0.3)(overlaps).tolist() == [0, -2, -1, -2, -2]
    # Box 1's best anchor is 0, which it takes from box 0; box 2 overlaps its best by less than 0.3.
    assert Matcher(0.7, 0.3, least=0.3)(overlaps).tolist() == [1, -2, -1, -2, -2]
    ties = torch.tensor([[0.4, 0.4, 0.1], [0.2, 0.4, 0.1]])
    assert Matcher(0.7, 0.3, least=0.3)(ties).tolist() == [0, 1, -1]
    assert Matcher(0.5, 0.5)(overlaps).tolist() == [0, 0, -1, -1, -1]


def test_sampling_depends_on_seed_image_and_pass_alone():
    labels = torch.zeros(500)
    labels[:100], labels[100:150] = 1, -1
    sampler = Sampler(64, 0.25, 3, 2**32)
    drawn = {}
    for name, images in {"a": [(7, 1)], "again": [(7, 1)], "pass": [(7, 2)], "image": [(8, 1)]}.items():
        sampler.at(images)
        (positive,), (negative,) = sampler([labels])
        assert positive.sum() == 16 and negative.sum() == 48
        assert not (positive & (labels < 1)).any() and not (negative & (labels != 0)).any()
        drawn[name] = torch.stack([positive, negative])
    assert torch.equal(drawn["a"], drawn["again"])
    assert not torch.equal(drawn["a"], drawn["pass"]) and not torch.equal(drawn["a"], drawn["image"])
    sampler.at([(7, 1), (8, 1)])
    both = sampler([labels, labels])
    assert torch.equal(both[0][1], drawn["image"][0]) and torch.equal(both[1][0], drawn["a"][1])
    few = torch.tensor([1.0, 0, 0, -1])
    sampler.at([(1, 1)])
    (positive,), (negative,) = sampler([few])
    assert positive.tolist() == [True, False, False, False] and negative.tolist() == [False, True, True, False]


# -- SSD's loss ------------------------------------------------------------------------------------------------------


def test_multibox_matching_forces_each_boxs_best_prior():
    priors = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], [0.5, 0.5, 0.2, 0.2]])
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.45, 0.45, 0.47, 0.47], [0.52, 0.52, 0.54, 0.54]])
    codes, classes = match_priors(priors, boxes, torch.tensor([4, 2, 7]))
    assert classes.tolist() == [5, 0, 8]  # both small boxes want prior 2: the later one gets it
    assert torch.allclose(codes[0], torch.zeros(4), atol=1e-6)
    assert torch.allclose(decode_priors(priors, codes)[2], boxes[2], atol=1e-6)
    codes, classes = match_priors(priors, boxes[:0], torch.zeros(0, dtype=torch.int64))
    assert not classes.any() and not codes.any()
    assert corners(priors)[1].tolist() == [0.5, 0.5, 1, 1]


def test_multibox_takes_three_hardest_negatives_a_positive():
    torch.manual_seed(0)
    logits, codes, wanted = torch.randn(2, 30, 4), torch.randn(2, 30, 4), torch.randn(2, 30, 4)
    classes = torch.zeros(2, 30, dtype=torch.int64)
    classes[0, 3], classes[0, 9] = 2, 1  # two positives, six negatives; the other image has none of either
    loss_box, loss_class = multibox_loss(codes, logits, wanted, classes)
    entropy = F.cross_entropy(logits[0], classes[0], reduction="none")
    hardest = sorted((float(e) for i, e in enumerate(entropy) if i not in (3, 9)), reverse=True)[:6]
    assert loss_class.item() == pytest.approx((float(entropy[3] + entropy[9]) + sum(hardest)) / 2, rel=1e-5)
    both = torch.tensor([3, 9])
    assert loss_box.item() == pytest.approx(
        F.smooth_l1_loss(codes[0, both], wanted[0, both], reduction="sum").item() / 2, rel=1e-5
    )
    assert [float(loss) for loss in multibox_loss(codes, logits, wanted, classes * 0)] == [0, 0]


# -- Faster-RCNN -----------------------------------------------------------------------------------------------------


def tiny(kind: str = "paper", classes: int = 3, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    config = Config(seed=5, detector=Detector(**{**vars(TINY), **settings}), data=Data(name="composed"))
    return pair.detector(config, kind, classes)


def scene_batch(count: int = 2, size: int = 64) -> tuple[list, list]:
    torch.manual_seed(1)
    images = [torch.randn(3, size, size - 8 * i) for i in range(count)]
    targets = [{"boxes": boxes_like(2, i, size * 0.9), "labels": torch.tensor([0, 2])} for i in range(count)]
    return images, targets


def test_proposal_losses_are_l1_and_cross_entropy_over_the_sampled():
    rpn = tiny(loss_weight=5.0).rpn
    torch.manual_seed(2)
    labels = [torch.tensor([1.0, 0, 0, -1]), torch.tensor([0.0, 0, 1, 1])]
    logits, codes, wanted = torch.randn(8, 1), torch.randn(8, 4), [torch.randn(4, 4), torch.randn(4, 4)]
    loss_class, loss_box = rpn.compute_loss(logits, codes, labels, wanted)
    used = [0, 1, 2, 4, 5, 6, 7]
    flat, target = torch.cat(labels), torch.cat(wanted)
    entropy = sum(math.log1p(math.exp(-float(logits[i]) * (1 if flat[i] else -1))) for i in used)
    distance = sum(float((codes[i] - target[i]).abs().sum()) for i in (0, 6, 7))
    assert loss_class.item() == pytest.approx(5 * entropy / 7, rel=1e-5)
    assert loss_box.item() == pytest.approx(5 * distance / 7, rel=1e-5)


def test_region_losses_have_background_last_and_one_code_a_class():
    heads = tiny(loss_weight=5.0).roi_heads.train()
    proposals = [torch.tensor([[0.0, 0, 20, 20], [0, 0, 21, 20], [40, 40, 60, 60]])]
    targets = [{"boxes": torch.tensor([[1.0, 0, 21, 20]]), "labels": torch.tensor([2])}]
    seen = {}

    class Predict(torch.nn.Module):
        def forward(self, features):
            n = len(features)
            seen["logits"], seen["codes"] = torch.randn(n, 4), torch.randn(n, 12)
            return seen["logits"], seen["codes"]

    class Pool(torch.nn.Module):
        def forward(self, features, proposals, shapes):
            return torch.cat(proposals)

    heads.box_predictor, heads.box_head, heads.box_roi_pool = Predict(), torch.nn.Identity(), Pool()
    _, losses = heads({}, proposals, [(64, 64)], targets)
    # Three regions of the box's class (two proposals and the box itself), one of background, which is class 3.
    labels = torch.tensor([2, 2, 3, 2])
    assert losses["loss_classifier"].item() == pytest.approx(5 * F.cross_entropy(seen["logits"], labels).item())
    regions = torch.tensor([[0.0, 0, 20, 20], [0, 0, 21, 20], [1, 0, 21, 20]])
    wanted = encode(regions, targets[0]["boxes"].expand(3, 4), torch.tensor([0.1, 0.1, 0.2, 0.2]))
    own = seen["codes"].view(4, 3, 4)[torch.tensor([0, 1, 3]), 2]
    assert losses["loss_box_reg"].item() == pytest.approx(5 * (own - wanted).abs().sum().item() / 4, rel=1e-5)


def test_regions_go_to_the_level_of_their_size_and_keep_their_order():
    align = RegionAlign((4, 8, 16, 32))
    side = torch.tensor([10.0, 56, 111.9, 112, 224, 447, 448, 5000])
    boxes = torch.stack([side * 0, side * 0, side, side], 1)
    assert align.level(boxes).tolist() == [0, 0, 0, 1, 2, 2, 3, 3]
    maps = {str(i): torch.full((1, 1, 64 >> i, 64 >> i), float(i)) for i in range(4)}
    boxes = torch.tensor([[0.0, 0, 200, 200], [8, 8, 40, 40], [0, 0, 130, 120]])
    assert align(maps, [boxes], None).mean((1, 2, 3)).tolist() == [1, 0, 1]
    assert align(maps, [boxes[:0]], None).shape == (0, 1, 7, 7)


@pytest.mark.parametrize("name", ["fasterrcnn", "bidet"])
def test_losses_reach_every_parameter_and_detections_lie_inside(name):
    network = tiny(name=name)
    balance = Balance(network)
    binary = {n for n, m in network.named_modules() if isinstance(m, BinaryConv2d)}
    assert binary == set(balance.layers)
    pads = {m.pad_value for m in network.modules() if isinstance(m, BinaryConv2d)}
    assert pads == {0.0 if name == "fasterrcnn" else -1.0}
    images, targets = scene_batch()
    network.train()
    losses = network(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    lacking = [n for n, p in network.named_parameters() if p.grad is None]
    assert not lacking and all(layer.gradient is not None for layer in balance.layers.values())
    network.eval()
    with torch.inference_mode():
        network.roi_heads.score_thresh = 0.01
        found = network(images)
    for image, one in zip(images, found):
        height, width = image.shape[1:]
        assert len(one["boxes"]) and (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert one["labels"].max() < 3


def test_images_without_boxes_train_as_background():
    network = tiny().train()
    images, targets = scene_batch()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = network(images, [empty, targets[1]])
    assert all(torch.isfinite(loss) for loss in losses.values())
    losses = network(images, [empty, empty])
    assert losses["loss_box_reg"] == 0 and losses["loss_rpn_box_reg"] == 0 and losses["loss_objectness"] > 0


def test_frozen_parts_and_norms_stay_as_they_are():
    network = tiny(frozen=2, norm_eval=True).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images, targets = scene_batch()
    sum(network(images, targets).values()).backward()
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items() if "running" in n or "tracked" in n)
    trained = {name.split(".")[0] for name, p in network.backbone.body.named_parameters() if p.grad is not None}
    assert trained.isdisjoint({"conv1", "bn1", "layer1"}) and "layer2" in trained
    network = tiny(frozen=1, norm_eval=False).train()
    network(images, targets)
    state = network.state_dict()
    assert (
        not state["backbone.body.bn1.num_batches_tracked"] and state["backbone.body.layer1.0.bn1.num_batches_tracked"]
    )


def test_counts_of_the_full_size_networks():
    with torch.device("meta"):
        ssd = SSD(20, partial(BinaryConv2d, binarizer="bidet", pad_value=-1.0), codes=8)
        neck = Neck((64, 128, 256, 512), 256, BinaryConv2d)
        trunk = body("resnet18", 1.0, partial(BinaryConv2d, bias=True))
        ours = pair.build(Config())[1]
    assert sum(p.numel() for p in ssd.parameters()) == 32_725_030
    assert sum(m.weight.numel() for m in models.binary_convolutions(ssd).values()) == 27_340_800
    ssd.forward = ssd.dense
    cost = models.count(ssd, (300, 300))
    assert (round(cost.binary_macs / 1e6), round(cost.real_macs / 1e6)) == (40_489, 2_630)
    assert sum(p.numel() for p in neck.parameters()) == 4_577_280
    assert sum(p.numel() for p in trunk.parameters()) == 11_199_104
    shapes = {n: tuple(p.shape) for n, p in ours.named_parameters()}
    assert shapes["roi_heads.box_head.fc6.weight"] == (1024, 256 * 49)
    assert shapes["roi_heads.box_predictor.fc_cls.weight"] == (21, 1024)
    assert shapes["rpn.head.rpn_reg.weight"] == (12, 256, 1, 1)


def test_ssd_trains_and_detects():
    torch.manual_seed(0)
    network = SSD(3, partial(BinaryConv2d, pad_value=-1.0), width=1 / 32).train()
    balance = Balance(network)
    boxes = torch.tensor([[30.0, 40, 150, 200]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1])}, {"boxes": boxes[:0], "labels": torch.tensor([]).long()}]
    losses = network([torch.randn(3, 300, 300), torch.randn(3, 300, 300)], targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert all(layer.gradient is not None for layer in balance.layers.values())
    network.eval()
    with torch.inference_mode():
        (found,) = network([torch.randn(3, 300, 300)])
    assert 0 < len(found["boxes"]) <= 200 and found["boxes"].min() >= 0 and found["boxes"].max() <= 300


def test_a_convolution_of_step1_is_the_binary_one_with_real_weights():
    torch.manual_seed(0)
    real, binary = (
        kind(4, 5, 3, padding=2, dilation=2, bias=True, pad_value=-1.0) for kind in (RealConv2d, BinaryConv2d)
    )
    with torch.no_grad():
        real.weight.copy_(binary.binary_weight())
        real.bias.copy_(binary.bias)
    x = torch.randn(2, 4, 7, 7).sign()
    assert torch.allclose(real(x), binary(x), atol=1e-6)


# -- metrics ---------------------------------------------------------------------------------------------------------


def found(*rows: tuple[float, ...]) -> Found:
    rows = np.array(rows, np.float32).reshape(-1, 6)
    return Found(rows[:, :4], rows[:, 4].astype(np.int64), rows[:, 5])


def scene(*rows: tuple[float, ...], difficult: tuple[bool, ...] | None = None, image=None) -> Scene:
    rows = np.array(rows, np.float32).reshape(-1, 5)
    hard = np.array(difficult if difficult else [False] * len(rows), bool)
    return Scene(
        "x", np.zeros((64, 64, 3), np.uint8) if image is None else image, rows[:, :4], rows[:, 4].astype(int), hard
    )


def test_average_precision_by_hand():
    scenes = [scene((0, 0, 10, 10, 0), (20, 20, 30, 30, 0)), scene((0, 0, 10, 10, 1))]
    results = [found((0, 0, 10, 10, 0, 0.9), (0, 0, 10, 9, 0, 0.8), (20, 20, 30, 29, 0, 0.7)), found()]
    scored = voc.mean_average_precision(scenes, results, ["a", "b", "c"])
    # Class a: right, wrong (a second hit of one box), right: precision 1 at recall ½, ⅔ at 1; class b: 0; c: left out.
    by_area, by_points = 0.5 * 1 + 0.5 * 2 / 3, (6 * 1 + 5 * 2 / 3) / 11
    assert scored["map_area"] == pytest.approx(100 * by_area / 2)
    assert scored["map_voc07"] == pytest.approx(100 * by_points / 2)
    assert scored["classes"] == {"a": pytest.approx(100 * by_area), "b": 0}


def test_difficult_boxes_are_neither_right_nor_wrong():
    scenes = [scene((0, 0, 10, 10, 0), (20, 20, 30, 30, 0), difficult=(False, True))]
    results = [found((20, 20, 30, 30, 0, 0.9), (0, 0, 10, 10, 0, 0.8))]
    assert voc.mean_average_precision(scenes, results, ["a"])["map_area"] == pytest.approx(100)
    assert coco_metrics(scenes, results, ["a"])["ap"] == pytest.approx(100)
    assert coco_metrics(scenes, [found()], ["a"])["ap"] == 0
    shifted = [found((0, 0, 10, 7, 0, 0.8))]  # overlap 0.7: right at 0.5 … 0.7, five of ten thresholds
    scored = coco_metrics(scenes, shifted, ["a"])
    assert scored["ap"] == pytest.approx(50, abs=0.1) and scored["ap50"] == pytest.approx(100)
    assert "ap_large" not in scored and scored["ap_small"] == scored["ap"]
    shaped = [scenes[0]._replace(areas=np.array([97.0**2, 1]))]  # COCO's sizes are those of shapes
    assert "ap_small" not in coco_metrics(shaped, shifted, ["a"]) and "ap_large" in coco_metrics(shaped, shifted, ["a"])


# -- data ------------------------------------------------------------------------------------------------------------

XML = """<annotation><size><width>{w}</width><height>{h}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>
<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def voc_folder(
    root: Path, objects: list[tuple] | None = None, count: int = 4, size: tuple[int, int] = (60, 80)
) -> Path:
    """VOC 07 and 12 with `count` images a list; objects: (name, difficult, box) of the very first image."""
    plain = [("dog", 0, (11, 11, 41, 41)), ("cat", 0, (30, 20, 60, 50))]
    for year, splits in (("VOC2007", ("trainval", "test")), ("VOC2012", ("trainval",))):
        for split in splits:
            names = [f"{year}_{split}{i}" for i in range(count)]
            listing = root / year / "ImageSets" / "Main" / f"{split}.txt"
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text("\n".join(names) + "\n")
            (root / year / "Annotations").mkdir(exist_ok=True)
            for i, name in enumerate(names):
                first = objects is not None and i == 0 and (year, split) == ("VOC2007", "trainval")
                text = "".join(OBJECT.format(*b, name=n, difficult=d) for n, d, b in (objects if first else plain))
                xml = XML.format(w=size[1], h=size[0], objects=text)
                (root / year / "Annotations" / f"{name}.xml").write_text(xml)
                pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
                write_image(root / year / "JPEGImages" / f"{name}.jpg", pixels)
    return root


def coco_folder(root: Path, boxes: list[tuple] | None = None, count: int = 4) -> Path:
    """COCO 2014 with 80 categories of gapped ids; boxes: (category, box, crowd) of the first training image."""
    ids = [c + c // 10 for c in range(1, 81)]
    files = {
        "train2014": ["instances_train2014"],
        "val2014": ["instances_valminusminival2014", "instances_minival2014"],
    }
    number = 0
    for folder, annotations in files.items():
        for name in annotations:
            content = {"categories": [{"id": i, "name": f"c{i}"} for i in ids], "images": [], "annotations": []}
            for _ in range(count):
                number += 1
                content["images"].append({"id": number, "file_name": f"{number}.jpg", "height": 60, "width": 80})
                pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
                write_image(root / "images" / folder / f"{number}.jpg", pixels)
                own = boxes if boxes is not None and number == 1 else [(ids[9], (10, 10, 30, 30), 0)]
                for category, box, crowd in own:
                    one = {"id": 1000 * number + len(content["annotations"]), "image_id": number, "bbox": list(box)}
                    content["annotations"].append({**one, "category_id": category, "iscrowd": crowd, "area": 1.0})
            path = root / "annotations" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    return root


def loaded(name: str, root: Path, **settings) -> tuple[data.Scenes, data.Scenes]:
    return data.load(Config(data=Data(name=name, root=str(root), batch_size=2, **settings)))


def test_voc_is_read_with_corners_less_one_and_what_sticks_out_is_clipped(tmp_path):
    objects = [("dog", 0, (1, 1, 31, 31)), ("person", 1, (5, 5, 20, 20)), ("tvmonitor", 0, (70, 30, 99, 99))]
    train, test = loaded("voc", voc_folder(tmp_path, objects))
    first = train.scenes[0]
    assert first.boxes.tolist() == [[0, 0, 30, 30], [4, 4, 19, 19], [69, 29, 80, 60]]
    assert [VOC_CLASSES[label] for label in first.labels] == ["dog", "person", "tvmonitor"]
    assert first.difficult.tolist() == [False, True, False]
    assert len(train) == 8 and len(test) == 4 and train.counts["clipped"] == 1 and train.counts["boxes"] == 17
    image, target = train.fetch(0, 1)
    assert len(target["boxes"]) == 2 and image.dtype == torch.float32  # the difficult one is not trained on
    assert max(image.shape[1:]) in (1500, 1000, 666, 1200, 800, 533)
    (tmp_path / "VOCdevkit").mkdir()
    for year in ("VOC2007", "VOC2012"):
        (tmp_path / year).rename(tmp_path / "VOCdevkit" / year)
    assert loaded("voc", tmp_path)[0].fingerprint() == train.fingerprint()


def test_an_image_without_boxes_is_background_and_counted(tmp_path):
    train, _ = loaded("voc", voc_folder(tmp_path, []))
    assert train.counts["background"] == 1 and train.fetch(0, 1)[1]["boxes"].shape == (0, 4)
    ssd, _ = data.load(Config(data=Data(root=str(tmp_path), batch_size=2), detector=Detector(name="ssd")))
    assert ssd.fetch(0, 1)[0].shape == (3, 300, 300) and ssd.fetch(0, 1)[1]["boxes"].shape == (0, 4)


def test_coco_is_read_with_labels_in_the_order_of_ids(tmp_path):
    train, test = loaded("coco", coco_folder(tmp_path, [(1, (0, 0, 10, 20), 0), (88, (5, 5, 9, 9), 1)]))
    assert train.scenes[0].boxes.tolist() == [[0, 0, 10, 20], [5, 5, 14, 14]]
    assert train.scenes[0].areas.tolist() == [1, 1]  # what the file says, not what the boxes measure
    assert train.scenes[0].labels.tolist() == [0, 79] and train.scenes[0].difficult.tolist() == [False, True]
    assert len(train) == 8 and len(test) == 4 and train.scenes[-1].image.parent.name == "val2014"


BAD_VOC = {
    "degenerate": ([("dog", 0, (20, 20, 20, 40))], r"VOC2007_trainval0.xml: box 0, .* has no area; correct"),
    "outside": ([("dog", 0, (200, 20, 220, 40))], "has no area"),
    "unknown class": ([("dragon", 0, (20, 20, 30, 40))], "class 'dragon' is none of VOC's 20"),
    "no number": ([("dog", 0, ("a", 20, 30, 40))], "is not a readable VOC annotation"),
    "nan": ([("dog", 0, ("nan", 20, 30, 40))], "a coordinate that is no number"),
}


@pytest.mark.parametrize("name", BAD_VOC)
def test_bad_annotations_are_named(tmp_path, name):
    objects, words = BAD_VOC[name]
    with pytest.raises(InputError, match=words):
        loaded("voc", voc_folder(tmp_path, objects))


def test_boxes_without_area_may_be_dropped_and_are_counted(tmp_path):
    train, _ = loaded("coco", coco_folder(tmp_path, [(1, (3, 3, 10, 0), 0), (1, (3, 3, 5, 5), 0)]), degenerate="drop")
    assert len(train.scenes[0].boxes) == 1 and train.counts["dropped"] == 1
    with pytest.raises(InputError, match=r"instances_train2014.json, image 1: box 0, .* has no area"):
        loaded("coco", tmp_path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match="holds neither VOC2007 nor VOCdevkit/VOC2007"):
        loaded("voc", tmp_path)
    voc_folder(tmp_path)
    (tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(InputError, match="no such list of images"):
        loaded("voc", tmp_path)
    coco = coco_folder(tmp_path / "coco", [(7777, (3, 3, 10, 10), 0)])
    with pytest.raises(InputError, match="annotation 0 has category 7777, which is none of the file's"):
        loaded("coco", coco)
    (coco / "annotations" / "instances_train2014.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="is not a readable COCO annotation file"):
        loaded("coco", coco)
    (coco / "annotations" / "instances_train2014.json").unlink()
    with pytest.raises(InputError, match="there is no such file; fetch COCO's annotations"):
        loaded("coco", coco)
    with pytest.raises(InputError, match="are pairs"):
        loaded("composed", tmp_path, long_sides=(3, 4), short_sides=(3,))
    with pytest.raises(InputError, match=r"fewer than data\.batch_size 2"):
        loaded("composed", tmp_path, train_images=1)


def test_a_class_out_of_range_is_refused():
    with pytest.raises(InputError, match="box 1 has class 3, outside of 0 … 2; correct its label"):
        checked(scene((0, 0, 5, 5, 0), (0, 0, 5, 5, 3)), (64, 64), 3, "error", Counter())


def test_composed_scenes_have_their_digits_where_they_say():
    few, more = composed.compose("train", 6, 64), composed.compose("train", 12, 64)
    for one, other in zip(few, more):
        assert np.array_equal(one.image, other.image) and np.array_equal(one.boxes, other.boxes)
    plain = photos.crops(photos.split()["train"], 64, 12, composed.SEEDS["train"])
    for one, background in zip(more, plain):
        changed = (one.image != background).any(2)
        for box in one.boxes.astype(int):
            x1, y1, x2, y2 = box
            assert changed[y1:y2, x1:x2].mean() > 0.3
            changed[max(0, y1 - 6) : y2 + 6, max(0, x1 - 6) : x2 + 6] = False  # faint edges of the strokes
        assert not changed.any()
    assert {len(one.boxes) for one in more} >= {0, 1, 2} and {int(d) for one in more for d in one.labels} <= set(
        range(10)
    )
    assert not np.array_equal(composed.compose("test", 1, 64)[0].image, more[0].image)
    with pytest.raises(InputError, match="at least 32"):
        composed.compose("train", 1, 31)


def test_mirroring_and_resizing_move_the_boxes_with_the_pixels():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 5:25] = 255
    boxes = np.float32([[5, 10, 25, 20]])
    turned, moved = augment.mirror(image, boxes)
    x1, y1, x2, y2 = moved[0].astype(int)
    assert turned[y1:y2, x1:x2].min() == 255 and turned.sum() == image.sum()
    large, moved = augment.resize(image, boxes, (80, 120))
    assert moved.tolist() == [[10, 20, 50, 40]] and large.shape == (80, 120, 3)
    assert augment.fitted((375, 500), 1000, 600) == (600, 800) and augment.fitted((100, 500), 1000, 600) == (200, 1000)


def test_the_ssd_recipe_keeps_boxes_inside_and_is_a_function_of_its_draws():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)
    boxes, labels = np.float32([[10, 10, 50, 60], [60, 20, 110, 70]]), np.array([1, 2])
    seen = set()
    for _ in range(60):
        draws = rng.random(augment.DRAWS)
        one, moved, kept = augment.ssd_train(image, boxes, labels, draws, False, 0.5)
        again = augment.ssd_train(image, boxes, labels, draws, False, 0.5)
        assert np.array_equal(one, again[0]) and np.array_equal(moved, again[1])
        assert one.shape == (300, 300, 3) and one.dtype == np.float32 and len(moved) == len(kept) >= 1
        assert moved.min() >= 0 and moved.max() <= 300.01 and (moved[:, 2:] > moved[:, :2]).all()
        seen.add(len(kept))
    assert seen == {1, 2}
    plain = np.full(augment.DRAWS, 0.99)
    plain[4] = 0  # no colours, no expansion, and any crop: its first trial, as large as can be
    plain[15] = 0
    one, moved, _ = augment.ssd_train(image, boxes, labels, plain, False, 0.5)
    assert np.allclose(one, augment.ssd_test(image), atol=0.05)
    assert np.allclose(moved, boxes * np.float32([2.5, 3.75, 2.5, 3.75]))


def test_the_intended_overlap_test_rejects_crops():
    boxes = np.float32([[0, 0, 100, 100]])
    bgr, labels = np.zeros((100, 100, 3), np.float32), np.array([0])
    draws = np.tile([[0.3, 0.3, 0.5, 0.5]], (5, 1))
    mode = (augment.CROP_MODES.index(0.9) + 0.5) / len(augment.CROP_MODES)
    assert augment.crop(bgr, boxes, labels, mode, draws, False)[0].shape == (51, 51, 3)
    assert augment.crop(bgr, boxes, labels, mode, draws, True)[0].shape == (100, 100, 3)


def test_batches_are_the_same_with_workers_and_from_any_step_on(tmp_path):
    root = voc_folder(tmp_path)
    sizes = {"long_sides": (64, 80), "short_sides": (48, 64), "repeat": 2}
    train, _ = loaded("voc", root, **sizes)
    other, _ = loaded("voc", root, workers=1, **sizes)
    cpu = torch.device("cpu")
    straight = [batch for (batch,) in data.batches(train, 3, cpu, 0, 1)]
    assert len(straight) == data.steps_of(train) == 8
    turns = Counter(turn for batch in straight for _, turn in batch.index)
    assert turns == {5: 8, 6: 8}
    resumed = [batch for (batch,) in data.batches(other, 3, cpu, 5, 1)]
    for one, two in zip(straight[5:], resumed, strict=True):
        assert one.index == two.index and all(map(torch.equal, one.images, two.images))
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(one.targets, two.targets))


def test_detections_come_back_in_the_pictures_own_pixels():
    image = np.zeros((50, 100, 3), np.uint8)
    config = Config(data=Data(name="composed", test_long=64, test_short=64, batch_size=1), detector=TINY)
    scenes = data.Scenes([scene((0, 0, 5, 5, 0), image=image)], ["a"], config, False, Counter())

    class Whole(torch.nn.Module):
        def forward(self, images):
            (one,) = images
            assert one.shape == (3, 32, 64)
            return [{"boxes": torch.tensor([[0.0, 0, 64, 32]]), "labels": torch.tensor([0]), "scores": torch.ones(1)}]

    (one,) = detect(Whole(), scenes, torch.device("cpu"))
    assert one.boxes.tolist() == [[0, 0, 100, 50]]


def test_the_sheet_shows_truth_and_detections(tmp_path):
    scenes = data.Scenes(composed.compose("test", 3, 64), list("0123456789"), Config(detector=TINY), False, Counter())
    draw_sheet(tmp_path / "a.png", scenes, [found((5, 5, 40, 40, 3, 0.9))] * 3)
    draw_sheet(tmp_path / "b.png", scenes, [found()] * 3)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


# -- schedule, settings, weights -------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls_at_milestones():
    rate = partial(multi_step, 0.004, milestones=(8, 11), warmup=200)
    assert rate(position=0, step=0) == pytest.approx(0.004 * 0.001)
    assert rate(position=0, step=100) == pytest.approx(0.004 * (0.5 + 0.5 * 0.001))
    assert [rate(position=p, step=10**4) for p in (7, 8, 10, 11)] == pytest.approx([4e-3, 4e-4, 4e-4, 4e-5])
    assert multi_step(1e-3, 0, (30,), 0, 0) == 1e-3


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(InputError, match="nothing would be trained"):
        pair.check(Config(step2=Step(epochs=0)))
    with pytest.raises(InputError, match="the whole body would stay"):
        pair.check(Config(detector=Detector(frozen=5)))
    pair.check(Config(step2=Step(epochs=0, iterations=5)))


def test_bodies_take_real_and_binary_weights(tmp_path):
    config = Config(detector=Detector(width=1.0))
    with torch.device("meta"):
        detector = pair.detector(config, "paper", 3)
    network = detector.backbone.body.to_empty(device="cpu")
    holder = torch.nn.Module()
    holder.backbone = torch.nn.Module()
    holder.backbone.body = network
    real = torchvision.models.resnet18().state_dict()
    torch.save(real, tmp_path / "resnet18.pth")
    lacking = load_body(holder, tmp_path / "resnet18.pth")
    assert len(lacking) == 16
    state = network.state_dict()
    assert torch.equal(state["layer3.0.downsample.1.weight"], real["layer3.0.downsample.0.weight"])
    assert torch.equal(state["layer2.3.binary_conv.weight"], real["layer2.1.conv2.weight"])
    assert torch.equal(state["layer2.2.bn1.running_var"], real["layer2.1.bn1.running_var"])
    alpha = network.layer1[1].binary_conv.alpha()
    assert torch.allclose(alpha, real["layer1.0.conv2.weight"].abs().mean((1, 2, 3), keepdim=True))
    student = models.build("resnet18", 7, "released")
    torch.save(weights.export_official(student), tmp_path / "model_best.pth.tar")
    assert not load_body(holder, tmp_path / "model_best.pth.tar")
    assert torch.allclose(network.layer4[0].binary_conv.alpha(), student.layer4[0].binary_conv.alpha())


def test_a_detector_of_ida_det_is_taken_with_its_names(tmp_path):
    network = tiny("released", conv_bias=True)
    names = (("rpn.head.", "rpn_head."), ("backbone.body.", "backbone."), ("backbone.neck.", "neck."))
    heads = {
        "box_head.fc6": "bbox_head.shared_fcs.0",
        "box_head.fc7": "bbox_head.shared_fcs.1",
        "box_predictor": "bbox_head",
    }
    theirs = {}
    for key, value in network.state_dict().items():
        new = key.replace("binary_conv.", "conv.").replace("scaling_factor", "scale").replace("roi_heads.", "roi_head.")
        for ours, other in (*names, *heads.items()):
            if new.startswith(ours) or ours in heads:
                new = new.replace(ours, other)
        theirs[new] = value + 1 if value.is_floating_point() else value
    torch.save({"meta": {}, "state_dict": theirs}, tmp_path / "ida.pth")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert load_detector(network, tmp_path / "ida.pth") == []
    for key, value in network.state_dict().items():
        assert torch.allclose(value, before[key] + 1 if value.is_floating_point() else before[key]), key


def test_bidets_ssd_is_taken_with_the_means_of_its_heads(tmp_path):
    make = lambda codes: SSD(3, partial(BinaryConv2d, binarizer="bidet", pad_value=-1.0), 1 / 32, codes=codes)
    torch.manual_seed(0)
    theirs, ours = make(8), make(4)
    torch.save(theirs.state_dict(), tmp_path / "bidet.pth")
    load_detector(ours, tmp_path / "bidet.pth")
    x = torch.randn(1, 3, 300, 300)
    with torch.inference_mode():
        for one, two in zip(theirs.eval().dense(x), ours.eval().dense(x)):
            assert torch.allclose(one, two, atol=1e-5)
    base = {f"layers.{k}": v + 1 for k, v in theirs.vgg.layers.state_dict().items()}
    torch.save(base, tmp_path / "vgg.pth")
    load_body(ours, tmp_path / "vgg.pth")
    assert torch.equal(ours.vgg.layers[22].weight, theirs.vgg.layers[22].weight + 1)
    with pytest.raises(CheckpointError, match="no VGG of binary blocks"):
        torch.save({"fc.weight": torch.ones(1)}, tmp_path / "other.pth")
        load_body(ours, tmp_path / "other.pth")


def test_foreign_and_hostile_weights_change_nothing(tmp_path):
    network = tiny()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save(tiny(classes=5).state_dict(), tmp_path / "five.pth")
    with pytest.raises(CheckpointError, match="of another shape"):
        load_detector(network, tmp_path / "five.pth")
    with pytest.raises(CheckpointError, match="never executed"):
        load_detector(network, hostile(tmp_path / "bad.pth", tmp_path / "canary"))
    assert not (tmp_path / "canary").exists()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
