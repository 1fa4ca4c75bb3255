"""Oracle checks of slices and relations, in float64 but for those that say float32."""

from common.tests.oracle_gan import Arrays, near, tensor

import numpy as np
import torch

from crd import method
from crd.method import ContentRelationLoss, relation


def pair(arrays: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Student (with gradient) and teacher as a batch."""
    student, teacher = tensor(arrays, "in_student"), tensor(arrays, "in_teacher")
    if student.ndim < 4:
        student, teacher = student[None], teacher[None]
    return student.requires_grad_(), teacher


def identical_rows(slices: torch.Tensor) -> torch.Tensor:
    """Which rows of [n, d] occur more than once."""
    same = (slices[:, None] == slices[None]).all(-1)
    return same.sum(1) > 1


def check_rkd_core(arrays: Arrays) -> None:
    student, teacher = pair(arrays)
    own, target = method.squared_distances(student), method.squared_distances(teacher)
    near(method.distances(own)[0], arrays["out_pdist_student"], what="distances")
    for side, squared in (("student", own), ("teacher", target)):
        near(method.normalised(method.distances(squared))[0], arrays[f"out_norm_dist_{side}"], what=f"{side} psi_D")
        near(method.angles(squared)[0], arrays[f"out_angle_{side}"], what=f"{side} psi_A")
    direct = method.direct_angles(student)
    near(direct[0], arrays["out_angle_student"], what="psi_A of unit vectors")
    near(method.distance_loss(own, target)[0], arrays["out_loss_distance"], what="L_D")
    near(method.angle_loss(own, target)[0], arrays["out_loss_angle"], what="L_A")
    duplicate = identical_rows(student[0])
    assert not int(arrays["hp_has_duplicate_rows"]) or duplicate.any()
    weights = [key.removeprefix("out_loss_w") for key in arrays if key.startswith("out_loss_w")]
    assert weights
    for key in weights:
        distance, angle = map(float, key.split("_"))
        for mode in ("mask", "reference"):
            loss = relation(student, teacher, distance, angle, mode)[0]
            near(loss, arrays[f"out_loss_w{key}"], what=f"R {key} {mode}")
            (found,) = torch.autograd.grad(loss, student)
            expected = arrays[f"grad_student_w{key}"]
            usual = np.ones(len(expected), bool) if not angle else ~duplicate.numpy()
            near(found[0][usual], expected[usual], what=f"gradient {key} {mode}")
            if usual.all():
                continue
            if mode == "mask":
                assert found.isfinite().all()
                assert found[0][~usual].abs().max() <= 1e-6 * np.abs(expected[~usual]).max()
            else:
                near(found[0][~usual], expected[~usual], rtol=1e-2, what=f"identical slices {key}")


def check_relations_image(arrays: Arrays) -> None:
    student, teacher = pair(arrays)
    size = int(arrays["hp_patch"])
    options = {"distance": float(arrays["hp_w_d"]), "angle": float(arrays["hp_w_a"]), "patch_size": size}
    loss = ContentRelationLoss(**options)
    found = loss.relations(student, teacher)
    for name in ("row", "column", "patch"):
        near(found[name][0], arrays[f"out_{name}"], what=name)
        (gradient,) = torch.autograd.grad(found[name][0], student, retain_graph=True)
        near(gradient[0], arrays[f"grad_student_{name}"], what=f"{name} gradient")
    near(loss(student, teacher), arrays["out_total_25"], what="25 R")
    in_raster_order = method.patches(student, size)[0].unflatten(1, (-1, size, size))
    for key in (key for key in arrays if key.startswith("out_patch") and key.removeprefix("out_patch").isdigit()):
        near(in_raster_order[int(key.removeprefix("out_patch"))], arrays[key], what=key)
    single = loss.relations(student.float(), teacher.float())
    for name, value in single.items():
        near(value[0], arrays[f"out_{name}_float32"], rtol=1e-4, what=f"{name} in float32")


def check_relations_batch_pix2pix(arrays: Arrays) -> None:
    student, teacher = pair(arrays)
    weight, size = float(arrays["hp_weight"]), int(arrays["hp_patch"])
    sums = {}
    for mode in ("per_image", "reference", "joint"):
        loss = ContentRelationLoss(weight, weight, weight, patch_size=size, patch_mode=mode)
        sums[mode] = {name: values.sum() for name, values in loss.relations(student, teacher).items()}
        if mode != "joint":
            key = "out_total_official" if mode == "reference" else "out_total_paper"
            near(loss(student, teacher, "sum"), arrays[key], what=key)
    stored = {
        "row_sum": (sums["per_image"]["row"], "row"),
        "column_sum": (sums["per_image"]["column"], "column"),
        "patch_official": (sums["reference"]["patch"], "patch_official"),
        "patch_paper_sum": (sums["per_image"]["patch"], "patch_paper"),
    }
    for key, (value, gradient) in stored.items():
        near(value, arrays[f"out_{key}"], what=key)
        (found,) = torch.autograd.grad(value, student, retain_graph=True)
        near(found, arrays[f"grad_student_{gradient}"], what=f"{gradient} gradient")
    near(sums["joint"]["patch"], arrays["out_patch_joint_over_batch"], what="joint")
