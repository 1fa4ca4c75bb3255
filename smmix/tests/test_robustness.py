"""The protocols beyond the test set, on tiny folders of the right layout and on networks whose answers are known."""

import argparse
import json
from pathlib import Path

from common import config
from common.errors import InputError
from common.images import write_image
from common.imagesets import IMAGENET

import numpy as np
import pytest
import torch
from torch import nn

from smmix import occlusion, robustness
from smmix.config import Config
from smmix.models import build
from smmix.occlusion import dropped, occlude
from smmix.robustness import ALEXNET, as_it_is

WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.6, 0.1, 0.1]])
CPU = torch.device("cpu")


class Colours(nn.Module):
    """Finds the class whose colour is nearest to the image's mean colour."""

    num_classes = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(s).view(3, 1, 1) for s in IMAGENET)
        seen = (images * std + mean).mean((2, 3))
        return -torch.cdist(seen, COLOURS)


@pytest.fixture
def conf(tmp_path) -> Config:
    (tmp_path / "c.yaml").write_text("data: {name: imagenet, size: 32, test_batch_size: 3}\nmodel: {name: vit_cifar}\n")
    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS))
    return config.load(Config, tmp_path / "c.yaml")


def given(tmp_path: Path, root: Path | None, protocol: str = "imagenet_a", **more) -> argparse.Namespace:
    known = {
        "protocol": protocol,
        "root": root and str(root),
        "wnids": str(tmp_path / "wnids.txt"),
        "grid": 4,
        "runs": 2,
    }
    return argparse.Namespace(**{**known, **more})


def paint(folder: Path, colours: dict[str, list], size: tuple[int, int] = (40, 36)) -> Path:
    """folder/WNID/i.png of the given colours (0 ... 1)."""
    for name, values in colours.items():
        for i, colour in enumerate(values):
            pixels = np.broadcast_to(np.asarray(colour) * 255, (*size, 3)).round().astype(np.uint8)
            write_image(folder / name / f"{i}.png", pixels)
    return folder


RED, DARK_RED, GREEN, BLUE = [0.9, 0, 0], [0.62, 0.1, 0.1], [0, 0.9, 0], [0, 0, 0.9]


def test_imagenet_a_and_r_let_only_their_own_classes_compete(tmp_path, conf):
    # Class 3 is not among the folders: a dark red image of class 0 is right only because class 3 cannot win.
    root = paint(tmp_path / "a", {WNIDS[2]: [BLUE, GREEN], WNIDS[0]: [RED, DARK_RED]})
    for protocol in ("imagenet_a", "imagenet_r"):
        found = robustness.natural(given(tmp_path, root, protocol), conf, Colours(), CPU)
        assert found[f"{protocol}_top1"] == 75.0 and (found["images"], found["classes"]) == (4, 2)
    all_compete = robustness.natural(given(tmp_path, root, "sketch"), conf, Colours(), CPU)
    assert all_compete["sketch_top1"] == 50.0


