"""Colour, loader, dilation, donor map and inference against the release's numbers."""

from common.shadow.color import rgb_to_lab
from common.tests import oracle_shadow
from common.tests.oracle_shadow import channels_first

import numpy as np
import torch

from hqss import donors, items, method
from hqss.inference import online_errors, restore
from hqss.items import Crop, dilate, prepare
from hqss.tests.oracle_networks import Arrays, build, close

NAMES = {"S1": "shadow", "NS1": "lit", "M_S1": "shadow_mask", "M_NS1": "lit_mask", "M_NS1_dil": "dilated"} | {
    "real_NS1_nsrs": "rest",
    "real_ns_1": "image",
}


def check_color(arrays: Arrays) -> None:
    oracle_shadow.check_color(arrays)
    rgb, mask = channels_first(arrays["in_rgb"]) / 255, torch.from_numpy(arrays["in_mask"] > 0).double()[None]
    close(items.lab_image(arrays["in_rgb"]), arrays["out_lab"], 0, "Lab of the loader", 1e-3)
    normal = method.normalise(rgb_to_lab(rgb))
    close(normal.movedim(0, -1), arrays["out_norm"], 0, "normalised", 1e-4)
    close(method.denormalise(normal), np.moveaxis(arrays["out_lab"], -1, 0), 0, "and back", 1e-3)
    close(method.training_region(rgb, mask).movedim(0, -1), arrays["out_region_train"], 0, "training region", 1e-4)
    for name, region in (("shadow", mask), ("nonshadow", 1 - mask)):
        found = method.test_region(normal, region)[None]
        close(found, arrays[f"out_region_test_{name}"], 0, f"test region, {name}", 1e-4)


def check_loader(arrays: Arrays) -> None:
    masks = [(arrays[f"in_{name}_mask"] > 127).astype(np.uint8) for name in ("shadow", "other")]
    ratio = method.ratios_of(donors.count_common(masks.__getitem__, 2))
    close(ratio, arrays["out_ratio"], 1e-5, "ratios")
    used_map = bool(method.admissible(ratio)[0, 1])
    assert used_map == bool(arrays["out_used_map"])
    assert donors.Donors(method.admissible(ratio), ratio).draw(int(arrays["hp_py_seed"]), 0, 0) == 1
    lit = masks[1] & (1 - masks[0])
    place = Crop(int(arrays["hp_i"]), int(arrays["hp_j"]), int(arrays["hp_k"]) > 50)
    item = prepare(arrays["in_rgb"], masks[0], lit, dilate(lit, "cross", 50), 448, 400, place)
    for official, own in NAMES.items():
        close(item[own][:, ::8, ::8], arrays[f"out_{official}_sub8"], 0, official, 1e-4)
        sums = torch.stack([item[own].double().sum(), item[own].double().abs().sum()])
        close(sums, arrays[f"out_{official}_sums"], 1e-4, f"sums of {official}")


def check_dilation(arrays: Arrays) -> None:
    mask = (arrays["in_mask"] > 0).astype(np.uint8)
    for shape, key in (("cross", "out_diamond50"), ("square", "out_square50")):
        assert np.array_equal(dilate(mask, shape, 50) * np.uint8(255), arrays[key]), key


def check_mask_map(arrays: Arrays) -> None:
    masks = (arrays["in_masks"] > 0).astype(np.uint8)
    ratio = method.ratios_of(donors.count_common(masks.__getitem__, len(masks)))
    close(ratio, arrays["out_ratio"], 1e-5, "ratios")
    close(method.area_ratios(torch.from_numpy(masks).flatten(1).float()), arrays["out_ratio"], 1e-5, "one product")
    bounds = (round(float(arrays[f"hp_{name}"]), 6) for name in ("lower", "upper"))
    assert np.array_equal(method.admissible(ratio, *bounds).numpy(), arrays["out_allowed"] > 0)


def check_inference(arrays: Arrays) -> None:
    coarse, refine = build("S2F", arrays), build("F2S", arrays)
    photographs, frees, true = arrays["in_rgb"], arrays["in_gt"], arrays["in_mask_true"]
    for clear in (0, 1):
        results = [restore(coarse, refine, *pair, bool(clear)) for pair in zip(photographs, arrays["in_mask_detected"])]
        worst = np.abs(np.int16(results) - np.int16(arrays[f"out_rgb8_clear{clear}"])).max()
        assert worst <= 1, f"clear {clear}: {worst} levels off"
        expected = {"s": arrays[f"out_shadow_PP_PI_clear{clear}"]}
        if not clear:
            expected |= {"ns": arrays["out_NS_PP_PI_correct"], "all": arrays["out_ALL_PP_PI"]}
            found = online_errors(results, frees, true, "ns", official=True)
            close(found, arrays["out_NS_PP_PI_official"], 0, "official NS", 1e-2)
        for region, numbers in expected.items():
            close(online_errors(results, frees, true, region), numbers, 0, f"{region}, clear {clear}", 1e-2)
