"""The released code's mixing, draws, losses and pooling on seeded inputs."""

import random

import numpy as np
import torch
import torch.nn.functional as F

from smmix import method
from smmix.method import SMMix
from smmix.mixing import Baseline, OfficialRandom, transmix_share

Arrays = dict[str, np.ndarray]


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(a)) for name, a in arrays.items() if a.dtype.kind in "fiub"}


def cases(arrays: Arrays, name: str) -> list[int]:
    """The case numbers of a file, from the keys that begin with name_."""
    return sorted(int(key.removeprefix(f"{name}_")) for key in arrays if key.removeprefix(f"{name}_").isdigit())


def close(ours: torch.Tensor, theirs: torch.Tensor, rel: float, floor: float = 0.0) -> None:
    """The largest absolute error is at most rel of the reference's largest value (or an absolute floor)."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert (ours.double() - theirs.double()).abs().max() <= max(rel * float(theirs.abs().max()), floor)


def replay(seed: int) -> OfficialRandom:
    """The official code's generators at a seed."""
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    return OfficialRandom()


def check_mixing(arrays: Arrays) -> None:
    t = tensors(arrays)
    assert len(cases(arrays, "in_x")) == int(arrays["hp_n_cases"])
    for k in cases(arrays, "in_x"):
        side, rect = int(arrays[f"hp_side_{k}"]), int(arrays[f"hp_rect_{k}"])
        images, attention = t[f"in_x_{k}"], t[f"in_attn_{k}"].unflatten(1, (side, side))
        size = torch.full((len(images),), rect)
        scores, inside = method.region_scores(attention, size)
        last = side - rect + 1
        assert torch.equal(inside.nonzero()[:, 1:].max(0).values, torch.tensor([last - 1, last - 1]))
        close(scores[:, :last, :last], t[f"out_scores_{k}"], 1e-5)
        smooth = method.smooth_labels(torch.zeros(len(images), dtype=torch.int64), 2)
        mixed = SMMix(2).apply(images, smooth, torch.zeros_like(smooth), attention, size)
        for ours, key in ((mixed.paste, "out_min_yx"), (mixed.cut, "out_max_yx")):
            theirs = t[f"{key}_{k}"]
            if not torch.equal(ours, theirs):  # an exact tie may be broken by another summation order
                values = t[f"out_scores_{k}"]
                at = lambda corner, values=values: values[torch.arange(len(corner)), corner[:, 0], corner[:, 1]]
                close(at(ours), at(theirs), 1e-5)
        theirs_min, theirs_max = t[f"out_min_yx_{k}"], t[f"out_max_yx_{k}"]
        assert torch.equal(method.mix_regions(images, theirs_min, theirs_max, size, side, side), t[f"out_mixed_{k}"])
        source = method.region_mask(theirs_min, size, side, side).flatten(1)
        assert torch.equal(source.byte(), t[f"out_source_mask_{k}"])
        assert torch.equal((~source).byte(), t[f"out_target_mask_{k}"])
        close(mixed.area, t[f"hp_lam_{k}"].expand(len(images)), 1e-6)


def check_call_sequence(arrays: Arrays) -> None:
    for key in arrays:
        if key.startswith("out_rect_list_side"):
            side = int(key.removeprefix("out_rect_list_side"))
            assert method.region_sizes(side) == arrays[key].tolist()
    for k in cases(arrays, "hp_seed"):
        side, alpha = int(arrays[f"hp_side_{k}"]), float(arrays[f"hp_mixup_alpha_{k}"])
        rng = replay(int(arrays[f"hp_seed_{k}"]))
        mixer = SMMix(2, alpha=alpha, switch_prob=float(arrays[f"hp_switch_prob_{k}"]))
        images, labels = torch.zeros(2, 1, side, side), torch.tensor([0, 1])
        look = lambda x, side=side: (torch.zeros(2, 2), torch.rand(2, side * side))
        expected = zip(*(arrays[f"out_{name}_{k}"].tolist() for name in ("is_smmix", "rect", "lam")))
        for smmix, rect, lam in expected:
            mixed = mixer(images, labels, look, rng)
            assert (mixed.source is not None) == bool(smmix)
            assert mixed.size is None or mixed.size.tolist() == [rect, rect]
            close(mixed.own.expand(2), torch.full((2,), lam, dtype=torch.float64), 1e-6)


def check_mixup_branch(arrays: Arrays) -> None:
    t = tensors(arrays)
    for k in cases(arrays, "hp_seed"):
        mixer = SMMix(
            int(arrays[f"hp_num_classes_{k}"]),
            switch_prob=0.0,
            alpha=float(arrays[f"hp_alpha_{k}"]),
            smoothing=float(arrays[f"hp_smoothing_{k}"]),
        )
        before = t[f"in_x_{k}"].clone()
        mixed = mixer(t[f"in_x_{k}"], t[f"in_y_{k}"], None, replay(int(arrays[f"hp_seed_{k}"])))
        close(mixed.own, t[f"out_lam_{k}"], 1e-6)
        close(mixed.images, t[f"out_x_{k}"], 1e-6)
        close(mixed.target, t[f"out_target_{k}"], 1e-6)
        assert torch.equal(before, t[f"in_x_{k}"])


