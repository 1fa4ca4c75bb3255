"""Content relationships: an image is cut into slices, and how the slices lie to one another is what a student repeats.

Slices are vectors [B, n, d]. Relations between two are distances, between three angles; both follow from the squared
distances [B, n, n] alone, so that no difference tensor [n, n, d] is made. Section numbers are those of README.md.
"""

import contextlib
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOOR = 1e-12
"""squared distance below which two slices count as identical; sqrt of it is their distance (section 2)"""
CHUNK = {"cpu": 2**18, "cuda": 2**25}
"""triplets in flight: what stays in a core's cache, or fills a GPU"""

PatchMode = Literal["per_image", "joint", "reference"]
Duplicates = Literal["mask", "reference"]


# -- slices (section 2) ----------------------------------------------------------------------------------------------


def rows(images: Tensor) -> Tensor:
    """Images [B, C, H, W] -> their H row strips [B, H, C·W]."""
    return images.transpose(1, 2).flatten(2)


def columns(images: Tensor) -> Tensor:
    """Images [B, C, H, W] -> their W column strips [B, W, C·H]."""
    return images.permute(0, 3, 1, 2).flatten(2)


def patches(images: Tensor, size: int = 32) -> Tensor:
    """Images [B, C, H, W] -> patches [B, P, C·size²] in raster order; what does not fill a patch is dropped."""
    if min(images.shape[-2:]) < size:
        return images.new_zeros(len(images), 0, images.shape[1] * size * size)
    return F.unfold(images, size, stride=size).mT


def patch_slices(images: Tensor, size: int = 32, mode: PatchMode = "per_image") -> Tensor:
    """Patches in the groups that are related to one another, [groups, n, d].

    per_image: the patches of each image. joint: all patches of the batch as one group. reference: the colour channels
    of the first B patches of the batch, each a group of its own, as the released pix2pix code has it (section 9).
    """
    found = patches(images, size)
    if mode == "joint":
        return found.flatten(0, 1)[None]
    if mode == "reference":
        return found.flatten(0, 1)[: len(images)].unflatten(1, (images.shape[1], size * size))
    return found


# -- distances -------------------------------------------------------------------------------------------------------


def squared_distances(slices: Tensor) -> Tensor:
    """|v_j - v_i|² [B, n, n] of slices [B, n, d], in the slices' precision.

    The slices are centred and the Gram matrix is summed in float64, because flat backgrounds give slices that hardly
    differ. Errors: ValueError for fewer than two slices, whose relations are not defined.
    """
    if slices.shape[1] < 2:
        raise ValueError(f"{slices.shape[1]} slices have no relations; give at least two (smaller patches?)")
    v = slices.double()
    v = v - v.mean(1, keepdim=True)
    gram = v @ v.mT
    own = gram.diagonal(dim1=1, dim2=2)
    return (own[:, :, None] + own[:, None, :] - 2 * gram).clamp(min=0).to(slices.dtype)


def distances(squared: Tensor) -> Tensor:
    """d [B, n, n]: identical slices are 1e-6 apart, a slice has distance 0 to itself."""
    own = torch.eye(squared.shape[-1], dtype=torch.bool, device=squared.device)
    return squared.clamp(min=FLOOR).sqrt().masked_fill(own, 0)


def normalised(distance: Tensor) -> Tensor:
    """psi_D = d / mu, mu the mean over i != j of one image; it is differentiated."""
    n = distance.shape[-1]
    return distance / (distance.sum((1, 2), keepdim=True) / (n * (n - 1)))


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_D [B]: smooth L1 between normalised distances, the mean over all n² entries; given squared distances."""
    own, target = (normalised(distances(squared)) for squared in (student, teacher))
    return F.smooth_l1_loss(own, target, reduction="none").mean((1, 2))


# -- angles ----------------------------------------------------------------------------------------------------------


def angles(squared: Tensor) -> Tensor:
    """psi_A [B, n, n, n]: the cosine at vertex i between slices j and k, by the law of cosines; 0 for identical slices.

    cos = (|v_j - v_i|² + |v_k - v_i|² - |v_k - v_j|²) / (2 |v_j - v_i| |v_k - v_i|). For looking at; losses use
    `angle_loss`, which never holds all triplets.
    """
    inverse = _inverse(squared)
    sides = squared[:, :, :, None] + squared[:, :, None, :] - squared[:, None]
    return sides * inverse[:, :, :, None] * inverse[:, :, None, :] / 2


def direct_angles(slices: Tensor) -> Tensor:
    """psi_A [B, n, n, n] from the unit vectors [B, n, n, d] themselves, as the released code has it.

    The gradient at identical slices is the upstream one divided by 1e-12.
    """
    units = F.normalize(slices[:, None] - slices[:, :, None], dim=-1)
    return units @ units.mT


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_A [B]: smooth L1 between the cosines of all n³ triplets, the mean; given squared distances [B, n, n].

    Triplets are visited a few vertices at a time and the gradient is found on the way, so that [B, n, n] is all that is
    kept for backward. Pairs of identical slices have cosine 0 and no gradient. The gradient cannot be
    differentiated once more.
    """
    return _AngleLoss.apply(student, teacher.detach())


def _inverse(squared: Tensor) -> Tensor:
    """1 / d, 0 for identical slices and on the diagonal."""
    return torch.where(squared > FLOOR, squared.clamp(min=FLOOR).rsqrt(), 0)


