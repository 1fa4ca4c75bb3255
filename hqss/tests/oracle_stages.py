"""The losses of both stages, schedule and replay buffer, against the release's numbers."""

import random
import re

from common.gan.pool import ImagePool

import numpy as np
import torch

from hqss import method
from hqss.method import Weights, discriminator_terms, generator_terms, removal_terms, remove
from hqss.tests.oracle_networks import Arrays, build, close, tensor

TERMS = {
    "S1_rec": "self_shadow",
    "NS1_rec": "self_lit",
    "ffl_1": "self_frequency_shadow",
    "ffl_5": "self_frequency_lit",
    "GAN_netD_S_1": "adversarial_shadow",
    "GAN_netD_NS_1": "adversarial_lit",
    "cycle_fake_S1_NS1_rec": "cycle_lit",
    "cycle_fake_NS1_S1_rec": "cycle_shadow",
    "ffl_cycle_1": "cycle_frequency_lit",
    "ffl_cycle_2": "cycle_frequency_shadow",
    "ffl_cycle_feat_1": "cycle_feature_shadow",
    "ffl_cycle_feat_2": "cycle_feature_lit",
}
CRITIC_TERMS = {"D_S_real_1": "real_shadow", "fake_D_S_1": "fake_shadow", "D_NS_real_1": "real_lit"} | {
    "fake_D_NS_1": "fake_lit"
}


def check_gradients(network, prefix: str, arrays: Arrays) -> None:
    parameters = dict(network.named_parameters())
    norms = {key: value for key, value in arrays.items() if key.startswith(f"grad_norm_{prefix}.")}
    if norms:
        found = {key: parameters[key.removeprefix(f"grad_norm_{prefix}.")].grad.norm() for key in norms}
        atol = 1e-3 * max(map(float, norms.values()))
        assert len(norms) == len(parameters)
        for key, value in norms.items():
            close(found[key], value, 5e-3, key, atol)
    full = {key: value for key, value in arrays.items() if key.startswith(f"grad_{prefix}.")}
    assert full, prefix
    for key, value in full.items():
        close(parameters[key.removeprefix(f"grad_{prefix}.")].grad, value, 5e-3, key)


def check_stage1_losses(arrays: Arrays) -> None:
    encoder, generator = build("Encoder", arrays), build("Decoder", arrays)
    critics = build("Discriminator", arrays, "D_S"), build("Discriminator", arrays, "D_NS")
    shadow, lit, m_s, m_n = (tensor(arrays[f"in_{name}"]) for name in ("S1", "NS1", "M_S1", "M_NS1"))
    terms, made, cycle = generator_terms(encoder, generator, critics, shadow, lit, m_s, m_n, Weights())
    for name, own in TERMS.items():
        close(terms[own], arrays[f"out_loss_{name}"], 1e-4, name, 1e-6)
    close(terms["colour_shadow"] + terms["colour_lit"], arrays["out_loss_lab"], 1e-4, "colour", 1e-6)
    total = sum(terms.values())
    close(total, arrays["out_loss_G"], 1e-4, "total", 1e-6)
    images = {"S1_rec": made.shadow, "NS1_rec": made.lit, "fake_S1_NS1": made.pseudo_shadow}
    images |= {"fake_NS1_S1": made.pseudo_lit, "cycle_fake_S1_NS1": cycle["lit"], "cycle_fake_NS1_S1": cycle["shadow"]}
    for name, image in images.items():
        close(image, arrays[f"out_{name}"], 1e-4, name, 1e-6)
    total.backward()
    check_gradients(encoder, "netEn_sf", arrays)
    check_gradients(generator, "netG_A2B", arrays)
    assert all(p.grad is None for critic in critics for p in critic.parameters())

    # Both buffers are empty, so that they hand the fakes back.
    fakes = (ImagePool(200).query(made.pseudo_shadow), ImagePool(200).query(made.pseudo_lit))
    terms = discriminator_terms(critics, (shadow, lit), fakes)
    for name, own in CRITIC_TERMS.items():
        close(terms[own], arrays[f"out_loss_{name}"], 1e-4, name, 1e-6)
    total = sum(terms.values())
    close(total, arrays["out_loss_D"], 1e-4, "discriminators", 1e-6)
    total.backward()
    for critic, name in zip(critics, ("netD_S", "netD_NS")):
        check_gradients(critic, name, arrays)


def check_stage2_losses(arrays: Arrays) -> None:
    encoder, generator = build("Encoder", arrays), build("Decoder", arrays)
    names = ("S", "NS", "M_NS", "M_NS_dil", "real_NS_nsrs", "real_ns")
    shadow, lit, mask, dilated, rest, image = (tensor(arrays[f"in_{name}"]) for name in names)
    with torch.no_grad():
        pseudo = method.pseudo_shadow(encoder, generator, shadow, lit, mask)
    close(pseudo, arrays["out_pseudo"], 0, "pseudo shadow", 5e-4)
    for clear in (0, 1):
        coarse, refine = build("S2F", arrays), build("F2S", arrays)
        first, second = remove(coarse, refine, pseudo, rest, mask, clear=bool(clear))
        close(first, arrays["out_G1"], 0, "G1", 5e-4)
        if not clear:
            close(second, arrays["out_G2"], 0, "G2", 5e-4)
        terms = removal_terms(first, second, lit, image, dilated)
        for name, own in {"cycle": "coarse", "sr": "refined", "dia": "border"}.items():
            close(terms[own], arrays[f"out_loss_{name}_clear{clear}"], 1e-4, f"{name}, clear {clear}")
        sum(terms.values()).backward()
        for number, network in ((1, coarse), (2, refine)):
            norms = torch.stack([p.grad.norm() for p in network.parameters()])
            close(norms, arrays[f"grad_norms_netG_{number}_clear{clear}"], 1e-3, f"gradients of G{number}")
            found = network.conv15_b[1].weight.grad
            close(found, arrays[f"grad_netG_{number}.conv15_b.1.weight_clear{clear}"], 1e-2, f"last layer of G{number}")


def check_schedule_replay(arrays: Arrays) -> None:
    schedules = [key for key in arrays if key.startswith("out_factor_")]
    assert schedules
    for key in schedules:
        epochs, offset, decay = map(int, re.findall(r"\d+", key))
        found = [method.rate_factor(e + offset, epochs, decay) for e in range(len(arrays[key]))]
        close(found, arrays[key], 0, key, 1e-6)
    pool = ImagePool(int(arrays["hp_buffer"]), random.Random(int(arrays["hp_py_seed"])))
    popped = [float(pool.query(torch.tensor(float(value)).view(1, 1, 1, 1))) for value in arrays["in_pushed"]]
    assert np.array_equal(np.float32(popped), arrays["out_popped"])