def check_smmix_call(arrays: Arrays) -> None:
    t = tensors(arrays)
    for k in cases(arrays, "hp_seed"):
        smoothing = float(arrays[f"hp_smoothing_{k}"])
        mixer = SMMix(int(arrays[f"hp_num_classes_{k}"]), switch_prob=1.0, smoothing=smoothing)
        look = lambda x, k=k: (t[f"in_logits_{k}"], t[f"in_attn_{k}"])
        mixed = mixer(t[f"in_x_{k}"], t[f"in_y_{k}"], look, replay(int(arrays[f"hp_seed_{k}"])))
        assert set(mixed.size.tolist()) == {int(arrays[f"out_rect_{k}"])}
        assert torch.equal(mixed.images, t[f"out_x_{k}"])
        assert torch.equal(mixed.source.byte(), t[f"out_source_mask_{k}"])
        assert torch.equal((~mixed.source).byte(), t[f"out_target_mask_{k}"])
        close(mixed.area, t[f"out_lam_{k}"].expand(len(mixed.area)), 1e-6)
        close(mixed.target, t[f"out_mixed_target_{k}"], 1e-6)
        close(mixed.labels, t[f"out_target_target_{k}"], 1e-6)
        close(mixed.labels.flip(0), t[f"out_source_target_{k}"], 1e-6)
        close(method.mix_labels(mixed.reference, mixed.area), t[f"out_mixed_logits_{k}"], 1e-6)


def check_losses(arrays: Arrays) -> None:
    t = tensors(arrays)
    for k in cases(arrays, "in_y"):
        classes = t[f"in_logits_{k}"].shape[1]
        smooth = method.smooth_labels(t[f"in_y_{k}"], classes, float(arrays[f"hp_smoothing_{k}"]))
        own = t[f"hp_lam_{k}"].float().expand(len(smooth))
        names = ("logits", "target_logits", "source_logits")
        for alternative in (False, True):
            given = [t[f"in_{name}_{k}"].clone().requires_grad_() for name in names]
            mixed = method.Mixed(None, smooth, own, torch.ones(1), t[f"in_unmixed_logits_{k}"], own)
            terms = SMMix(classes, mix_probabilities=alternative).losses(mixed, *given)
            (con,) = torch.autograd.grad(terms["con"], given[:1], retain_graph=True)
            if alternative:
                close(terms["con"], t[f"out_alt_con_mixed_probabilities_{k}"], 1e-5)
                close(con, t[f"grad_alt_con_logits_{k}"], 1e-4, 1e-6)
                continue
            close(mixed.target, t[f"out_mixed_target_{k}"], 1e-6)
            for name, value in {**terms, "total": sum(terms.values())}.items():
                close(value, t[f"out_loss_{name}_{k}"], 1e-5)
            close(con, t[f"grad_con_logits_{k}"], 1e-4, 1e-6)
            sum(terms.values()).backward()
            for name, tensor in zip(names, given):
                close(tensor.grad, t[f"grad_total_{name}_{k}"], 1e-4, 1e-6)


def check_token_pool(arrays: Arrays) -> None:
    t = tensors(arrays)
    for k in cases(arrays, "in_tokens"):
        tokens = t[f"in_tokens_{k}"].requires_grad_()
        head = [t[f"param_{name}_{k}"].requires_grad_() for name in ("weight", "bias")]
        source = t[f"in_source_mask_{k}"].bool()
        assert torch.equal(~source, t[f"in_target_mask_{k}"].bool())
        target_logits, source_logits = F.linear(method.pool_regions(tokens, source), *head).chunk(2)
        close(target_logits, t[f"out_target_{k}"], 1e-5)
        close(source_logits, t[f"out_source_{k}"], 1e-5)
        torch.autograd.backward([target_logits, source_logits], [t[f"in_gout_target_{k}"], t[f"in_gout_source_{k}"]])
        for ours, name in ((tokens, "tokens"), (head[0], "weight"), (head[1], "bias")):
            close(ours.grad, t[f"grad_{name}_{k}"], 1e-4, 1e-6)


def check_baseline_cutmix_mixup(arrays: Arrays) -> None:
    t = tensors(arrays)
    assert len(cases(arrays, "hp_seed")) == int(arrays["hp_n"])
    for k in cases(arrays, "hp_seed"):
        mixer = Baseline("mixup_cutmix", t[f"out_target_{k}"].shape[1])
        mixed = mixer(t[f"in_x_{k}"], t[f"in_y_{k}"], None, replay(int(arrays[f"hp_seed_{k}"])))
        assert (mixed.box is not None) == bool(arrays[f"out_is_cutmix_{k}"])
        close(mixed.own, t[f"out_lam_{k}"], 1e-6)
        close(mixed.images, t[f"out_x_{k}"], 0.0 if mixed.box is not None else 1e-6)
        close(mixed.target, t[f"out_target_{k}"], 1e-6)
        assert list(mixed.box or [-1] * 4) == arrays[f"out_box_yl_yh_xl_xh_{k}"].tolist()


def check_transmix_baseline(arrays: Arrays) -> None:
    t = tensors(arrays)
    for k in cases(arrays, "hp_seed"):
        mixer = Baseline("transmix", t[f"out_area_target_{k}"].shape[1])
        mixed = mixer(t[f"in_x_{k}"], t[f"in_y_{k}"], None, replay(int(arrays[f"hp_seed_{k}"])))
        assert torch.equal(mixed.images, t[f"out_x_{k}"])
        assert list(mixed.box) == arrays[f"out_box_{k}"].tolist()
        close(mixed.target, t[f"out_area_target_{k}"], 1e-6)
        share = transmix_share(mixed, t[f"in_attn_{k}"])
        close(mixed._replace(own=share).target, t[f"out_transmix_target_{k}"], 1e-6)
