"""The baseline's losses against other people's arithmetic and closed forms."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from dcd.omgd import PooledDistillation, structural_similarity, total_variation


def test_ssim_is_that_of_windows_filled_with_zeros():
    torch.manual_seed(0)
    a, b = torch.rand(2, 2, 3, 20, 17, dtype=torch.float64) * 2 - 1
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    blur = lambda x: correlate1d(
        correlate1d(x, taps / taps.sum(), 2, mode="constant"), taps / taps.sum(), 3, mode="constant"
    )
    x, y = a.numpy(), b.numpy()
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert float(structural_similarity(a, b)) == pytest.approx(expected.mean(), rel=1e-10)
    assert float(structural_similarity(a, a)) == pytest.approx(1, rel=1e-12)
    small = a[:1, :1, :6, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: structural_similarity(s, b[:1, :1, :6, :6]), small)


def test_total_variation_is_a_sum_for_each_image():
    step = torch.zeros(2, 3, 4, 5)
    step[0, :, :, 2:] = 1  # one edge of height 1 along 4 rows in 3 channels
    step[1, :, 1:] = 2  # one edge of height 2 along 5 columns
    assert float(total_variation(step)) == (3 * 4 * 1 + 3 * 5 * 2) / 2


def test_pooled_distillation_compares_channel_means():
    torch.manual_seed(0)
    distiller = PooledDistillation([2, 3], [4, 5]).double()
    student = [torch.randn(2, c, 6, 6, dtype=torch.float64, requires_grad=True) for c in (2, 3)]
    teacher = [torch.randn(2, c, 6, 6, dtype=torch.float64, requires_grad=True) for c in (4, 5)]
    found = distiller(student, teacher)
    for i, phi in enumerate(distiller.netSs):
        assert torch.allclose(found[i], (phi(student[i]).mean((2, 3)) - teacher[i].mean((2, 3))).square().mean())
    found.sum().backward()
    assert all(maps.grad.abs().sum() > 0 for maps in student) and all(maps.grad is None for maps in teacher)
    assert len(distiller.trained()) == 6 and all(p.grad is not None for p in distiller.trained())
    # Moving pixels about changes nothing: only the means count.
    turned = [maps.flip(2) for maps in student]
    assert torch.allclose(distiller(turned, teacher), found)
    with pytest.raises(ValueError, match="zip"):
        PooledDistillation([2], [4, 5])
