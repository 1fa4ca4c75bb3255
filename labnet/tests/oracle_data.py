"""The training transform, the test transform and inference against the official code's numbers."""

from common.shadow.triplets import dilate

import numpy as np
import torch

from labnet import restore, transforms
from labnet.config import Config, Data, Evaluation, Model
from labnet.method import BOX
from labnet.models import LABNet
from labnet.tests.oracle_network import Arrays, close, ruled_weights

LAB = Model()


def check_data_transform(arrays: Arrays) -> None:
    """The composed index map, and the step-by-step form that other interpolations take."""
    shadow, mask, free = (arrays[f"in_{name}"] for name in "ABC")
    load, crop, upper = (int(arrays[f"hp_{name}"]) for name in ("loadSize", "fineSize", "upper"))
    items = [name.removeprefix("hp_draws_") for name in arrays if name.startswith("hp_draws_")]
    assert items
    for item in items:
        _, size, *codes, angle, width, height, left, top, mirror = map(int, arrays[f"hp_draws_{item}"])
        assert load <= size < upper and transforms.sized(mask.shape, size) == (height, width)
        draws = transforms.Draws(height, width, tuple(codes), angle, left, top, bool(mirror))
        assert left <= max(0, width - crop - 1) and top <= max(0, height - crop - 1)
        places = transforms.places(mask.shape, draws, crop)
        for name, picture in (("A", shadow), ("C", free)):
            lab = transforms.to_network(transforms.look_up(picture, places)[None], LAB)
            transforms.fill_(lab, places.outside[None], torch.zeros(3, 1, 1))
            assert np.array_equal(lab[0], arrays[f"out_{name}_lab_{item}"])
            lab8 = np.rint(transforms.to_network(picture, LAB).movedim(0, -1).numpy() * 255).astype(np.uint8)
            slow = transforms.step_by_step(lab8, draws, crop, "stretched", "nearest")
            assert np.array_equal(slow.transpose(2, 0, 1) / np.float32(255), arrays[f"out_{name}_lab_{item}"])
        levels = transforms.look_up(mask, places)
        assert np.array_equal(levels[None] / np.float32(255), arrays[f"out_B_{item}"])
    size = arrays["out_test_B"].shape[:0:-1]
    for name, picture in (("A", shadow), ("C", free)):
        small = transforms.resize(picture, size)
        assert np.array_equal(transforms.to_network(small, LAB), arrays[f"out_test_{name}_lab"])
        assert np.array_equal(small.transpose(2, 0, 1) / np.float32(255), arrays[f"out_test_{name}"])
    assert np.array_equal(transforms.resize(mask, size)[None] / np.float32(255), arrays["out_test_B"])


def check_inference(arrays: Arrays) -> None:
    width, height = map(int, arrays["hp_size_wh"])
    network = LABNet(8)
    ruled_weights(network, 1.5, laplacian=True)
    network.grid = lambda *_: tuple(map(int, arrays["hp_down"]))
    config = Config(data=Data(test_size=(width, height)), eval=Evaluation(truncate=True))
    picture, mask = restore.prepared(arrays["in_rgb"], arrays["in_mask"], config)
    close(picture, arrays["out_lab_in"], 1e-4, "input")
    assert np.array_equal(mask, arrays["out_mask"])
    assert np.array_equal(dilate(mask[0, 0].byte().numpy(), BOX), arrays["out_mask_d"][0, 0])
    with torch.inference_mode():
        pred = network(picture, mask)
    close(pred, arrays["out_lab_pred"], 1e-4, "prediction")
    levels = (pred[0] * 255).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    assert np.abs(levels.astype(int) - arrays["out_lab8"]).max() <= 1
    found = restore.remove_shadow(network, arrays["in_rgb"], arrays["in_mask"], config)
    # A level of Lab that differs by one can move RGB by more, so pixels are compared where Lab agrees.
    same = (levels == arrays["out_lab8"]).all(-1)
    assert same.mean() > 0.99 and np.abs(found.astype(int) - arrays["out_rgb8"])[same].max() <= 1