def test_folders_are_matched_by_name_not_by_their_order(tmp_path, conf):
    (tmp_path / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    root = paint(tmp_path / "a", {WNIDS[0]: [COLOURS[3].tolist()], WNIDS[3]: [RED], WNIDS[1]: [BLUE]})
    found = robustness.natural(given(tmp_path, root, "sketch"), conf, Colours(), CPU)
    assert found["sketch_top1"] == 100.0


def test_imagenet_s_own_classes_are_the_default(tmp_path, conf):
    class Thousand(Colours):
        num_classes = 1000

        def forward(self, images):
            return torch.cat([super().forward(images), torch.full((len(images), 996), -9.0)], 1)

    root = paint(tmp_path / "s", {WNIDS[0]: [RED], WNIDS[2]: [BLUE]})
    found = robustness.natural(given(tmp_path, root, "sketch", wnids=None), conf, Thousand(), CPU)
    assert found["sketch_top1"] == 100.0
    with pytest.raises(InputError, match=r"4 classes, ImageNet 1000.*--wnids"):
        robustness.natural(given(tmp_path, root, "sketch", wnids=None), conf, Colours(), CPU)


def corruptions(folder: Path, wrong: dict[str, int]) -> Path:
    """root/CORRUPTION/SEVERITY/WNID: a red and a green image; the green one is red up to the severity in `wrong`."""
    for name in ALEXNET:
        for severity in range(1, 6):
            second = RED if severity <= wrong.get(name, 0) else GREEN
            paint(folder / name / str(severity), {WNIDS[0]: [RED], WNIDS[1]: [second]}, (32, 32))
    return folder


def test_imagenet_c_is_relative_to_alexnet(tmp_path, conf):
    root = corruptions(tmp_path / "c", {"fog": 5, "snow": 2})
    found = robustness.corrupted(given(tmp_path, root, "imagenet_c"), conf, Colours(), CPU)
    assert found["imagenet_c_error_fog"] == 50.0 and found["imagenet_c_error_snow"] == 20.0
    assert found["imagenet_c_error_contrast"] == 0.0 and found["images"] == 150
    assert found["imagenet_c_mean_error"] == pytest.approx(70 / 15)
    assert found["imagenet_c_mce"] == pytest.approx((50 / 0.819324 + 20 / 0.866816) / 15)  # of fog and snow


def test_alexnet_itself_has_a_mean_corruption_error_of_100():
    assert len(ALEXNET) == 15 and robustness.relative_error({k: 100 * v for k, v in ALEXNET.items()}) == 100


def test_imagenet_c_images_are_taken_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in IMAGENET)
    pixels = (as_it_is(image, 224) * std + mean) * 255
    assert np.array_equal(pixels.round().permute(1, 2, 0).numpy(), image)
    assert as_it_is(image[:, :200], 100).shape == (3, 100, 100)


def test_occlusion_removes_the_stated_share_and_nests():
    index = torch.arange(50)
    before = dropped(3, 1, index, 14, 0)
    assert not before.any()
    for tenths in range(1, 10):
        now = dropped(3, 1, index, 14, tenths)
        assert (now.sum((1, 2)) == tenths * 196 // 10).all() and (now | before == now).all()
        before = now
    assert (dropped(3, 1, index, 14, 5).float().mean(0) - 0.5).abs().max() < 0.36  # five standard errors
    assert not torch.equal(dropped(3, 1, index, 14, 5), dropped(3, 2, index, 14, 5))
    assert torch.equal(dropped(3, 1, index, 14, 5)[7:9], dropped(3, 1, index[7:9], 14, 5))
    assert len({tuple(one.flatten().tolist()) for one in dropped(3, 1, index, 14, 5)}) == 50


def test_removed_patches_are_black():
    images = torch.randn(1, 3, 8, 8)
    drop = torch.tensor([[[True, False], [False, False]]])
    black = torch.tensor([-1.0, -2.0, -3.0])
    found = occlude(images, drop, black)
    assert torch.equal(found[0, :, :4, :4], black.view(3, 1, 1).expand(3, 4, 4))
    assert torch.equal(found[0, :, 4:], images[0, :, 4:]) and torch.equal(found[0, :, :, 4:], images[0, :, :, 4:])


def test_the_occlusion_curve(tmp_path, conf):
    class Bright(Colours):
        """Class 0 as long as more than half of the red is left."""

        def forward(self, images):
            mean, std = (torch.tensor(s).view(3, 1, 1) for s in IMAGENET)
            red = (images * std + mean)[:, 0].mean((1, 2))
            return torch.stack([red, torch.full_like(red, 0.5), red - 9, red - 9], 1)

    root = paint(tmp_path / "v", {WNIDS[0]: [[1.0, 1.0, 1.0]] * 4, WNIDS[1]: [[0.0, 0.0, 0.0]] * 4}, (40, 40))
    found = occlusion.occlusion(given(tmp_path, root, "occlusion"), conf, Bright(), CPU)
    # A grid of 16 loses 1, 3, 4, 6, 8, 9, ... patches; at 8 red is no more than the other class.
    curve = [found[f"occlusion_top1_{10 * t}"] for t in range(10)]
    assert curve == [100.0] * 5 + [50.0] * 5
    assert found["occlusion_mean_top1"] == 75.0 and found["occlusion_std_70"] == 0.0 and found["images"] == 8


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: (d / "wnids.txt").write_text("a b"), "names 2 different classes, the network has 4"),
        (lambda d: (d / "wnids.txt").write_bytes(b"\xff\xfe"), "cannot be read as a text file"),
        (lambda d: (d / "wnids.txt").write_text("n01440764 n2 n3 n4"), "1 folders are no class.*n01484850"),
        (lambda d: (d / "wnids.txt").unlink(), "cannot be read"),
    ],
)
def test_classes_that_do_not_match_are_refused(tmp_path, conf, change, message):
    root = paint(tmp_path / "a", {WNIDS[2]: [BLUE], WNIDS[0]: [RED]})
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        robustness.natural(given(tmp_path, root), conf, Colours(), CPU)


