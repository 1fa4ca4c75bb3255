"""Oracle checks of the segmentation networks and of the mIoU."""

from common.tests.oracle_gan import Arrays, near, rule_weights, tensor

import numpy as np
import torch

from dcd import cityscapes
from dcd.drn import DEPTHS, DRNSeg, bilinear_kernel


def check_cityscapes_miou(arrays: Arrays) -> None:
    matrix = sum(cityscapes.confusion(label, pred) for label, pred in zip(arrays["in_label"], arrays["in_pred"]))
    assert np.array_equal(matrix, arrays["out_hist"])
    found, expected = cityscapes.intersection_over_union(matrix), arrays["out_iou"]
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    near(np.nan_to_num(found), np.nan_to_num(expected), what="IoU")
    near(cityscapes.mean_iou(matrix), arrays["out_miou"], what="mIoU")
    size = tuple(arrays["hp_width_height"].tolist())
    near(cityscapes.resize_scores(arrays["in_scores"], size), arrays["out_scores_resized"], what="resized scores")
    assert np.array_equal(cityscapes.train_ids(arrays["in_ids"]), arrays["out_train_ids"])
    palettes = [key for key in arrays if key.startswith("out_colormap")]
    assert palettes
    for key in palettes:
        assert np.array_equal(cityscapes.colours(len(arrays[key])), arrays[key]), key
    near(bilinear_kernel(len(arrays["out_bilinear_up_kernel"])), arrays["out_bilinear_up_kernel"], what="kernel")
    near(cityscapes.normalise(tensor(arrays, "in_norm")), arrays["out_norm"], what="normalised")


@torch.no_grad()
def check_drn(arrays: Arrays) -> None:
    """float32; the depth is told by the number of parameters."""
    count = lambda network: sum(p.numel() for p in network.parameters())
    networks = [network for name in DEPTHS if count(network := DRNSeg(name)) == int(arrays["hp_num_params"])]
    assert len(networks) == 1
    (network,) = networks
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == int(arrays["hp_num_params_trainable"])
    fixed = network.up.weight.clone()
    network = rule_weights(network, 0.5).eval()
    network.up.weight.copy_(fixed)
    x = torch.from_numpy(arrays["in_x"])
    near(network.scores(x), arrays["out_seg_lowres"], rtol=1e-3, atol=1e-3, what="scores")
    scores = network(x)
    step = scores.shape[-1] // arrays["out_logp_sub"].shape[-1]
    near(scores[..., ::step, ::step], arrays["out_logp_sub"], rtol=1e-3, atol=1e-3, what="log-probabilities")
