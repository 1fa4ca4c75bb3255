"""Check of end_to_end.npz: an image through prior, routing, networks and stitching, and its scores."""

import numpy as np

from dda.config import Prior, Routing
from dda.inference import Demoirer
from dda.metrics import scores, to_uint8
from dda.models import build
from dda.tests.oracle_method import close, tensor
from dda.tests.oracle_networks import rule_weights

TILES = {0: (512, 512), 1: (512, 640)}  # of LCDMoiré and of FHDMi


def moire_of(clean: np.ndarray) -> np.ndarray:
    """The test picture of the manifest: darker, with one diagonal wave a channel; uint8 [H, W, 3] both."""
    y, x = np.mgrid[: clean.shape[0], : clean.shape[1]]
    waves = [12 * np.sin(0.11 * (c + 1) * x + 0.07 * y) for c in range(3)]
    return np.round(np.clip(0.9 * clean.astype(np.float64) + np.stack(waves, -1), 0, 255)).astype(np.uint8)


def check_end_to_end(file: dict[str, np.ndarray]) -> None:
    repeat = int(file["hp_repeat"])
    clean = file["in_base_rgb"].repeat(repeat, 0).repeat(repeat, 1)
    moire = moire_of(clean)
    routed = Demoirer(
        rule_weights(build("dmcnn"), int(file["hp_salt"])),
        [round(float(width), 2) for width in file["hp_widths"]],
        tile=TILES[int(file["hp_is_fhdmi"])],
        routing=Routing(kind="released"),
        prior=Prior(mode="official_test"),
    )
    image, target = (tensor(array).permute(2, 0, 1) for array in (moire, clean))
    result = routed(image)
    close(result.scores, file["out_scores"], 1e-4)
    assert result.choice.tolist() == file["out_width_index"].tolist()
    found = scores(result.image[None], target[None], "floor")
    restored = to_uint8(result.image[None])[0].permute(1, 2, 0).double()
    block = int(file["hp_block"])
    height, width = restored.shape[:2]
    means = restored.reshape(height // block, block, width // block, block, 3).mean((1, 3))
    close(means, file["out_blockmean8"], absolute=0.05)
    close(found["psnr_uint8"], file["out_psnr"], absolute=1e-2)
    close(found["ssim_uniform7"], file["out_ssim"], absolute=1e-3)
    close(found["ciede2000"], file["out_ciede"], absolute=1e-2)
    close(scores(image[None] / 255, target[None], "round")["psnr_uint8"], file["out_psnr_input"], absolute=1e-2)


CHECKS = {"end_to_end": check_end_to_end}
