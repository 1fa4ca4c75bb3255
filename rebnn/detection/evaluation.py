"""What a detector finds in a set, and how good that is by VOC's and by COCO's protocol (section 6)."""

import contextlib
import io
from collections.abc import Sequence

from common import distributed

import numpy as np
import torch
from torch import nn

from rebnn.detection.data import Scenes, test_batches
from rebnn.detection.records import Found, Scene
from rebnn.detection.voc import mean_average_precision

COCO_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
"""what pycocotools lists, in its order"""


@torch.inference_mode()
def detect(network: nn.Module, scenes: Scenes, device: torch.device, precision: str = "fp32") -> list[Found]:
    """Detections of every image, in its own pixels; all ranks share the work and all get the whole list."""
    distributed.sync_buffers(network)
    network.eval()
    found = {}
    for positions, images, sizes in test_batches(scenes, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            results = network(images)
        for position, image, size, result in zip(positions, images, sizes, results):
            factor = size.flip(0).repeat(2) / torch.tensor(image.shape[:0:-1]).repeat(2)
            boxes = result["boxes"].float().cpu() * factor
            parts = (boxes, result["labels"].cpu(), result["scores"].float().cpu())
            found[position] = Found(*(part.numpy() for part in parts))
    if distributed.world() > 1:
        shares = [None] * distributed.world()
        torch.distributed.all_gather_object(shares, found)
        found = {position: one for share in shares for position, one in share.items()}
    return [found[i] for i in range(len(scenes))]


def evaluate(network: nn.Module, scenes: Scenes, device: torch.device, precision: str = "fp32") -> dict[str, float]:
    """{"map_voc07": 11-point mAP %, "map_area": mAP % by area} on a set."""
    scored = mean_average_precision(scenes.scenes, detect(network, scenes, device, precision), scenes.classes)
    return {name: scored[name] for name in ("map_voc07", "map_area")}


def coco_metrics(scenes: Sequence[Scene], found: Sequence[Found], classes: Sequence[str]) -> dict[str, float]:
    """COCO's average precisions and recalls in %, by pycocotools; sizes that no box has are left out.

    Difficult boxes are crowds to it: found or not, they do not count. Sizes are those of the annotated shapes, or of
    the boxes where a set has no shapes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, detections = COCO(), []
    truth.dataset = {
        "images": [{"id": i} for i in range(len(scenes))],
        "categories": [{"id": c, "name": name} for c, name in enumerate(classes)],
        "annotations": [
            {"image_id": i, "category_id": int(label), "bbox": xywh(box), "area": float(area), "iscrowd": int(crowd)}
            for i, scene in enumerate(scenes)
            for box, label, crowd, area in zip(scene.boxes, scene.labels, scene.difficult, areas(scene))
        ],
    }
    for number, one in enumerate(truth.dataset["annotations"], start=1):
        one["id"] = number
    for i, result in enumerate(found):
        for box, label, score in zip(*result):
            detections.append({"image_id": i, "category_id": int(label), "bbox": xywh(box), "score": float(score)})
    if not detections:
        return dict.fromkeys(COCO_NAMES[:3], 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(detections), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: 100 * float(value) for name, value in zip(COCO_NAMES, judge.stats) if value >= 0}


def xywh(box: np.ndarray) -> list[float]:
    """Corners as COCO writes them."""
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def areas(scene: Scene) -> np.ndarray:
    """Pixels of each object, [N]: of its shape, or of its box."""
    return (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1) if scene.areas is None else scene.areas
