"""What losses.npz and adaptors.npz hold: every loss with its gradients, every adaptor."""

import itertools
import re

import numpy as np
import torch
from torch import Tensor, nn

from kcd.distillers import build, losses
from kcd.distillers.adaptors import (
    Connector,
    ConvReg,
    Embed,
    LinearEmbed,
    Paraphraser,
    Translator,
    VidHead,
)
from kcd.tests.oracle_networks import fill

# Relative: largest error over the largest reference of an array.
VALUE, GRADIENT, CRD, SVD_VALUE, SVD_GRADIENT, ADAPTOR = 1e-5, 1e-4, 1e-3, 5e-4, 1e-3, 1e-4


class Archive:
    """The arrays of one file, which notes those that were read: a check skipped is a check failed."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays, self.read = arrays, set()

    def names(self, pattern: str) -> list[str]:
        """First groups of the keys that match, in the order of the file, each once."""
        return list(dict.fromkeys(m[1] for m in map(re.compile(pattern).fullmatch, self.arrays) if m))

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def inputs(self, name: str, side: str) -> list[Tensor]:
        count = len(self.names(rf"(in_{re.escape(name)}_{side}\d+)"))
        return [self[f"in_{name}_{side}{i}"].clone() for i in range(count)]

    def finish(self) -> None:
        unread = sorted(set(self.arrays) - self.read)
        assert not unread, f"arrays that no check reads: {unread}"


def assert_close(ours: Tensor, reference: Tensor, tolerance: float, what: str) -> None:
    ours = ours.detach()
    assert ours.shape == reference.shape, f"{what}: shape {tuple(ours.shape)}, reference {tuple(reference.shape)}"
    error = ((ours - reference).abs().max() / reference.abs().max()).item()
    assert error <= tolerance, f"{what}: relative error {error:.2e} exceeds {tolerance:.0e}"


def single(loss):
    """A loss of one layer applied to each of a list of layers."""
    return lambda student, teacher: [loss(s, t) for s, t in zip(student, teacher)]


LOSSES = {
    "attention": losses.attention,
    "nst": losses.nst,
    "abound": losses.abound,
    "fsp": losses.fsp,
    **{name: single(getattr(losses, name)) for name in ("hint", "similarity", "rkd", "pkt", "correlation", "factor")},
}


def check_loss(name: str, archive: Archive) -> None:
    """Layer losses and the gradient of their sum with respect to every student tensor."""
    temperature = re.fullmatch(r"kd_T([0-9.]+)", name)
    loss = single(lambda s, t: losses.kd(s, t, float(temperature[1]))) if temperature else LOSSES[name]
    student, teacher = archive.inputs(name, "s"), archive.inputs(name, "t")
    values = loss([s.requires_grad_() for s in student], teacher)
    sum(values).backward()
    assert_close(torch.stack(values), archive[f"out_{name}"], VALUE, name)
    for i, s in enumerate(student):
        assert_close(s.grad, archive[f"grad_{name}_s{i}"], GRADIENT, f"gradient of {name} to s{i}")


def check_vid(archive: Archive) -> None:
    (student,), (teacher,) = archive.inputs("vid", "s"), archive.inputs("vid", "t")
    student.requires_grad_()
    head = VidHead(student.shape[1], teacher.shape[1])
    default = archive["hp_vid_default_log_scale"]
    assert_close(head.log_scale, default.expand(teacher.shape[1]), VALUE, "initial log scale of vid")
    head.load_state_dict({key: archive[f"param_vid_{key}"] for key in head.state_dict()})
    small, target = losses.match_size(student, teacher)
    values = losses.vid([head(small)], [target], [head.log_scale])
    sum(values).backward()
    assert_close(torch.stack(values), archive["out_vid"], VALUE, "vid")
    assert_close(student.grad, archive["grad_vid_s0"], GRADIENT, "gradient of vid to s0")
    for key, parameter in head.named_parameters():
        assert_close(parameter.grad, archive[f"grad_vid_{key}"], GRADIENT, f"gradient of vid to {key}")


def check_kdsvd(archive: Archive) -> None:
    """KDSVD up to the sign of each teacher vector, which an SVD leaves open and the loss depends on.

    For each image the signs (of layers after the first, relative to it) whose gradient is nearest to the reference
    are taken; values and gradients of the whole batch must then agree.
    """
    student, teacher = archive.inputs("kdsvd", "s"), archive.inputs("kdsvd", "t")
    reference = [archive[f"grad_kdsvd_s{i}"] for i in range(len(student))]
    batch = len(student[0])
    directions = [losses.leading_direction(t) for t in teacher]
    signs = [torch.ones(batch, 1) for _ in teacher]
    for b in range(batch):
        trials = {}
        for trial in itertools.product((1.0, -1.0), repeat=len(student) - 1):
            targets = [sign * d[b : b + 1] for sign, d in zip((1.0, *trial), directions)]
            gradients = kdsvd_along([s[b : b + 1] for s in student], targets)[1]
            pairs = zip(gradients, reference)
            trials[trial] = sum((g / batch - r[b : b + 1]).square().sum() for g, r in pairs).item()
        for sign, value in zip(signs[1:], min(trials, key=trials.get)):
            sign[b] = value
    values, gradients = kdsvd_along(student, [sign * d for sign, d in zip(signs, directions)])
    assert_close(values, archive["out_kdsvd"], SVD_VALUE, "kdsvd")
    for i, gradient in enumerate(gradients):
        assert_close(gradient, reference[i], SVD_GRADIENT, f"gradient of kdsvd to s{i}")


def kdsvd_along(student: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Layer losses towards given teacher vectors and the gradients of their sum."""
    student = [s.detach().requires_grad_() for s in student]
    aligned = [losses.aligned_direction(s, t) for s, t in zip(student, targets)]
    values = torch.stack(losses.singular_relations(aligned, targets))
    return values, list(torch.autograd.grad(values.sum(), student))


