"""Mean average precision as VOC defines it, by 11 points and by area (section 6)."""

from collections.abc import Sequence

import numpy as np

from rebnn.detection.records import Found, Scene

IOU = 0.5


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of corners [M, 4] and [N, 4] without + 1, float64 [M, N]."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    side = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    shared = side.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return shared / union.clip(np.finfo(np.float32).eps)


def judge(
    boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, difficult: np.ndarray, iou: float = IOU
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of one class in one image are right and which are wrong, bool [M] each, in the given order.

    By falling score, a detection belongs to the box it overlaps most: right if by at least `iou` and for the first
    time, otherwise wrong; neither if that box is difficult. The second best box is not tried.
    """
    right, wrong = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
    if not len(truth):
        return right, ~wrong
    table = overlaps(boxes, truth)
    best, most, taken = table.argmax(1), table.max(1), np.zeros(len(truth), bool)
    for i in np.argsort(-scores, kind="stable"):
        at = best[i]
        if most[i] < iou:
            wrong[i] = True
        elif not difficult[at]:
            (wrong if taken[at] else right)[i] = True
            taken[at] = True
    return right, wrong


def average_precision(right: np.ndarray, wrong: np.ndarray, scores: np.ndarray, total: int, points: bool) -> float:
    """AP of one class from the judged detections of all images; total: boxes that are to be found.

    points: mean over recall 0, 0.1, …, 1 of the largest precision at that recall or beyond; otherwise the area below
    precision made monotone from the right. 0 for total 0.
    """
    order = np.argsort(-scores, kind="stable")
    hits, misses = np.cumsum(right[order], dtype=np.float64), np.cumsum(wrong[order], dtype=np.float64)
    recall = hits / max(total, 1)
    precision = hits / (hits + misses).clip(np.finfo(np.float32).eps)
    if points:
        reached = [precision[recall >= level] for level in np.arange(0, 1 + 1e-3, 0.1)]
        return sum(float(part.max()) for part in reached if len(part)) / len(reached)
    recall, precision = np.concatenate([[0.0], recall, [1.0]]), np.concatenate([[0.0], precision, [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(((recall[1:] - recall[:-1]) * precision[1:]).sum())


def mean_average_precision(scenes: Sequence[Scene], found: Sequence[Found], classes: Sequence[str]) -> dict:
    """{"map_voc07": 11-point mAP %, "map_area": area mAP %, "classes": {name: AP by area %}}.

    Classes without a box that is to be found are left out of the mean; with no such class at all both are 0.
    """
    by_points, by_area = {}, {}
    for label, name in enumerate(classes):
        judged, scores, total = [], [], 0
        for scene, detections in zip(scenes, found, strict=True):
            own, mine = scene.labels == label, detections.labels == label
            total += int((own & ~scene.difficult).sum())
            score = detections.scores[mine]
            judged.append(judge(detections.boxes[mine], score, scene.boxes[own], scene.difficult[own]))
            scores.append(score)
        right, wrong = (np.concatenate(part) for part in zip(*judged))
        if total:
            by_points[name] = 100 * average_precision(right, wrong, np.concatenate(scores), total, True)
            by_area[name] = 100 * average_precision(right, wrong, np.concatenate(scores), total, False)
    mean = lambda values: sum(values.values()) / max(len(values), 1)
    return {"map_voc07": mean(by_points), "map_area": mean(by_area), "classes": by_area}
