"""What det_*.npz and ssd_*.npz hold: boxes, anchors, matching, networks and average precision of detectors."""

from functools import partial

import numpy as np
import torch

from rebnn.detection import voc
from rebnn.detection.anchors import base_anchors, grid, ssd_base_anchors, ssd_priors
from rebnn.detection.backbone import Neck, body
from rebnn.detection.boxes import clip, decode, encode
from rebnn.detection.fasterrcnn import STRIDES
from rebnn.detection.multibox import match_priors, multibox_loss
from rebnn.detection.ssd import Block, L2Norm
from rebnn.method import BinaryConv2d
from rebnn.tests.oracle_method import CLOSE, EXACT, Archive, check_fixed_gamma, leaf
from rebnn.tests.oracle_networks import rule


def our_name(key: str) -> str:
    """The name that our network has for an entry of IDa-Det's backbone."""
    return key.replace(".conv.", ".binary_conv.").replace(".scale", ".scaling_factor")


def their_name(key: str) -> str:
    """The inverse of `our_name`."""
    return key.replace(".binary_conv.", ".conv.").replace(".scaling_factor", ".scale")


def check_backbone(arrays: dict[str, np.ndarray]) -> None:
    """det_backbone18: the whole backbone in evaluation mode, its state by the rule on IDa-Det's names."""
    file = Archive(arrays)
    network = body("resnet18", 1.0, partial(BinaryConv2d, binarizer="released", bias=True))
    assert sum(p.numel() for p in network.parameters()) == file.number("hp_num_parameters")
    salt = int(file.number("hp_rule_salt"))
    state = {k: torch.from_numpy(rule(their_name(k), tuple(v.shape), salt)) for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    with torch.no_grad():
        maps = network.double().eval().features(file["in_x"])[1:]
    for level, found in enumerate(maps, start=2):
        wanted = {name: name.removeprefix(f"out_c{level}") for name in arrays if name.startswith(f"out_c{level}")}
        values = {
            "": found,
            "_sub": found[:, ::8, ::2, ::2],
            "_mean": found.mean((0, 2, 3)),
            "_absmean": found.abs().mean((0, 2, 3)),
        }
        for name, kind in wanted.items():
            file.require(name, values[kind], CLOSE)
    file.finish()


def check_fpn(arrays: dict[str, np.ndarray]) -> None:
    """det_fpn: the pyramid with the file's state on the file's maps."""
    file = Archive(arrays)
    state = {our_name(key).replace(".binary_conv.", ".conv."): v for key, v in file.under("param_").items()}
    maps = [file[name] for name in sorted(name for name in arrays if name.startswith("in_c"))]
    out = len(state["fpn_convs.0.conv.weight"])
    neck = Neck([x.shape[1] for x in maps], out, partial(BinaryConv2d, binarizer="released")).double()
    neck.load_state_dict(state)
    found = neck.eval()(maps)
    for level, value in enumerate(found, start=2):
        file.require(f"out_p{level}", value, CLOSE)
    file.finish()


def check_box_coder(arrays: dict[str, np.ndarray]) -> None:
    """det_box_coder: codes of boxes, and boxes of codes, held inside the image."""
    file = Archive(arrays)
    anchors, stds = file["in_anchor"], file["hp_stds"]
    file.require("out_delta", encode(anchors, file["in_gt"], stds), CLOSE)
    size = int(file.number("hp_max_h")), int(file.number("hp_max_w"))
    file.require("out_boxes", clip(decode(anchors, file["in_rand_delta"], stds), size), CLOSE)
    file.finish()


def check_anchors(arrays: dict[str, np.ndarray]) -> None:
    """det_anchors: every level's grid, and the base anchors of SSD."""
    file = Archive(arrays)
    for level in sorted(int(name.removeprefix("hp_size")) for name in arrays if name.startswith("hp_size")):
        size, stride = file[f"hp_size{level}"].tolist(), STRIDES[level]
        file.require(f"out_level{level}", grid(base_anchors(stride, (8,)), size, stride), CLOSE)
    low, high = (round(100 * value) for value in file["hp_ssd_basesize_ratio"].tolist())
    for level, base in enumerate(ssd_base_anchors(low, high)):
        file.require(f"out_ssd_base{level}", base, CLOSE)
    file.finish()


def check_map(arrays: dict[str, np.ndarray]) -> None:
    """det_map: detections of one class, judged image by image, and both average precisions."""
    file = Archive(arrays)
    judged, scores, total = [], [], 0
    for image in range(sum(name.startswith("in_det") for name in arrays)):
        truth, found = file[f"in_gt{image}"].numpy(), file[f"in_det{image}"].numpy()
        easy = np.zeros(len(truth), bool)
        right, wrong = voc.judge(found[:, :4], found[:, 4], truth, easy, file.number("hp_iou"))
        file.require(f"out_tp{image}", torch.from_numpy(right).double(), EXACT)
        file.require(f"out_fp{image}", torch.from_numpy(wrong).double(), EXACT)
        judged.append((right, wrong))
        scores.append(found[:, 4])
        total += len(truth)
    assert total == file.number("hp_num_gt")
    right, wrong = (np.concatenate(part) for part in zip(*judged))
    for name, points in (("11points", True), ("area", False)):
        value = voc.average_precision(right, wrong, np.concatenate(scores), total, points)
        file.require(f"out_ap_{name}", torch.tensor(value, dtype=torch.float64), CLOSE)
    file.finish()


def check_priors(arrays: dict[str, np.ndarray]) -> None:
    """ssd_priors: all boxes of each configuration that the file names."""
    file = Archive(arrays)
    for name in arrays:
        file.require(name, ssd_priors(name.removeprefix("out_priors_")), CLOSE)
    file.finish()


def check_block(arrays: dict[str, np.ndarray]) -> None:
    """ssd_block: a strided block of BiDet, its border -1, with gradients."""
    file = Archive(arrays)
    state = file.under("param_")
    c_out, c_in = state["conv.weight"].shape[:2]
    block = Block(c_in, c_out, 2, partial(BinaryConv2d, binarizer="bidet", pad_value=-1.0), ceil_mode=True).double()
    block.load_state_dict(state)
    block.eval()
    x = leaf(file["in_x"])
    out = block(x)
    out.backward(file["in_grad_y"])
    file.require("out_y", out, CLOSE)
    file.require("grad_x", x.grad, CLOSE)
    file.require("grad_conv_weight", block.conv.weight.grad, CLOSE)
    file.finish()


def check_l2norm(arrays: dict[str, np.ndarray]) -> None:
    """ssd_l2norm: normalisation over channels."""
    file = Archive(arrays)
    x = file["in_x"]
    file.require("out_y", L2Norm(x.shape[1], file.number("hp_scale")).double()(x), CLOSE)
    file.finish()


def check_multibox(arrays: dict[str, np.ndarray]) -> None:
    """ssd_multibox: what each prior is matched to, both losses and their gradients."""
    file = Archive(arrays)
    priors = file["in_priors"]
    targets = [file[f"in_target{i}"] for i in range(len(arrays["in_loc"]))]
    pairs = [match_priors(priors, target[:, :4], target[:, 4].long()) for target in targets]
    wanted, classes = (torch.stack(part) for part in zip(*pairs))
    file.require("out_match_loc", wanted, CLOSE)
    file.require("out_match_conf", classes, EXACT)
    codes, logits = leaf(file["in_loc"]), leaf(file["in_conf"])
    losses = multibox_loss(codes, logits, wanted, classes)
    sum(losses).backward()
    for name, value in zip(("loc", "conf"), losses):
        file.require(f"out_loss_{name}", value, CLOSE)
    file.require("grad_loc", codes.grad, CLOSE)
    file.require("grad_conf", logits.grad, CLOSE)
    file.finish()


CHECKS = {
    "det_binarize": check_fixed_gamma,
    "det_backbone18": check_backbone,
    "det_fpn": check_fpn,
    "det_box_coder": check_box_coder,
    "det_anchors": check_anchors,
    "det_map": check_map,
    "ssd_priors": check_priors,
    "ssd_block": check_block,
    "ssd_l2norm": check_l2norm,
    "ssd_multibox": check_multibox,
}
