"""What the oracle files of image-to-image GANs hold, kind by kind; projects list these checks in their own tests.

All arithmetic is float64 unless said otherwise; tolerances are those of the files' manifest.
"""

import random
import zlib

from common.gan import complexity, data, frechet, objectives
from common.gan.discriminators import PatchDiscriminator, PixelDiscriminator, SharedDiscriminator
from common.gan.generators import ResnetGenerator, UnetGenerator, build_generator
from common.gan.inception import FIDInception
from common.gan.perceptual import VGGFeatures, feature_loss, gram, style_loss
from common.gan.pool import ImagePool
from common.gan.schedule import blocks, linear_factor, step_factor
from common.gan.settings import Optim, Teaching
from common.gan.teachers import CycleTeacher, PairTeacher

import numpy as np
import torch
from PIL import Image
from torch import nn

Arrays = dict[str, np.ndarray]


def near(found, expected, rtol: float = 1e-6, atol: float = 1e-6, what: str = "") -> None:
    """|difference| <= rtol·|expected| + atol·max|expected|, shapes equal."""
    found = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found, dtype=np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    allowed = rtol * np.abs(expected) + atol * np.abs(expected).max(initial=0)
    excess = np.abs(found - expected) - allowed
    assert (excess <= 0).all(), (
        f"{what}: off by {np.abs(found - expected).max():.3g}, allowed {allowed.flat[excess.argmax()]:.3g}"
    )


def tensor(arrays: Arrays, name: str, grad: bool = False) -> torch.Tensor:
    return torch.from_numpy(arrays[name]).double().requires_grad_(grad)


def with_weights(network: nn.Module, arrays: Arrays, prefix: str = "param_") -> nn.Module:
    """The network in float64 with the file's parameters and buffers, all of them and no others."""
    given = {k.removeprefix(prefix): torch.from_numpy(np.asarray(v)) for k, v in arrays.items() if k.startswith(prefix)}
    own = network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    assert own.keys() - counters <= given.keys() <= own.keys(), sorted(own.keys() ^ given.keys())[:5]
    network = network.double()
    network.load_state_dict(own | given)
    return network


