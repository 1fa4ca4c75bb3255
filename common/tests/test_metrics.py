"""Accuracy against sorting, PSNR and SSIM against scikit-image."""

import math

from common import metrics
from common.errors import InputError

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def photographs(shape=(3, 3, 37, 52), seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    coarse = rng.random((*shape[:2], 6, 8))
    clean = torch.nn.functional.interpolate(torch.from_numpy(coarse), shape[2:], mode="bilinear")
    return clean, clean + noise * torch.from_numpy(rng.standard_normal(shape))


def arrays(batch):
    return batch.permute(0, 2, 3, 1).numpy()


def test_accuracy_counts_equal_sorting():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 10), torch.randint(10, (200,))
    ranked = logits.argsort(1, descending=True)
    counts = metrics.accuracy(logits, labels, topk=(1, 3, 5))
    for k in (1, 3, 5):
        assert counts[f"top{k}"] == (ranked[:, :k] == labels[:, None]).sum()


def test_accuracy_names_what_it_counts():
    logits, labels = torch.eye(3), torch.tensor([0, 1, 0])
    assert {k: int(v) for k, v in metrics.accuracy(logits, labels).items()} == {"top1": 2, "top3": 3}


def test_collapsed_networks_score_nothing():
    labels = torch.arange(4)
    for logits in (torch.zeros(4, 10), torch.full((4, 10), torch.nan)):
        assert all(count == 0 for count in metrics.accuracy(logits, labels).values())


def test_accuracy_accumulates_over_uneven_batches():
    torch.manual_seed(1)
    logits, labels = torch.randn(70, 7), torch.randint(7, (70,))
    meter = metrics.Accuracy()
    for part in torch.arange(70).split(32):
        meter.update(logits[part], labels[part])
    whole = metrics.accuracy(logits, labels)
    assert meter.result() == {name: 100.0 * int(count) / 70 for name, count in whole.items()}
    assert meter.result() == meter.result()


def test_accuracy_is_that_of_all_ranks(monkeypatch):
    meter = metrics.Accuracy((1, 2))
    meter.update(torch.eye(3), torch.tensor([0, 1, 0]))
    other = torch.tensor([1, 4, 5])  # another rank's hits at 1 and at 2, and its samples
    monkeypatch.setattr(metrics.distributed, "sum_", lambda counts: counts + other)
    assert meter.result() == {"top1": 100.0 * (2 + 1) / (3 + 5), "top2": 100.0 * (2 + 4) / (3 + 5)}


def test_accuracy_refuses_what_it_cannot_count():
    meter = metrics.Accuracy()
    with pytest.raises(InputError, match="no sample"):
        meter.result()
    with pytest.raises(InputError, match=r"\[4, 3\] and labels \[3\]"):
        meter.update(torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64))
    meter.update(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"top5.*top3"):
        meter.update(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_psnr_float_equals_scikit_image(dtype):
    a, b = (x.to(dtype) for x in photographs())
    expected = [
        peak_signal_noise_ratio(x.astype(float), y.astype(float), data_range=1) for x, y in zip(arrays(a), arrays(b))
    ]
    torch.testing.assert_close(metrics.psnr_float(a, b), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_psnr_uint8_equals_scikit_image_on_rounded_arrays():
    a, b = photographs(noise=0.3)
    assert b.min() < 0 and b.max() > 1
    x, y = (np.rint(np.clip(arrays(t), 0, 1) * 255).astype(np.uint8) for t in (a, b))
    expected = torch.tensor([peak_signal_noise_ratio(p, q) for p, q in zip(x, y)]).double()
    torch.testing.assert_close(metrics.psnr_uint8(a, b), expected, atol=1e-6, rtol=0)
    assert (metrics.psnr_uint8(a, b) - metrics.psnr_float(a, b)).abs().min() > 0.1


@pytest.mark.parametrize("shape", [(3, 3, 37, 52), (1, 1, 11, 11), (2, 3, 12, 40)])
@pytest.mark.parametrize("rounded", [False, True])
def test_ssim_equals_scikit_image(shape, rounded):
    a, b = photographs(shape, seed=shape[3])
    extent = 1.0
    if rounded:
        a, b, extent = metrics.round8(a), metrics.round8(b), 255
    scale = (lambda x: np.rint(x * 255).astype(np.uint8)) if rounded else (lambda x: x)
    pairs = [(scale(x), scale(y)) for x, y in zip(arrays(a), arrays(b))]
    gaussian = [
        structural_similarity(
            x, y, data_range=extent, channel_axis=2, gaussian_weights=True, use_sample_covariance=False
        )
        for x, y in pairs
    ]
    uniform = [structural_similarity(x, y, data_range=extent, channel_axis=2) for x, y in pairs]
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(metrics.ssim_gaussian11(a, b), torch.tensor(gaussian).double(), **close)
    torch.testing.assert_close(metrics.ssim_uniform7(a, b), torch.tensor(uniform).double(), **close)


def test_identical_images():
    a, _ = photographs()
    assert metrics.psnr_float(a, a).tolist() == metrics.psnr_uint8(a, a).tolist() == [math.inf] * 3
    assert metrics.ssim_gaussian11(a, a).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    assert metrics.ssim_uniform7(a, a).tolist() == pytest.approx([1.0] * 3, abs=1e-12)


def test_a_nan_pixel_is_not_hidden():
    a, b = photographs()
    b[1, 0, 20, 20] = torch.nan
    for metric in (metrics.psnr_float, metrics.psnr_uint8, metrics.ssim_gaussian11, metrics.ssim_uniform7):
        assert metric(a, b).isnan().tolist() == [False, True, False]


def test_mismatched_images_are_refused():
    a = torch.zeros(1, 3, 10, 20)
    with pytest.raises(InputError, match=r"\[1, 3, 10, 20\] and \[1, 3, 10, 19\]"):
        metrics.psnr_float(a, a[..., :-1])
    with pytest.raises(InputError, match="11 x 11"):
        metrics.ssim_gaussian11(a, a)
    with pytest.raises(InputError, match="uint8"):
        metrics.psnr_uint8(a.byte(), a.byte())
    with pytest.raises(InputError, match="B, C, H, W"):
        metrics.ssim_uniform7(a[0], a[0])
