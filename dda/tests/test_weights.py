"""The shipped weights: they load as predict.py finds them, and take synthetic moiré out of a photograph never seen."""

from common import photos
from common.testing import card_is_of

import cv2
import pytest
import torch

from dda import predict
from dda.inference import Demoirer
from dda.metrics import psnr_fitted, to_uint8
from dda.synthesise import Moire, synthesise

# Strong moiré of the kind that the weights were trained on, tone left alone.
MOIRE = Moire(off_min=0.02, off_max=0.1, brightness=1.0, strength_min=0.8, ramp=True)


def test_the_shipped_weights_are_small_and_know_their_head_and_widths():
    assert predict.SHIPPED.stat().st_size <= 4_000_000
    network, widths = predict.load(predict.SHIPPED, None)
    assert network.head == "residual" and network.channels == 32 and widths == (0.75, 0.5, 0.25)


def test_the_model_card_is_that_of_the_file():
    assert card_is_of(predict.SHIPPED)


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_they_improve_a_photograph_that_they_were_not_trained_on(name):
    photo = cv2.resize(photos.load(name), (320, 256), interpolation=cv2.INTER_AREA)
    pair = synthesise(photo, MOIRE, 5, 0)
    moire, clean = (torch.from_numpy(side).permute(2, 0, 1) for side in (pair.moire, pair.clean))
    network, widths = predict.load(predict.SHIPPED, None)
    restored = to_uint8(Demoirer(network, widths, tile=(128, 160))(moire).image, "round")
    quality = 10 * (255**2 / (restored.double() - clean.double()).square().mean()).log10()
    assert quality > psnr_fitted(moire[None], clean[None]).item() + 0.5