def watch(network: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Outputs of named modules, filled in by the next forward."""
    seen: dict[str, torch.Tensor] = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
    return seen


def check_gan_loss(arrays: Arrays) -> None:
    modes = {key.split("_")[1] for key in arrays if key.endswith("_d_total")}
    assert modes == set(objectives.MODES)
    for mode in modes:
        real, fake = tensor(arrays, "in_pred_real", True), tensor(arrays, "in_pred_fake", True)
        forms = {
            "d_real": (objectives.real_loss(mode, real), real),
            "d_fake": (objectives.fake_loss(mode, fake), fake),
            "g": (objectives.generator_loss(mode, fake), fake),
        }
        for name, (loss, given) in forms.items():
            near(loss, arrays[f"out_{mode}_{name}"], what=f"{mode} {name}")
            near(torch.autograd.grad(loss, given)[0], arrays[f"grad_{mode}_{name}"], what=f"{mode} {name} gradient")
        near((forms["d_real"][0] + forms["d_fake"][0]) / 2, arrays[f"out_{mode}_d_total"], what=f"{mode} total")


def check_generator(arrays: Arrays) -> None:
    """Any of the generators: which one is told by its parameters' names."""
    width, keys = int(arrays["hp_ngf"]), {key.removeprefix("param_") for key in arrays}
    norm = "batch" if any("running_mean" in key for key in keys) else "instance"
    if any(key.startswith("model.model.") for key in keys):
        network = UnetGenerator(width, norm)
    else:
        network = ResnetGenerator(width, norm, separable="model.10.conv_block.1.conv.0.weight" in keys)
    network = with_weights(network, arrays).train(bool(arrays["hp_train_mode"]))
    x = tensor(arrays, "in_x", grad=True)
    seen = watch(network, [key.removeprefix("out_act_") for key in arrays if key.startswith("out_act_")])
    y = network(x)
    loss = (y * tensor(arrays, "in_cotangent")).sum() if "in_cotangent" in arrays else y.sum()
    loss.backward()
    expected = dict(arrays)
    if "hp_sub" in arrays:
        step = int(arrays["hp_sub"])
        near(y[..., ::step, ::step], arrays["out_y_sub"], what="y")
        near(x.grad[..., ::step, ::step], arrays["grad_x_sub"], what="grad x")
        near(y.mean(), arrays["out_y_mean"], what="mean")
        near(y.std(), arrays["out_y_std"], what="std")
    else:
        near(y, arrays["out_y"], what="y")
        near(x.grad, arrays["grad_x"], what="grad x")
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    for key, value in expected.items():
        if key.startswith("grad_param_"):
            near(parameters[key.removeprefix("grad_param_")].grad, value, what=key)
        elif key.startswith("out_buffer_"):
            near(buffers[key.removeprefix("out_buffer_")], value, what=key)
        elif key.startswith("out_act_"):
            near(seen[key.removeprefix("out_act_")], value, what=key)


def check_discriminators(arrays: Arrays) -> None:
    tags = [key.removeprefix("hp_") for key in arrays if key.startswith("hp_")]
    assert tags
    for tag in tags:
        channels, width, layers = map(int, arrays[f"hp_{tag}"])
        norm = "batch" if tag.endswith("bn") else "instance"
        if tag.startswith("px"):
            network = PixelDiscriminator(channels, width, norm)
        else:
            network = PatchDiscriminator(channels, width, norm, layers)
        network = with_weights(network, arrays, f"param_{tag}.").train()
        names = [k for k in arrays if k.startswith("out_act_") and k.endswith(f"_{tag}")]
        modules = {key: key.removeprefix("out_act_").removesuffix(f"_{tag}") for key in names}
        seen = watch(network, list(modules.values()))
        x = tensor(arrays, f"in_x_{tag}", grad=True)
        y = network(x)
        y.square().mean().backward()
        near(y, arrays[f"out_y_{tag}"], what=f"{tag} y")
        near(x.grad, arrays[f"grad_x_{tag}"], what=f"{tag} grad x")
        for key, module in modules.items():
            near(seen[module], arrays[key], what=key)
            if module == f"model.{3 * layers + 1}":
                near(
                    network.hidden(x),
                    arrays[key] if norm == "instance" else seen[module].detach(),
                    what=f"{key} hidden",
                )


def check_discriminator_multi_n_layers(arrays: Arrays) -> None:
    x, cases = tensor(arrays, "in_x"), [key for key in arrays if key.startswith("out_y_")]
    assert cases
    width = arrays["param_block1s.0.block.0.weight"].shape[0]
    for key in cases:
        shared, teacher = (int("".join(filter(str.isdigit, part))) for part in key.split("_")[2:4])
        network = with_weights(SharedDiscriminator(x.shape[1], width, "instance", shared), arrays)
        near(network(x, teacher), arrays[key], what=key)


def check_perceptual(arrays: Arrays) -> None:
    divide = 64 // arrays["param_vgg.to_relu_1_2.0.weight"].shape[0]
    vgg = with_weights(VGGFeatures(divide), arrays, "param_vgg.")
    student, teacher = tensor(arrays, "in_student", grad=True), tensor(arrays, "in_teacher")
    features, target = vgg(student), vgg(teacher)
    for number, feature in enumerate(features):
        near(feature, arrays[f"out_sfeat{number}"], what=f"feature {number}")
        near(gram(feature), arrays[f"out_gram_s{number}"], what=f"Gram {number}")
    for name, loss in (("style", style_loss), ("feature", feature_loss)):
        weighted = float(arrays[f"hp_lambda_{name}"]) * loss(features, target)
        near(weighted, arrays[f"out_{name}"], what=name)
        (grad,) = torch.autograd.grad(weighted, student, retain_graph=True)
        near(grad, arrays[f"grad_student_{name}"], what=f"{name} gradient")


def check_frechet(arrays: Arrays) -> None:
    numbers = [key.removeprefix("in_a") for key in arrays if key.startswith("in_a")]
    assert numbers
    for number in numbers:
        a, b = (frechet.statistics(torch.from_numpy(arrays[f"in_{side}{number}"])) for side in "ab")
        near(frechet.frechet_distance(a, b), arrays[f"out_fd{number}"], what=f"distance {number}")
        near(a.mean, arrays[f"out_mu_a{number}"], what="mean")
        near(a.covariance, arrays[f"out_sigma_a{number}"], what="covariance")
        if f"out_fd_self{number}" in arrays:
            assert abs(frechet.frechet_distance(a, a)) <= 1e-6 * float(a.covariance.trace())
    images = frechet.to_uint8(torch.from_numpy(arrays["in_tensor"]))
    assert np.array_equal(images.numpy(), arrays["out_tensor2im"])


def check_image_pool(arrays: Arrays) -> None:
    cases = [key for key in arrays if key.startswith("out_ids_")]
    assert cases
    for key in cases:
        case = key.removeprefix("out_ids_")
        size, queries, batch, seed = map(int, arrays[f"hp_{case}_size_queries_batch_seed"])
        pool = ImagePool(size, random.Random(seed))
        offered = torch.arange(queries * batch, dtype=torch.float64).view(queries, batch, 1, 1, 1)
        found = torch.stack([pool.query(images) for images in offered]).view(queries, batch)
        assert np.array_equal(found.long().numpy(), arrays[key]), case


def check_lr_schedule(arrays: Arrays) -> None:
    for key, value in arrays.items():
        if key.startswith("out_factor_case"):
            case = key.removeprefix("out_factor_")
            constant, decay = map(int, arrays[f"hp_{case}"])
            near([linear_factor(e, constant, decay) for e in range(len(value))], value, what=key)
        elif key.startswith("out_student_blocks_"):
            settings = arrays[f"hp_student_{key.removeprefix('out_student_blocks_')}_nepochs_decay_freq_ndis"]
            near([list(block) for block in blocks(*map(int, settings))], value, what=key)
        elif key.startswith("out_factor_step"):
            interval = int(key.removeprefix("out_factor_step"))
            near([step_factor(e, interval) for e in range(len(value))], value, what=key)
        elif key.startswith("out_factor_after_last_"):
            constant, decay = map(int, arrays[f"hp_{key.removeprefix('out_factor_after_last_')}"])
            near(linear_factor(constant + decay, constant, decay), value, atol=1e-6, what=key)
        else:
            assert key.startswith("hp_"), key


def check_transforms(arrays: Arrays) -> None:
    image, (load, crop) = arrays["in_image"], map(int, arrays["hp_load_crop"])

    def same(found: torch.Tensor, expected: np.ndarray, what: str) -> None:
        assert found.shape == expected.shape, what
        assert np.abs(found.numpy() - expected).max() <= 2.001 / 255, what

    same(data.prepare(image, "resize_and_crop", load, crop), arrays["out_eval"], "eval")
    grey = np.asarray(Image.fromarray(image).convert("L"))
    same(data.prepare(grey, "resize_and_crop", load, crop), arrays["out_gray_eval"], "grey eval")
    same(data.prepare(image, "none", load, crop), arrays["out_none_multiple_of_4"], "none")
    same(data.prepare(image, "scale_width", load, crop), arrays["out_scale_width"], "scale_width")
    cases = [key for key in arrays if key.startswith("hp_crop")]
    assert cases
    for key in cases:
        x, y, flip = map(int, arrays[key])
        number = key.removeprefix("hp_crop").split("_")[0]
        found = data.prepare(image, "resize_and_crop", load, crop, data.Place(x, y, bool(flip)))
        same(found, arrays[f"out_train{number}"], key)
    (sampler,) = [key for key in arrays if key.startswith("out_get_params_seed")]
    rng = random.Random(int(sampler.removeprefix("out_get_params_seed")))
    for row in arrays[sampler].tolist():
        assert [*data.draw_place(rng.randint, rng.random, load - crop), crop, crop] == row
    for found, side in zip(data.split_pair(arrays["in_ab"]), "ab"):
        assert np.array_equal(found, arrays[f"out_{side}_half"])


def check_counts_256(arrays: Arrays) -> None:
    rows = zip(*(arrays[k] for k in ("in_arch", "in_ngf", "out_params", "out_macs_true", "out_macs_torchprofile")))
    for arch, width, params, true, papers in rows:
        name, norm = str(arch).split("|")
        with torch.device("meta"):
            network = build_generator(name, int(width), norm)
        found = complexity(network, 256)
        assert found == {"params": params, "macs": true, "papers_macs": papers}, (arch, width, found)


def rule_weights(network: nn.Module, gain: float) -> nn.Module:
    """Weights that the manifest draws from each entry's name."""
    state = network.state_dict()
    for key, value in state.items():
        draw = np.random.default_rng(zlib.crc32(key.encode()))
        if not value.is_floating_point():
            continue
        noise = draw.standard_normal(tuple(value.shape))
        if value.ndim > 1:
            noise = noise * np.sqrt(2 / value[0].numel())
        elif key.endswith("running_var"):
            noise = 0.5 + np.abs(noise)
        elif key.endswith("weight"):
            noise = gain * (1 + 0.1 * noise)
        else:
            noise = 0.1 * noise
        state[key] = torch.from_numpy(noise.astype(np.float32))
    network.load_state_dict(state)
    return network


@torch.no_grad()
def check_inception_fid(arrays: Arrays) -> None:
    network = rule_weights(FIDInception(), 1)
    assert sum(p.numel() for p in network.parameters()) == int(arrays["hp_num_params_incl_fc"])
    assert len(network.state_dict()) == int(arrays["hp_num_state_keys"])
    first, second, middle, last = network.stages(torch.from_numpy(arrays["in_x"]))
    tolerance = {"rtol": 1e-3, "atol": 1e-5}
    near(first[..., ::8, ::8], arrays["out_pool64_sub"], **tolerance, what="first pool")
    near(second[..., ::4, ::4], arrays["out_pool192_sub"], **tolerance, what="second pool")
    near(middle.mean((2, 3)), arrays["out_pre_aux_768_mean"], **tolerance, what="Mixed_6e")
    near(last, arrays["out_feat2048"], **tolerance, what="features")


def stepped(arrays: Arrays, names: list[str]) -> dict[str, nn.Module]:
    """Generators and discriminators of a file of steps, their sizes read off their weights."""
    networks = {}
    for name in names:
        first = next(v for k, v in arrays.items() if k.startswith(f"param_{name}.") and v.ndim == 4)
        if name.startswith("G"):
            network = ResnetGenerator(len(first))
        else:
            layers = sum(k.startswith(f"param_{name}.") and v.ndim == 4 for k, v in arrays.items()) - 2
            network = PatchDiscriminator(first.shape[1], len(first), layers=layers)
        networks[name] = with_weights(network, arrays, f"param_{name}.")
    return networks


def compare_stepped(arrays: Arrays, networks: dict[str, nn.Module]) -> None:
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            near(value, arrays[f"out_{name}.{key}"], what=f"{name}.{key}")


def check_cyclegan_teacher_steps(arrays: Arrays) -> None:
    networks = stepped(arrays, ["G_A", "G_B", "D_A", "D_B"])
    weights = (float(arrays[f"hp_lambda_{name}"]) for name in ("A", "B", "identity"))
    teaching = Teaching("lsgan", *weights, pool_size=int(arrays["hp_pool_size"]))
    rng = random.Random(int(arrays["hp_python_random_seed"]))
    optim = Optim(float(arrays["hp_lr"]), float(arrays["hp_beta1"]))
    teacher = CycleTeacher(networks, teaching, optim, rng=rng)
    for a, b, row in zip(arrays["in_A"], arrays["in_B"], arrays["out_losses"]):
        batch = torch.from_numpy(a).double(), torch.from_numpy(b).double(), None, 1.0
        terms = teacher.step([batch], lambda *_: None)
        names = ("G_A", "G_B", "cycle_A", "cycle_B", "identity_A", "identity_B")
        total = sum(terms[name] for name in names)
        near(torch.stack([*(terms[name] for name in names), total, terms["D_A"], terms["D_B"]]), row, what="losses")
    compare_stepped(arrays, networks)


def check_pix2pix_teacher_steps(arrays: Arrays) -> None:
    networks = stepped(arrays, ["G_T", "D"])
    mode = "vanilla" if int(arrays["hp_gan_mode_hinge0_vanilla1"]) else "hinge"
    weights = (float(arrays[f"hp_lambda_{name}"]) for name in ("gan", "recon"))
    teaching = Teaching(mode, **dict(zip(("adversarial", "reconstruction"), weights)))
    optim = Optim(float(arrays["hp_lr"]), float(arrays["hp_beta1"]))
    teacher = PairTeacher({"G": networks["G_T"], "D": networks["D"]}, teaching, optim)
    for a, b, row in zip(arrays["in_A"], arrays["in_B"], arrays["out_losses"]):
        a, b = torch.from_numpy(a).double(), torch.from_numpy(b).double()
        terms = teacher.step([(a, b, None, 1.0)], [networks["G_T"](a)], lambda *_: None)
        names = ("D_fake", "D_real", "D", "G_gan", "G_reconstruction")
        found = [*(terms[name] for name in names), terms["G_gan"] + terms["G_reconstruction"]]
        near(torch.stack(found), row, what="losses")
    compare_stepped(arrays, networks)


CHECKS = {
    "gan_loss": check_gan_loss,
    "generator": check_generator,
    "discriminators": check_discriminators,
    "discriminator_multi_n_layers": check_discriminator_multi_n_layers,
    "perceptual": check_perceptual,
    "frechet": check_frechet,
    "image_pool": check_image_pool,
    "lr_schedule": check_lr_schedule,
    "transforms": check_transforms,
    "counts_256": check_counts_256,
    "inception_fid": check_inception_fid,
    "cyclegan_teacher_steps": check_cyclegan_teacher_steps,
    "pix2pix_teacher_steps": check_pix2pix_teacher_steps,
}
