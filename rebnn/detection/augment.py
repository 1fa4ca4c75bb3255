"""What happens to an image and its boxes on the way to a detector (sections 4 and 5).

Every function is pure: random decisions come as numbers in [0, 1).
"""

import cv2
import numpy as np

MEAN, STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))
"""of ImageNet, RGB: Faster-RCNN"""
SSD_MEAN = np.float32((104, 117, 123))
"""BGR, subtracted without a division: SSD"""
SSD_SIZE = 300
CROP_MODES = (None, 0.1, 0.3, 0.7, 0.9, 0.0)
"""the whole image, four least overlaps (0.5 is missing in the release), and any crop"""
CROP_TRIALS = 50
DRAWS = 20 + 4 * CROP_TRIALS
"""random numbers that `ssd_train` takes"""


def fitted(size: tuple[int, int], long: int, short: int) -> tuple[int, int]:
    """The largest (H, W) of the same proportions whose sides stay within long and short."""
    scale = min(long / max(size), short / min(size))
    return tuple(max(1, int(side * scale + 0.5)) for side in size)


def resize(image: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image and boxes at another size (H, W), bilinear."""
    height, width = image.shape[:2]
    factor = np.float32([size[1] / width, size[0] / height] * 2)
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), boxes * factor


def mirror(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right exchanged."""
    width = image.shape[1]
    turned = boxes.copy()
    turned[:, 0::2] = width - boxes[:, 2::-2]
    return np.ascontiguousarray(image[:, ::-1]), turned


def normalise(image: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] to what Faster-RCNN sees, float32."""
    return (image.astype(np.float32) - MEAN) / STD


def ssd_test(image: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] to what SSD sees: 300x300, BGR means subtracted, then RGB again, float32."""
    warped = cv2.resize(image.astype(np.float32), (SSD_SIZE, SSD_SIZE), interpolation=cv2.INTER_LINEAR)
    return warped - SSD_MEAN[::-1]


def ssd_train(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, draws: np.ndarray, iou_test: bool, flip: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The release's augmentation: colours, expansion, crop, mirror, 300x300; uint8 RGB in, float32 RGB out.

    draws: [DRAWS]. A crop keeps the boxes whose centre it holds, clipped.
    """
    bgr = colours(image[..., ::-1].astype(np.float32), draws[:11])
    bgr, boxes = expand(bgr, boxes, draws[11:15])
    bgr, boxes, labels = crop(bgr, boxes, labels, draws[15], draws[20:].reshape(-1, 4), iou_test)
    if draws[16] < flip:
        bgr, boxes = mirror(bgr, boxes)
    bgr, boxes = resize(bgr, boxes, (SSD_SIZE, SSD_SIZE))
    return np.ascontiguousarray((bgr - SSD_MEAN)[..., ::-1]), boxes, labels


def colours(bgr: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Brightness, contrast before or after saturation and hue, and exchanged channels, each with probability ½."""
    spread = lambda value, low, high: np.float32(low + value * (high - low))
    if draws[0] < 0.5:
        bgr = bgr + spread(draws[1], -32, 32)
    factor = spread(draws[3], 0.5, 1.5) if draws[2] < 0.5 else np.float32(1)
    early = draws[4] < 0.5
    if early:
        bgr = bgr * factor
    hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
    if draws[5] < 0.5:
        hsv[..., 1] *= spread(draws[6], 0.5, 1.5)
    if draws[7] < 0.5:
        hsv[..., 0] = (hsv[..., 0] + spread(draws[8], -18, 18)) % 360
    bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not early:
        bgr = bgr * factor
    if draws[9] < 0.5:
        orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        bgr = bgr[..., orders[int(draws[10] * 6)]]
    return np.ascontiguousarray(bgr)


def expand(bgr: np.ndarray, boxes: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With probability ½, the image somewhere on a canvas of the mean colour with 1 to 4 times its sides."""
    if draws[0] >= 0.5:
        return bgr, boxes
    height, width = bgr.shape[:2]
    ratio = 1 + 3 * draws[1]
    left, top = int(draws[2] * (width * ratio - width)), int(draws[3] * (height * ratio - height))
    canvas = np.empty((int(height * ratio), int(width * ratio), 3), np.float32)
    canvas[:] = SSD_MEAN
    canvas[top : top + height, left : left + width] = bgr
    return canvas, boxes + np.float32([left, top, left, top])


def crop(
    bgr: np.ndarray, boxes: np.ndarray, labels: np.ndarray, mode: float, draws: np.ndarray, iou_test: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A crop with sides of 0.3 to 1 of the image's and a proportion of ½ to 2 that holds the centre of a box.

    mode: chooses one of CROP_MODES; draws: [trials, 4]. The least overlap is required with iou_test only: the release
    compares it such that no crop is ever rejected. Where no trial fits, the whole image stays; the release draws
    another mode then, without end.
    """
    least = CROP_MODES[int(mode * len(CROP_MODES))]
    if least is None or not len(boxes):
        return bgr, boxes, labels
    height, width = bgr.shape[:2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for w_draw, h_draw, x_draw, y_draw in draws:
        w, h = width * (0.3 + 0.7 * w_draw), height * (0.3 + 0.7 * h_draw)
        if not 0.5 <= h / w <= 2:
            continue
        left, top = int(x_draw * (width - w)), int(y_draw * (height - h))
        place = np.float32([left, top, int(left + w), int(top + h)])
        held = ((centres > place[:2]) & (centres < place[2:])).all(1)
        if not held.any() or (iou_test and share(boxes, place).min() < least):
            continue
        cut = bgr[int(place[1]) : int(place[3]), int(place[0]) : int(place[2])]
        kept = np.concatenate([np.maximum(boxes[held, :2], place[:2]), np.minimum(boxes[held, 2:], place[2:])], 1)
        return cut, kept - np.float32([left, top, left, top]), labels[held]
    return bgr, boxes, labels


def share(boxes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N, 4] with one crop [4]."""
    side = (np.minimum(boxes[:, 2:], place[2:]) - np.maximum(boxes[:, :2], place[:2])).clip(0)
    shared = side.prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (place[2:] - place[:2]).prod() - shared)
