"""The recipe around the method: schedule, parameter groups, repeated augmentation, evaluation transform, metrics."""

from common.metrics import Accuracy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from smmix import data, models, optim
from smmix.models import PVT
from smmix.tests.oracle_method import Arrays, cases, tensors


def check_schedule(arrays: Arrays) -> None:
    for k in cases(arrays, "hp_epochs"):
        epochs, warmup = int(arrays[f"hp_epochs_{k}"]), int(arrays[f"hp_warmup_{k}"])
        base, minimum, low = (float(arrays[f"hp_{name}_{k}"]) for name in ("base_lr", "min_lr", "warmup_lr"))
        ours = [optim.learning_rate(e, epochs, base, minimum, warmup, low) for e in range(epochs)]
        assert np.allclose(ours, arrays[f"out_lr_{k}"], rtol=1e-9, atol=0)
    for kind in ("deit", "pvt"):
        theirs = {what: set(arrays[f"out_{what}_{kind}"].tolist()) for what in ("decay", "no_decay")}
        network = like(kind, theirs["decay"] | theirs["no_decay"])
        ours = optim.no_decay(network)
        names = {name for name, _ in network.named_parameters()}
        if kind == "pvt":  # their instance had no bias there
            names = {name for name in names if not name.endswith(("attn.q.bias", "attn.kv.bias"))}
        assert ours & names == theirs["no_decay"] and names - ours == theirs["decay"]


def like(kind: str, names: set[str]) -> nn.Module:
    """A narrow network with as many blocks as the listed parameter names have."""
    count = lambda prefix: len({name.split(".")[1] for name in names if name.startswith(f"{prefix}.")})
    if kind == "deit":
        made = models.VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=count("blocks"), num_heads=2)
    else:
        depths = tuple(count(f"block{stage}") for stage in range(1, 5))
        made = PVT(depths, (8, 16, 24, 32), (1, 2, 3, 4), (2,) * 4, image_size=(32, 32), num_classes=3)
    made.token_head = nn.Linear(made.num_features, made.num_classes)
    return made


def check_ra_sampler(arrays: Arrays) -> None:
    for k in cases(arrays, "hp_n"):
        n, world, epoch = (int(arrays[f"hp_{name}_{k}"]) for name in ("n", "world", "epoch"))
        ours = data.repeated_order(n, 3, world, epoch) % n
        assert len(ours) == world
        for rank in range(world):
            assert ours[rank].tolist() == arrays[f"out_idx_{k}_rank{rank}"].tolist()


def check_eval_transform(arrays: Arrays) -> None:
    for k in cases(arrays, "in_image"):
        ours = data.eval_transform(arrays[f"in_image_{k}"], int(arrays[f"hp_input_size_{k}"]))
        assert np.abs(ours.numpy() - arrays[f"out_tensor_{k}"]).max() <= 1e-5


def check_metrics(arrays: Arrays) -> None:
    t = tensors(arrays)
    meter = Accuracy()
    for part in torch.arange(len(t["in_y"])).split(16):
        meter.update(t["in_logits"][part], t["in_y"][part])
    result = meter.result()
    assert np.isclose(result["top1"], arrays["out_acc1"], rtol=1e-6)
    assert np.isclose(result["top5"], arrays["out_acc5"], rtol=1e-6)
    assert np.isclose(F.cross_entropy(t["in_logits"], t["in_y"]), arrays["out_ce"], rtol=1e-5)
