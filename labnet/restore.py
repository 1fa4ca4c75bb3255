"""A network applied to pictures of any size: shared by eval.py and predict.py (section 6)."""

import numpy as np
import torch

from labnet import transforms
from labnet.config import Config
from labnet.method import binarise
from labnet.models import LABNet


def prepared(rgb: np.ndarray, levels: np.ndarray, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture [1, 3, H, W] and binary mask [1, 1, H, W] at test size, of uint8 RGB and mask levels uint8 [H, W]."""
    size = tuple(config.data.test_size) if config.data.test_size else None
    rgb = transforms.resize(rgb, size, config.data.interpolation)
    soft = torch.from_numpy(np.array(transforms.resize(levels, size))).float() / 255
    return transforms.to_network(rgb, config.model)[None], binarise(soft, config.data.test_threshold)[None, None]


@torch.inference_mode()
def remove_shadow(network: LABNet, rgb: np.ndarray, levels: np.ndarray, config: Config, device="cpu") -> np.ndarray:
    """The picture without its shadow, uint8 [H, W, 3] at test size.

    rgb: uint8 [H, W, 3], levels: mask uint8 [H, W] of 0 to 255. Errors: InputError for a picture below the network's
    minimum.
    """
    picture, mask = prepared(rgb, levels, config)
    where = network.regions(mask)
    where = where._replace(**{name: value.to(device) for name, value in where._asdict().items() if value is not None})
    picture = picture.to(device, memory_format=torch.channels_last)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.run.precision == "bf16"):
        result = network(picture, mask.to(device), where)
    restored = transforms.to_picture(result[0], config.model, config.eval.truncate)
    if config.eval.paste:
        size = tuple(config.data.test_size) if config.data.test_size else None
        lit = transforms.resize(rgb, size, config.data.interpolation)
        restored = np.where(mask[0, 0].numpy()[..., None] > 0, restored, lit)
    return restored
