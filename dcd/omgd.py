"""The losses of OMGD (Online Multi-Granularity Distillation), the previous best: a baseline to compare with (A.7)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcd.method import Connector


class PooledDistillation(nn.Module):
    """Matches the mean of every channel: the student's maps are brought to the teacher's channels and both are pooled.

    student_channels, teacher_channels: widths of the compared layers.
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]):
        super().__init__()
        self.netSs = nn.ModuleList(Connector(s, t) for s, t in zip(student_channels, teacher_channels, strict=True))

    def trained(self) -> list[nn.Parameter]:
        """The connectors' parameters, all of which learn."""
        return list(self.parameters())

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean squared difference of pooled maps [N, C_l, H_l, W_l] for each layer, [L]; the teacher's are detached."""
        pooled = lambda maps: maps.to(torch.promote_types(maps.dtype, torch.float32)).mean((2, 3))
        parts = zip(self.netSs, student, teacher, strict=True)
        return torch.stack([(pooled(phi(s)) - pooled(t.detach())).square().mean() for phi, s, t in parts])


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of images [B, C, H, W]: Gaussian windows of 11 pixels, σ 1.5, of which zeros fill what is outside.

    The constants are those of a range of 1 although the images lie in [-1, 1], as in the released code.
    """
    taps = torch.arange(-5, 6, dtype=a.dtype, device=a.device).div(1.5).square().mul(-0.5).exp()
    taps = taps / taps.sum()
    a, b = a.flatten(0, 1)[:, None], b.flatten(0, 1)[:, None]
    moments = F.conv2d(torch.cat([a, b, a * a, b * b, a * b]), taps[None, None, :, None], padding=(5, 0))
    mean_a, mean_b, aa, bb, ab = F.conv2d(moments, taps[None, None, None], padding=(0, 5)).chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    squares = mean_a.square() + mean_b.square()
    likeness = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    return (likeness / ((squares + c1) * (aa + bb - squares + c2))).mean()


def total_variation(images: Tensor) -> Tensor:
    """Σ |x differences| + Σ |y differences| of an image [C, H, W], the mean over images [B, C, H, W].

    The released code sums over images as well, which is the same at its batch size of 1.
    """
    across, down = images.diff(dim=3).abs().sum(), images.diff(dim=2).abs().sum()
    return (across + down) / len(images)