def check_crd(archive: Archive) -> None:
    """Consecutive steps of one module on given samples: loss, gradients, normalisers and memories."""
    n_data, negatives = int(archive["hp_crd_n_data"]), int(archive["hp_crd_K"])
    weight = {side: archive[f"param_crd_embed_{side}_linear.weight"] for side in "st"}
    crd = build(
        "crd",
        [(1, 1, 1), (weight["s"].shape[1],)],
        [(1, 1, 1), (weight["t"].shape[1],)],
        n_data=n_data,
        n_classes=2,
        seed=0,
        labels=torch.arange(n_data) % 2,
        embed_dim=len(weight["s"]),
        negatives=negatives,
        temperature=float(archive["hp_crd_T"]),
        momentum=float(archive["hp_crd_m"]),
    )
    for side, embed in (("s", crd.embed_s), ("t", crd.embed_t)):
        bias = archive[f"param_crd_embed_{side}_linear.bias"]
        embed.load_state_dict({"linear.weight": weight[side], "linear.bias": bias})
    crd.contrast.memory_student.copy_(archive["param_crd_memory_v1"])
    crd.contrast.memory_teacher.copy_(archive["param_crd_memory_v2"])
    for step in archive.names(r"in_(crd\d+)_idx"):
        check_crd_step(crd, step, archive)


def check_crd_step(crd: nn.Module, step: str, archive: Archive) -> None:
    student, teacher = archive[f"in_{step}_s"].clone().requires_grad_(), archive[f"in_{step}_t"]
    index, sample_idx = archive[f"in_{step}_idx"], archive[f"in_{step}_sample_idx"]
    assert sample_idx.shape == (len(index), 1 + crd.sampler.negatives)
    loss = crd.contrast(crd.embed_s(student), crd.embed_t(teacher), index, sample_idx)
    found = torch.autograd.grad(loss, [student, crd.embed_s.linear.weight, crd.embed_t.linear.weight])
    assert_close(loss, archive[f"out_{step}_loss"], CRD, f"loss of {step}")
    assert_close(crd.contrast.z, archive[f"out_{step}_Z"], CRD, f"normalisers of {step}")
    for key, gradient in zip(("s", "embed_s_w", "embed_t_w"), found):
        assert_close(gradient, archive[f"grad_{step}_{key}"], CRD, f"gradient of {step} to {key}")
    for key, memory in (("v1", crd.contrast.memory_student), ("v2", crd.contrast.memory_teacher)):
        assert_close(memory, archive[f"out_{step}_memory_{key}"], CRD, f"memory {key} of {step}")


WITH_STATE = {"vid": check_vid, "kdsvd": check_kdsvd}


def check_losses(arrays: dict[str, np.ndarray]) -> None:
    """Everything in a losses.npz: values and gradients of every loss named there."""
    archive = Archive(arrays)
    names = archive.names(r"in_(.+)_s0")
    assert names, "the file names no loss"
    for name in names:
        if name in WITH_STATE:
            WITH_STATE[name](archive)
        else:
            check_loss(name, archive)
    if archive.names(r"in_(crd\d+)_idx"):
        check_crd(archive)
    archive.finish()


def adaptor(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> nn.Module:
    """The adaptor of a name that turns these shapes into those."""
    given, wanted = [tuple(x.shape[1:]) for x in inputs], [tuple(x.shape[1:]) for x in outputs]
    if name.startswith("convreg"):
        return ConvReg(given[0], wanted[0])
    if name.startswith("linear_embed"):
        return LinearEmbed(inputs[0][0].numel(), wanted[0][0])
    if name.startswith("embed"):
        return Embed(inputs[0][0].numel(), wanted[0][0])
    if name.startswith("translator"):
        return Translator(given[0][0], 2 * wanted[0][0])
    if name.startswith("paraphraser"):
        return Paraphraser(given[0][0])
    if name.startswith("connector"):
        return Connector(given, wanted)
    raise AssertionError(f"{name} is no adaptor")


def check_adaptors(arrays: dict[str, np.ndarray]) -> None:
    """Everything in an adaptors.npz: outputs in eval mode and numbers of parameters."""
    archive = Archive(arrays)
    seed = int(archive["hp_seed"])
    names = archive.names(r"out_(.+)_\d+")
    assert names, "the file names no adaptor"
    for name in names:
        several = archive.names(rf"in_({name}_\d+)")
        inputs = [archive[f"in_{name}_{i}"] for i in range(len(several))] if several else [archive[f"in_{name}"]]
        outputs = [archive[f"out_{name}_{i}"] for i in range(len(archive.names(rf"(out_{re.escape(name)}_\d+)")))]
        module = fill(adaptor(name, inputs, outputs), seed).eval()
        with torch.no_grad():
            found = module(inputs) if several else module(inputs[0])
        found = [found] if isinstance(found, Tensor) else found
        assert len(found) == len(outputs), f"{name}: {len(found)} outputs, reference {len(outputs)}"
        for i, (ours, reference) in enumerate(zip(found, outputs)):
            assert_close(ours, reference, ADAPTOR, f"output {i} of {name}")
        if f"hp_{name}_params" in arrays:
            parameters = sum(p.numel() for p in module.parameters())
            assert parameters == int(archive[f"hp_{name}_params"]), f"{name}: {parameters} parameters"
    archive.finish()
