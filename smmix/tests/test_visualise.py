"""The picture of what a network mixes: its layout, its colours, and what it refuses."""

from types import SimpleNamespace

import common  # noqa: F401
from common.errors import InputError
from common.images import read_image

import numpy as np
import pytest
import torch

from smmix import canvas, visualise
from smmix.adapters import adapt
from smmix.models import build
from smmix.visualise import CUT, GAP, LABELS, PASTE, ROWS


class Fixed:
    """An adapter that looks at bright tokens."""

    def __init__(self, patch: int):
        self.patch = patch

    def look(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), self.patch)
        return torch.zeros(len(images), 3), tokens.flatten(1)


def cells(path, columns: int) -> np.ndarray:
    """The picture as [rows, columns, height, width, 3]."""
    page = read_image(path)
    height, width = (page.shape[0] - GAP) // len(ROWS) - GAP, (page.shape[1] - LABELS - GAP) // columns - GAP
    top, left = (lambda r: GAP + r * (height + GAP)), (lambda c: LABELS + c * (width + GAP))
    cut = lambda r, c: page[top(r) : top(r) + height, left(c) : left(c) + width]
    return np.array([[cut(r, c) for c in range(columns)] for r in range(len(ROWS))])


def test_boxes_mixed_images_and_masks_are_those_of_the_method(tmp_path):
    images = torch.zeros(2, 3, 32, 32)
    images[0, 0, 8:16, 8:16] = 1.0  # the object of image 0 is red, of image 1 blue
    images[1, 2, 16:24, 0:8] = 1.0
    path = tmp_path / "samples" / "grid.png"
    visualise.draw(Fixed(8), images, path, ((0.0,) * 3, (1.0,) * 3), side=1)
    drawn = cells(path, 2)
    scale = drawn.shape[2] // 32
    assert drawn.shape[2:4] == (128, 128) and scale == 4
    original, _, boxes, mixed, mask = drawn
    assert np.array_equal(original[0][::scale, ::scale], images[0].permute(1, 2, 0).numpy().astype(np.uint8) * 255)
    assert tuple(boxes[0][8 * scale, 8 * scale]) == CUT and tuple(boxes[1][16 * scale, 0]) == CUT
    assert tuple(boxes[0][0, 0]) == PASTE  # the first of the empty tokens
    assert tuple(boxes[0][12 * scale, 12 * scale]) == (255, 0, 0)  # a border leaves the object visible
    assert mixed[0][: 8 * scale, : 8 * scale].reshape(-1, 3).tolist() == [[0, 0, 255]] * (8 * scale) ** 2
    assert mixed[1][: 8 * scale, : 8 * scale].reshape(-1, 3).tolist() == [[255, 0, 0]] * (8 * scale) ** 2
    assert mask[0].min() == 0 and mask[0][: 8 * scale, : 8 * scale].min() == 255
    assert (mask[0] == 255).mean() == 1 / 16


def test_grey_canvases_and_rectangles(tmp_path):
    torch.manual_seed(0)
    _, test = canvas.load(SimpleNamespace(limit=0), 0)
    images, _ = test.fetch(torch.arange(4), 0)
    network = build("vit_canvas", 10)
    visualise.draw(adapt(network), images, tmp_path / "grey.png", test.statistics)
    original = cells(tmp_path / "grey.png", 4)[0]
    assert original.shape[1:3] == (128, 128) and np.array_equal(original[..., 0], original[..., 2])
    expected = ((images[0, 0] / 3 + 0.3).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(original[0, ::8, ::8, 0], expected)
    assert network.training  # as it was
    wide = build("vit_cifar", 10, image_size=(16, 32))
    visualise.draw(adapt(wide), torch.randn(2, 3, 16, 32), tmp_path / "wide.png", ((0.5,) * 3, (0.2,) * 3))
    assert cells(tmp_path / "wide.png", 2).shape[2:4] == (128, 256)


def test_attention_is_coloured_from_least_to_most():
    scores = torch.tensor([[[0.1, 0.3], [0.2, 0.1]], [[5.0, 5.0], [5.0, 5.0]]])
    found = visualise.stretched(scores)
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 1.0], [0.5, 0.0]]))
    assert not found[1].any()  # a constant map has no range


@pytest.mark.parametrize("side", [-1, 8, 30])
def test_a_side_off_the_grid_is_refused(side, tmp_path):
    with pytest.raises(InputError, match=rf"{side} tokens a side does not fit a grid of 8 x 8"):
        visualise.draw(Fixed(4), torch.zeros(2, 3, 32, 32), tmp_path / "no.png", ((0.0,) * 3, (1.0,) * 3), side=side)
    assert not (tmp_path / "no.png").exists()


def test_the_command_draws_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    torch.save({"model": build("vit_canvas", 10).state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "c.yaml").write_text("data: {name: canvas}\nmodel: {name: vit_canvas}\n")
    given = ["--checkpoint", str(tmp_path / "weights.pth"), "--config", str(tmp_path / "c.yaml")]
    path = visualise.main([*given, "--images", "6", "--side", "3"])
    assert path == tmp_path / "samples" / "mixes.png" and cells(path, 6).shape[:2] == (5, 6)
    for number in ("3", "0", "600"):
        with pytest.raises(InputError, match=f"--images {number}.*between 2 and 597"):
            visualise.main([*given, "--images", number])