class _AngleLoss(torch.autograd.Function):
    """With s = 1/d: cos_ijk = (d_ij s_ik + s_ij d_ik - s_ij s_ik D_jk) / 2, three products of vectors per vertex i."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor) -> Tensor:
        batch, n, _ = student.shape
        inverse, other = _inverse(student), _inverse(teacher)
        length, other_length = student * inverse, teacher * other
        left = torch.stack([length, inverse, -other_length, -other], -1) / 2  # [B, n, n, 4]
        right = torch.stack([inverse, length, other, other_length], -2)  # [B, n, 4, n]
        total = student.new_zeros(batch)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(student) if wanted else None
        step = max(1, CHUNK.get(student.device.type, CHUNK["cuda"]) // (batch * n * n))
        for start in range(0, n, step):
            at = slice(start, start + step)
            s = inverse[:, at]
            pairs = s[..., :, None] * s[..., None, :]  # [B, c, n, n], as all that follows
            difference = left[:, at] @ right[:, at]
            difference.addcmul_(pairs, student[:, None], value=-0.5)
            difference.addcmul_(other[:, at, :, None] * other[:, at, None, :], teacher[:, None], value=0.5)
            slope = difference.clamp(-1, 1)  # of smooth L1, which is slope · (difference - slope / 2)
            total += difference.sub_(slope, alpha=0.5).mul_(slope).sum((1, 2, 3))
            if wanted:
                ends = torch.stack([s, length[:, at]], -1)  # [B, c, n, 2]
                towards, along = (slope @ ends).unbind(-1)
                weighted = slope.mul_(pairs)
                gradient -= weighted.sum(1) / 2
                opposite = (weighted * student[:, None]).sum(-1)
                gradient[:, at] += (s * towards - s**3 * along + s**2 * opposite) / 2
        if wanted:
            ctx.save_for_backward(gradient / n**3)
        return total / n**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[:, None, None] * gradient, None


# -- the loss --------------------------------------------------------------------------------------------------------


def relation(
    student: Tensor, teacher: Tensor, distance: float = 1.0, angle: float = 2.0, duplicates: Duplicates = "mask"
) -> Tensor:
    """R = w_d L_D + w_a L_A of each pair of slice sets [B, n, d]: [B]. The teacher's are detached.

    duplicates: `reference` takes the angles from unit vectors, with the released code's gradient of about 1e10 at
    identical slices and its memory of n² d and n³ numbers. Errors: ValueError for fewer than two slices.
    """
    own, target = squared_distances(student), squared_distances(teacher.detach())
    loss = own.new_zeros(len(own))
    if distance:
        loss = loss + distance * distance_loss(own, target)
    if angle and duplicates == "reference":
        cosines = direct_angles(student), direct_angles(teacher.detach())
        loss = loss + angle * F.smooth_l1_loss(*cosines, reduction="none").mean((1, 2, 3))
    elif angle:
        loss = loss + angle * angle_loss(own, target)
    return loss


class ContentRelationLoss(nn.Module):
    """Relations between the rows, columns and patches of a student's image, held against the teacher's (section 2).

    rows, columns, patches: weight of each slice set, 0 leaves it out. distance, angle: w_d and w_a. patch_size: side of
    a patch, pixels. Sets of fewer than two slices are skipped. Always computed in single precision at least.
    """

    def __init__(
        self,
        rows: float = 25.0,
        columns: float = 25.0,
        patches: float = 25.0,
        *,
        distance: float = 1.0,
        angle: float = 2.0,
        patch_size: int = 32,
        patch_mode: PatchMode = "per_image",
        duplicates: Duplicates = "mask",
    ):
        super().__init__()
        self.weights = {"row": rows, "column": columns, "patch": patches}
        self.options = {"distance": distance, "angle": angle, "duplicates": duplicates}
        self.patch_size, self.patch_mode = patch_size, patch_mode

    def slices(self, images: Tensor) -> dict[str, Tensor]:
        """The slice sets [groups, n, d] of images [B, C, H, W] that have a weight and at least two slices."""
        makers = {
            "row": rows,
            "column": columns,
            "patch": lambda images: patch_slices(images, self.patch_size, self.patch_mode),
        }
        found = {name: make(images) for name, make in makers.items() if self.weights[name]}
        return {name: part for name, part in found.items() if part.shape[1] >= 2}

    def relations(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """R of each slice set and group, [groups], without the sets' weights; groups are images but for other modes.

        Errors: ValueError where the images differ in shape or no set has two slices.
        """
        if student.shape != teacher.shape:
            raise ValueError(
                f"a student's image {[*student.shape]} and a teacher's {[*teacher.shape]} have no relation"
            )
        with _without_autocast(student.device.type):
            precision = torch.promote_types(student.dtype, torch.float32)
            own, target = (self.slices(images.to(precision)) for images in (student, teacher.detach()))
            if not own and any(self.weights.values()):
                raise ValueError(f"images of {[*student.shape[-2:]]} have no slice set of two or more slices")
            return {name: relation(own[name], target[name], **self.options) for name in own}

    def forward(self, student: Tensor, teacher: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """The weighted sum over slice sets; over the batch the mean (CycleGAN) or the sum (pix2pix)."""
        found = self.relations(student, teacher)
        terms = [self.weights[name] * getattr(values, reduction)() for name, values in found.items()]
        return torch.stack(terms).sum() if terms else student.new_zeros(())


def _without_autocast(device: str) -> contextlib.AbstractContextManager:
    """A block in which nothing is computed in half precision, on devices that could."""
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else contextlib.nullcontext()


def content_relation_loss(student: Tensor, teacher: Tensor, reduction: str = "mean", **options) -> Tensor:
    """`ContentRelationLoss(**options)` of images [B, C, H, W] as a function: 25 (R_row + R_column + R_patch)."""
    return ContentRelationLoss(**options)(student, teacher, reduction)
