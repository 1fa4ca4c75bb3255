"""VOC and COCO as they lie on disk (section 5); every box is checked before anything is trained."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from common.errors import InputError

import numpy as np

from rebnn.detection.records import Scene

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_PARTS = {"train": (("VOC2007", "trainval"), ("VOC2012", "trainval")), "test": (("VOC2007", "test"),)}
COCO_PARTS = {
    "train": (("train2014", "instances_train2014"), ("val2014", "instances_valminusminival2014")),
    "test": (("val2014", "instances_minival2014"),),
}
COCO_CLASSES = 80


def checked(scene: Scene, size: tuple[int, int], classes: int, degenerate: str, counts: Counter) -> Scene:
    """The scene with its boxes inside the image [H, W]; counts what was done.

    A box that sticks out is clipped. Errors: InputError for a class outside 0 … classes - 1 and, unless degenerate is
    "drop", for a box that has no area (left).
    """
    outside = (scene.labels < 0) | (scene.labels >= classes)
    if outside.any():
        at = int(outside.argmax())
        raise InputError(
            f"{scene.name}: box {at} has class {int(scene.labels[at])}, outside of 0 … {classes - 1}; correct its label"
        )
    height, width = size
    if not np.isfinite(scene.boxes).all():
        raise InputError(f"{scene.name}: a box has a coordinate that is no number: {scene.boxes.tolist()}; correct it")
    boxes = np.clip(scene.boxes, 0, np.array([width, height, width, height], np.float32))
    counts["clipped"] += int((boxes != scene.boxes).any(1).sum())
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if empty.any() and degenerate != "drop":
        at = int(empty.argmax())
        raise InputError(
            f"{scene.name}: box {at}, {scene.boxes[at].tolist()} in an image of {width} x {height} pixels, has no area;"
            " correct the annotation, or leave such boxes out with --data.degenerate drop"
        )
    counts["dropped"] += int(empty.sum())
    kept = ~empty
    counts["boxes"] += int(kept.sum())
    areas = None if scene.areas is None else scene.areas[kept]
    return scene._replace(boxes=boxes[kept], labels=scene.labels[kept], difficult=scene.difficult[kept], areas=areas)


def read_voc(root: Path, part: str, check: Callable[[Scene, tuple[int, int]], Scene], limit: int) -> list[Scene]:
    """VOC 07+12: corners less 1. Errors: InputError naming the folder, list or file that is missing or damaged."""
    scenes = []
    for year, split in VOC_PARTS[part]:
        folder = next((f for f in (root / year, root / "VOCdevkit" / year) if f.is_dir()), None)
        if folder is None:
            raise InputError(f"{root}: holds neither {year} nor VOCdevkit/{year}; unpack the VOC archives there")
        names = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not names.is_file():
            raise InputError(f"{names}: there is no such list of images; unpack the {split} archive of {year}")
        for name in names.read_text(encoding="utf-8").split():
            if limit and len(scenes) == limit:
                return scenes
            scenes.append(voc_scene(folder, name, check))
    return scenes


def voc_scene(folder: Path, name: str, check: Callable[[Scene, tuple[int, int]], Scene]) -> Scene:
    """One image's annotation."""
    path = folder / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
        size = int(tree.findtext("size/height")), int(tree.findtext("size/width"))
        objects = tree.findall("object")
        corners = [[float(o.findtext(f"bndbox/{c}")) - 1 for c in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        names = [o.findtext("name", "").strip() for o in objects]
        difficult = [o.findtext("difficult", "0").strip() == "1" for o in objects]
    except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a readable VOC annotation ({error}); unpack the archive again") from error
    unknown = [one for one in names if one not in VOC_CLASSES]
    if unknown:
        raise InputError(f"{path}: class {unknown[0]!r} is none of VOC's {len(VOC_CLASSES)}; correct the annotation")
    boxes = np.array(corners, np.float32).reshape(-1, 4)
    labels = np.array([VOC_CLASSES.index(one) for one in names], np.int64)
    image = folder / "JPEGImages" / f"{name}.jpg"
    return check(Scene(str(path), image, boxes, labels, np.array(difficult, bool)), size)


def read_coco(
    root: Path, part: str, check: Callable[[Scene, tuple[int, int]], Scene], limit: int
) -> tuple[list[Scene], list[str]]:
    """COCO 2014 and the names of its classes in the order of their ids; crowds are difficult. Errors: InputError."""
    scenes, classes = [], None
    for images, annotations in COCO_PARTS[part]:
        content = coco_file(root / "annotations" / f"{annotations}.json")
        names = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
        if classes not in (None, names):
            raise InputError(f"{root}/annotations/{annotations}.json: has other categories than the files before it")
        classes = names
        label = {c["id"]: n for n, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
        own = {image["id"]: [] for image in content["images"]}
        for number, one in enumerate(content["annotations"]):
            if one["image_id"] not in own:
                raise InputError(f"{annotations}.json: annotation {number} is of image {one['image_id']}, not listed")
            if one["category_id"] not in label:
                raise InputError(
                    f"{annotations}.json: annotation {number} has category {one['category_id']}, which is none of "
                    "the file's; correct it"
                )
            own[one["image_id"]].append(one)
        for image in content["images"]:
            if limit and len(scenes) == limit:
                return scenes, classes
            boxes = np.array([one["bbox"] for one in own[image["id"]]], np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = np.array([label[one["category_id"]] for one in own[image["id"]]], np.int64)
            crowd = np.array([bool(one.get("iscrowd", 0)) for one in own[image["id"]]], bool)
            areas = np.array([one.get("area", one["bbox"][2] * one["bbox"][3]) for one in own[image["id"]]], np.float64)
            path = root / "images" / images / image["file_name"]
            scene = Scene(f"{annotations}.json, image {image['id']}", path, boxes, labels, crowd, areas)
            scenes.append(check(scene, (image["height"], image["width"])))
    return scenes, classes


def coco_file(path: Path) -> dict:
    """The dataset in a COCO file, through pycocotools. Errors: InputError."""
    from pycocotools.coco import COCO

    if not path.is_file():
        raise InputError(f"{path}: there is no such file; fetch COCO's annotations (python data.py names the source)")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            content = COCO(str(path)).dataset
        missing = [key for key in ("images", "annotations", "categories") if key not in content]
    except (ValueError, KeyError, TypeError, AssertionError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: is not a readable COCO annotation file ({error}); fetch it again") from error
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; fetch it again")
    return content


SOURCES = {
    "voc": (
        "VOC2007",
        "http://host.robots.ox.ac.uk/pascal/VOC (07 trainval and test, 12 trainval)",
        "2.9 GB",
        "Flickr terms",
    ),
    "coco": (
        "annotations",
        "https://cocodataset.org (2014), minival lists of Faster-RCNN's author",
        "19 GB",
        "Flickr terms",
    ),
}


def report(root: Path) -> None:
    """Print which sets of boxes lie below a folder, and where they come from."""
    for name, (folder, source, size, licence) in SOURCES.items():
        places = (root / folder, root / "VOCdevkit" / folder, root / name / folder)
        here = next((place for place in places if place.is_dir()), None)
        state, place = "present" if here else "missing", str(here or root / folder)
        print(f"{name:<10} {state:<8} {place:<32} {size:<8} {licence:<28} {source}")
