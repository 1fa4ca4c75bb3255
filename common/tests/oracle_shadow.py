"""What the oracle files of the shadow papers hold that both share; the projects list these checks in their tests."""

from common.shadow import color, metrics, synthesis

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


def channels_first(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image)).double().movedim(-1, -3)


def near(found, expected, tolerance: float, what: str) -> None:
    """The largest difference is at most the tolerance."""
    found = np.asarray(found, dtype=np.float64)
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    worst = np.abs(found - expected).max()
    assert worst <= tolerance, f"{what}: off by {worst:.3g}, allowed {tolerance}"


def check_evaluate_matlab(arrays: Arrays) -> None:
    size = tuple(map(int, arrays["hp_size"]))
    images = list(zip(arrays["in_pred"], arrays["in_gt"], arrays["in_mask"]))
    variants = {"": (size, "d50"), "_labD65": (size, "d65"), "_fullsize": (None, "d50")}
    for suffix, (resized, white) in variants.items():
        if f"out_PI{suffix}" not in arrays:
            continue
        scores = [metrics.score(*image, resized, white) for image in images]
        rows = torch.stack([torch.cat([s.psnr, s.ssim, s.error]) for s in scores])
        summary = metrics.summary(scores)
        if not suffix:
            near(rows, arrays["out_per_image"], 1e-3, "per image")
            if "out_ssim_per_channel" in arrays:
                near([s.ssim_per_channel for s in scores], arrays["out_ssim_per_channel"], 1e-3, "SSIM per channel")
        names = [f"{name}_{region}" for name in ("psnr", "ssim", "error") for region in metrics.REGIONS]
        near([summary[name] for name in names], arrays[f"out_PI{suffix}"], 1e-3, f"PI{suffix}")
        pooled = (
            arrays["out_PP_labD65"] if suffix == "_labD65" else arrays.get(f"out_PP{suffix}", arrays["out_PP_all_ns_s"])
        )
        near([summary[f"error_pp_{region}"] for region in metrics.REGIONS], pooled, 1e-3, f"PP{suffix}")
    if "out_pred_resized" in arrays:
        near(
            metrics.imresize(channels_first(images[0][0]) / 255, size).movedim(0, -1),
            arrays["out_pred_resized"],
            1e-3,
            "pred",
        )
    if "out_mask_resized" in arrays:
        mask = torch.from_numpy(images[0][2])
        found = metrics.imresize(mask, size, levels=True).numpy()
        assert np.array_equal(found, arrays["out_mask_resized"])
        exact, expected = metrics.imresize(mask, size), arrays["out_mask_resized_no_intermediate_rounding"]
        once = (exact + 0.5).floor().clamp(0, 255).numpy()
        halves = ((exact % 1) - 0.5).abs().numpy() < 1e-9  # whether x.5 is rounded up is a matter of the last bit
        assert np.array_equal(once[~halves], expected[~halves]) and np.abs(once - expected).max() <= 1


def check_shadow_synthesis(arrays: Arrays) -> None:
    free, matte = channels_first(arrays["in_shadow_free"]) / 255, torch.from_numpy(arrays["in_matte"]).double()
    w, b = (torch.from_numpy(arrays[f"in_{name}"]).double() for name in "wb")
    dark = synthesis.darken(free, w, b, float(arrays["hp_f"]))
    shadow = synthesis.blend(free, dark, matte)
    relit = synthesis.relight(dark.clamp(0, 1), w, b)
    found = {"dark": dark * 255, "shadow": shadow * 255, "relit_of_clipped_dark": relit * 255}
    found["matte_recovered"] = synthesis.recover_matte(free, shadow, relit)
    assert {"out_dark", "out_shadow"} <= arrays.keys()
    for name, value in found.items():
        if f"out_{name}" in arrays:
            near(value.movedim(-3, -1), arrays[f"out_{name}"], 1e-3, name)


def check_color8(arrays: Arrays) -> None:
    assert np.array_equal(color.rgb8_to_lab8(arrays["in_rgb"]), arrays["out_lab8"])
    assert np.array_equal(color.lab8_to_rgb8(arrays["out_lab8"]), arrays["out_rgb_back"])
    levels = np.clip(arrays["in_pred"][0].transpose(1, 2, 0) * np.float32(255), 0, 255).astype(np.uint8)
    assert np.array_equal(levels, arrays["out_pred_lab8"])
    assert np.array_equal(color.lab8_to_rgb8(levels), arrays["out_pred_rgb8"])


def check_color(arrays: Arrays) -> None:
    """The part of hqss's file that is about colour spaces."""
    rgb = channels_first(arrays["in_rgb"]) / 255
    lab = color.rgb_to_lab(rgb)
    near(lab.movedim(0, -1), arrays["out_lab"], 1e-3, "Lab D65")
    near(color.rgb_to_lab(rgb, "d50").movedim(0, -1), arrays["out_lab_icc_d50"], 1e-3, "Lab D50")
    near(color.lab_to_rgb(lab).movedim(0, -1), arrays["out_rgb_roundtrip"], 1e-4, "round trip")
