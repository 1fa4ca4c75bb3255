"""The shared substrate of the shadow papers: colour, metrics, synthesis, triplets."""

from pathlib import Path

from common.errors import InputError
from common.images import write_image
from common.shadow import color, metrics, synthesis, triplets

import cv2
import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab


def noise(seed: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_lab_is_scikit_images_and_has_a_gradient():
    rgb = torch.from_numpy(noise(0)).movedim(-1, 0).double() / 255
    lab = color.rgb_to_lab(rgb)
    assert np.abs(lab.movedim(0, -1).numpy() - rgb2lab(rgb.movedim(0, -1).numpy())).max() < 1e-6
    wild = lab * 1.7
    assert np.abs(color.lab_to_rgb(wild).movedim(0, -1).numpy() - lab2rgb(wild.movedim(0, -1).numpy())).max() < 1e-6
    for white in ("d50", "d65"):
        assert (color.lab_to_rgb(color.rgb_to_lab(rgb, white), white) - rgb).abs().max() < 2e-5
    # Black and the knees of both curves have finite gradients.
    special = torch.tensor([0.0, 0.04045, 1.0, 0.5], dtype=torch.float64).view(1, 1, 4).expand(3, 1, 4).clone()
    special.requires_grad_()
    color.lab_to_rgb(color.rgb_to_lab(special) * 0.99).sum().backward()
    assert special.grad.isfinite().all()
    smooth = (rgb[:, :2, :2] * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(color.rgb_to_lab, (smooth,))


def test_the_published_check_of_the_icc_transform():
    linear = color.linearise(torch.tensor([0.2, 0.3, 0.4]).double())
    xyz = torch.tensor(color.TO_XYZ["d50"]).double() @ linear * torch.tensor([0.9642, 1, 0.8249])
    assert xyz.tolist() == pytest.approx([0.0617, 0.0679, 0.1024], abs=1e-4)


def test_imresize_of_a_published_example():
    image = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    expected = torch.tensor([[1.9630, 3.4815], [6.5185, 8.0370]], dtype=torch.float64)
    assert (metrics.imresize(image, (2, 2)) - expected).abs().max() < 1e-4
    assert (metrics.imresize(image, (3, 3)) - image).abs().max() < 1e-12
    assert metrics.resize_weights(7, 19).sum(1).sub(1).abs().max() < 1e-12


def test_metrics_by_hand():
    free, mask = np.full((32, 32, 3), 128, np.uint8), np.zeros((32, 32), np.uint8)
    mask[:8] = 255
    result = free.copy()
    result[:8] = 138
    scores = metrics.score(result, free, mask, None)
    step = (138 - 128) / 255
    assert float(scores.psnr[0]) == pytest.approx(-10 * np.log10(step**2 / 4))
    assert float(scores.psnr[2]) == pytest.approx(float(scores.psnr[0])) and np.isinf(float(scores.psnr[1]))
    lab = [color.rgb_to_lab(torch.full((3, 1, 1), v / 255, dtype=torch.float64), "d50") for v in (128, 138)]
    expected = float((lab[0] - lab[1]).abs().sum())
    assert scores.error.tolist() == pytest.approx([expected / 4, 0, expected])
    assert scores.pixels.tolist() == [1024, 768, 256]
    assert float(scores.ssim[1]) == pytest.approx(1)


def test_an_empty_region_is_skipped_and_counted():
    free, result = noise(1), noise(2)
    masks = [np.zeros((20, 30), np.uint8), np.full((20, 30), 255, np.uint8)]
    scores = [metrics.score(result, free, mask, None) for mask in masks]
    found = metrics.summary(scores)
    assert found["skipped_s"] == found["skipped_ns"] == 1
    assert found["error_s"] == pytest.approx(float(scores[1].error[2])) and np.isfinite(found["error_ns"])
    only = metrics.summary(scores[:1])
    assert np.isnan(only["error_s"]) and np.isnan(only["error_pp_s"]) and only["skipped_s"] == 1
    with pytest.raises(InputError, match="no image"):
        metrics.summary([])
    with pytest.raises(InputError, match="must be of one size"):
        metrics.score(result, free, masks[0][:5], None)


def test_a_mask_of_any_value_is_shadow_and_grows_when_it_is_resized():
    free, mask = noise(3, (64, 64)), np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 1
    binary = metrics.score(free, free, mask, None)
    assert binary.pixels[2] == 400
    grown = metrics.score(free, free, mask * 255, (32, 32))
    assert grown.pixels[2] > 100


def test_relighting_undoes_the_shadow_and_is_fitted_from_a_pair():
    free = torch.from_numpy(cv2.GaussianBlur(noise(4, (60, 60)), (0, 0), 1)).movedim(-1, 0).double() / 255
    w, b = torch.tensor([2.2, 2.0, 1.8]).double(), torch.tensor([0.02, 0.0, 0.01]).double()
    dark = synthesis.darken(free, w, b)
    assert (synthesis.relight(dark, w, b) - free).abs().max() < 1e-12
    matte = torch.ones(1, 60, 60).double()
    matte[:, 10:50, 10:50] = 0
    shadow = synthesis.blend(free, dark.clamp(0, 1), matte)
    levels = [np.rint(x.movedim(0, -1).numpy() * 255).astype(np.uint8) for x in (shadow, free)]
    mask = (1 - matte[0]).numpy().astype(np.uint8)
    fitted = synthesis.fit_affine(*levels, mask)
    assert (fitted.w - w).abs().max() < 0.05 and (fitted.b - b).abs().max() < 0.02
    assert synthesis.fit_affine(levels[1], levels[1], mask) is None  # no shadow at all
    assert synthesis.fit_affine(*levels, np.zeros_like(mask)) is None


def test_drawn_shadows_are_repeatable_varied_and_inside_their_bounds():
    cover, colours = [], set()
    for index in range(30):
        shadow = synthesis.draw(3, index, (48, 64))
        again = synthesis.draw(3, index, (48, 64))
        assert torch.equal(shadow.matte, again.matte) and torch.equal(shadow.w, again.w)
        assert shadow.matte.shape == (1, 48, 64) and 0 <= shadow.matte.min() <= shadow.matte.max() <= 1
        assert shadow.w[0] >= shadow.w[1] >= shadow.w[2] and shadow.w[2] > 1.3 and shadow.w[0] < 3.7
        cover.append(float(shadow.mask.float().mean()))
        colours.add(round(float(shadow.w[1]), 3))
        penumbra = ((shadow.matte > 0.02) & (shadow.matte < 0.98)).float().mean()
        assert 0 < penumbra < 0.5
    assert 0.03 < min(cover) < 0.15 and 0.35 < max(cover) < 0.55 and len(colours) > 25
    assert not torch.equal(synthesis.draw(3, 0, (48, 64)).matte, synthesis.draw(4, 0, (48, 64)).matte)
    lit = torch.full((3, 48, 64), 0.8)
    for linear in (False, True):
        cast = shadow.apply(lit, linear)
        umbra = (shadow.matte < 0.01).expand(3, -1, -1)
        assert (cast[umbra] < 0.7).all() and torch.allclose(
            cast[(shadow.matte == 1).expand(3, -1, -1)], torch.tensor(0.8)
        )


@pytest.fixture
def istd(tmp_path) -> Path:
    for folder, suffix in (("train_A", "jpg"), ("train_B", "png"), ("train_C", "jpg")):
        for i in range(3):
            image = noise(i) if folder != "train_B" else np.repeat((noise(i)[..., :1] > 128) * np.uint8(255), 3, 2)
            write_image(tmp_path / folder / f"{i}-1.{suffix}", image)
    return tmp_path


def test_triplets_pair_by_stem(istd):
    found = triplets.find(istd, "train")
    assert [t.name for t in found] == ["0-1", "1-1", "2-1"] and found[1].mask.name == "1-1.png"
    shadow, mask, free = triplets.read(found[0])
    assert shadow.shape == free.shape == (20, 30, 3) and set(np.unique(mask)) == {0, 1}
    assert triplets.find(istd, "train", "none")[0].free is None
    (istd / "deep" / "train").mkdir(parents=True)
    for name in ("train_A", "train_B", "train_C"):
        (istd / name).rename(istd / "deep" / "train" / name)
    assert len(triplets.find(istd / "deep", "train")) == 3


def test_adjusted_photographs_go_by_several_names(istd):
    for name in ("train_C_fixed", "train_C_fixed_ours", "train_C_fixed_official"):
        for number in range(3):
            write_image(istd / name / f"{number}-1.png", noise(number))
        assert triplets.find(istd, "train", "adjusted")[0].free.parent.name == name
    assert triplets.find(istd, "train")[0].free.parent.name == "train_C"


def test_bad_triplets_are_refused(istd):
    with pytest.raises(InputError, match="test_A does not exist"):
        triplets.find(istd, "test")
    with pytest.raises(InputError, match="train_C_fixed_official does not exist"):
        triplets.find(istd, "train", "adjusted")
    (istd / "train_B" / "1-1.png").rename(istd / "train_B" / "7-1.png")
    with pytest.raises(InputError, match="train_A and train_B do not pair; without partner: 1-1, 7-1"):
        triplets.find(istd, "train")
    (istd / "train_B" / "7-1.png").rename(istd / "train_B" / "1-1.png")
    write_image(istd / "train_B" / "1-1.png", noise(1, (10, 10)))
    with pytest.raises(InputError, match="is 10x10"):
        triplets.read(triplets.find(istd, "train")[1])
    write_image(istd / "train_A" / "1-1.png", noise(1))
    with pytest.raises(InputError, match="have one name"):
        triplets.find(istd, "train")


def test_dilations():
    mask = np.zeros((30, 30), np.uint8)
    mask[15, 10] = mask[0, 29] = 1
    square = triplets.dilate(mask, 11)
    assert square.sum() == 121 + 36 and square[10, 5] == 1 and square[9, 5] == 0
    slow = mask.copy()
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    for _ in range(7):
        slow = cv2.dilate(slow, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    assert np.array_equal(triplets.dilate_diamond(mask, 7), slow)
    assert triplets.dilate_diamond(np.zeros_like(mask), 7).sum() == 0