def test_other_bad_input_is_refused(tmp_path, conf):
    with pytest.raises(InputError, match=r"lacks 75 of the 75 folders.*gaussian_noise/1"):
        robustness.corrupted(given(tmp_path, tmp_path), conf, Colours(), CPU)
    with pytest.raises(InputError, match="not a folder of class folders"):
        robustness.natural(given(tmp_path, tmp_path / "none"), conf, Colours(), CPU)
    root = paint(tmp_path / "a", {WNIDS[0]: [RED]})
    with pytest.raises(InputError, match=r"--grid 5.*32 x 32 do not split"):
        occlusion.occlusion(given(tmp_path, root, "occlusion", grid=5), conf, Colours(), CPU)
    with pytest.raises(InputError, match="--runs 0"):
        occlusion.occlusion(given(tmp_path, root, "occlusion", runs=0), conf, Colours(), CPU)
    cifar = config.override(conf, ["--data.name", "cifar10"])
    with pytest.raises(InputError, match="network of cifar10 cannot classify"):
        robustness.natural(given(tmp_path, root), cifar, Colours(), CPU)


def test_the_commands_write_metrics(tmp_path, conf, capsys):
    torch.manual_seed(0)
    torch.save({"model": build("vit_cifar", 4).state_dict()}, tmp_path / "weights.pth")
    words = ["--checkpoint", str(tmp_path / "weights.pth"), "--config", str(tmp_path / "c.yaml")]
    words += ["--wnids", str(tmp_path / "wnids.txt")]
    root = paint(tmp_path / "a", {WNIDS[0]: [RED], WNIDS[1]: [GREEN]})
    found = robustness.main(["imagenet_r", *words, "--root", str(root)])
    written = json.loads((tmp_path / "imagenet_r" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(found)) and written["_meta"]["protocol"] == "imagenet_r"
    assert found["imagenet_r_top1"] in (0.0, 50.0, 100.0) and "imagenet_r_top1" in capsys.readouterr().out
    found = occlusion.main([*words, "--root", str(root), "--grid", "8", "--runs", "1"])
    assert len([key for key in found if key.startswith("occlusion_top1")]) == 10
    with pytest.raises(InputError, match="imagenet_a needs --root"):
        robustness.main(["imagenet_a", *words])


def test_occlusion_of_the_experiment_s_own_test_set(tmp_path):
    torch.manual_seed(0)
    torch.save({"model": build("vit_canvas", 10).state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "c.yaml").write_text("data: {name: canvas, limit: 60, batch_size: 60}\nmodel: {name: vit_canvas}\n")
    words = ["--checkpoint", str(tmp_path / "weights.pth"), "--config", str(tmp_path / "c.yaml")]
    found = occlusion.main([*words, "--grid", "8", "--runs", "1"])
    assert found["images"] == 60 and (tmp_path / "occlusion" / "metrics.json").is_file()
