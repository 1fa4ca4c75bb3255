"""Oracle checks of the distillation loss and of the student's whole objective, in float64."""

from common.gan import generator_loss
from common.gan.discriminators import PatchDiscriminator
from common.gan.generators import ResnetGenerator
from common.gan.perceptual import VGGFeatures
from common.gan.settings import Networks, Perceptual, Teaching
from common.tests.oracle_gan import Arrays, near, tensor, with_weights

import numpy as np
import torch

from dcd.config import Config, Distill
from dcd.method import DiscriminatorDistillation, tapped
from dcd.student import Student


def count(arrays: Arrays, prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in arrays if key.startswith(prefix)})


def patch_discriminator(arrays: Arrays) -> PatchDiscriminator:
    """The file's discriminator, its size read off its weights."""
    weights = [v for k, v in arrays.items() if k.startswith("param_D.") and k.endswith("weight") and v.ndim == 4]
    width, channels = weights[0].shape[:2]
    return with_weights(PatchDiscriminator(channels, width, "instance", len(weights) - 2), arrays, "param_D.")


def connectors(arrays: Arrays, train_teacher: bool) -> DiscriminatorDistillation:
    """The file's connectors, both sides."""
    sides = {}
    for side in ("netSs", "netTs"):
        number = count(arrays, f"param_{side}.")
        sides[side] = [arrays[f"param_{side}.{i}.0.weight"] for i in range(number)]
    own, target = ([weight.shape[1] for weight in sides[side]] for side in ("netSs", "netTs"))
    channels = sides["netSs"][0].shape[0]
    distiller = DiscriminatorDistillation(own, target, channels, train_teacher=train_teacher)
    given = {k: v for k, v in arrays.items() if k.startswith(("param_netSs.", "param_netTs."))}
    return with_weights(distiller, given).train()


def check_dcd_loss(arrays: Arrays) -> None:
    paired = bool(arrays["hp_variant_is_pix2pix"])
    discriminator, distiller = patch_discriminator(arrays), connectors(arrays, paired)
    official = [str(name) for name in arrays["hp_pair_order"]]
    natural = sorted(official, key=lambda name: int(name.split(".")[1]))
    weight = float(arrays["hp_lambda_CD"])
    student = {name: tensor(arrays, f"in_S_{name}", grad=True) for name in official}
    teacher = {name: tensor(arrays, f"in_T_{name}") for name in official}

    def terms(order: list[str]) -> torch.Tensor:
        return distiller([student[n] for n in order], [teacher[n] for n in order], discriminator.hidden)

    found = terms(natural)
    near(found, arrays["out_terms_natural_pairing"], what="natural terms")
    near(weight * found.sum(), arrays["out_loss_natural_pairing"], what="natural loss")
    found = terms(official)
    near(found, arrays["out_terms_official_pairing"], what="official terms")
    loss = weight * found.sum()
    near(loss, arrays["out_loss"], what="loss")
    loss.backward()
    parameters = dict(distiller.named_parameters())
    for key, value in arrays.items():
        if key.startswith("grad_S_"):
            near(student[key.removeprefix("grad_S_")].grad, value, what=key)
        elif key.startswith("grad_net"):
            near(parameters[key.removeprefix("grad_")].grad, value, what=key)
    if not paired:
        assert all(p.grad is None for p in distiller.netTs.parameters())
    for side, maps, nets in (("S", student, distiller.netSs), ("T", teacher, distiller.netTs)):
        connected = nets[0](maps[official[0]])
        near(connected, arrays[f"out_{side}_connected_0"], what=f"{side} connected")
        if f"out_D_{side}_0" in arrays:
            near(discriminator.hidden(connected), arrays[f"out_D_{side}_0"], what=f"D of {side}")


def experiment(arrays: Arrays, model: str, student_gan: str) -> Config:
    """The config that the file's numbers belong to."""
    return Config(
        model,
        networks=Networks(
            teacher_width=len(arrays["param_G_T.model.1.weight"]), student_width=len(arrays["param_G_S.model.1.weight"])
        ),
        teaching=Teaching(gan="lsgan" if model == "cyclegan" else "hinge"),
        perceptual=Perceptual(style=float(arrays["hp_lambda_style"]), feature=float(arrays["hp_lambda_feature"])),
        distill=Distill(float(arrays["hp_lambda_CD"]), pairing="sorted", student_gan=student_gan),
    )


def run_student(arrays: Arrays, model: str, student_gan: str):
    """Terms, gradients by name, images and networks of one student step of the file."""
    config = experiment(arrays, model, student_gan)
    networks, generators = config.networks, {}
    for name, width in (("G_T", networks.teacher_width), ("G_S", networks.student_width)):
        generators[name] = with_weights(ResnetGenerator(width), arrays, f"param_{name}.")
    vgg = with_weights(VGGFeatures(64 // len(arrays["param_vgg.vgg.to_relu_1_2.0.weight"])), arrays, "param_vgg.vgg.")
    discriminator = patch_discriminator(arrays)
    student = Student(config, generators["G_S"], connectors(arrays, model == "pix2pix"), vgg)
    source = tensor(arrays, "in_A")
    with torch.no_grad():
        answer = tapped(generators["G_T"], student.layers, source)
    terms = student.terms(source, answer, discriminator)
    sum(terms.values()).backward()
    gradients = {f"G_S.{name}": p.grad for name, p in generators["G_S"].named_parameters()}
    gradients |= {name: p.grad for name, p in student.distiller.named_parameters()}
    images = {"teacher": answer[0], "student": generators["G_S"](source)}
    return terms, gradients, images, generators, discriminator, config


def check_gradients(arrays: Arrays, variant: str, gradients: dict[str, torch.Tensor]) -> None:
    """Conv biases before an InstanceNorm have no gradient but rounding: those are held against the largest of all."""
    prefix = f"grad_{variant}_"
    wanted = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    assert wanted
    largest = max(np.abs(value).max() for value in wanted.values())
    for name, value in wanted.items():
        if name.startswith("G_S.") and name.endswith("bias") and "model.26" not in name:
            assert np.abs(gradients[name].numpy() - value).max() <= 1e-5 * largest, name
        else:
            near(gradients[name], value, what=f"{variant} {name}")


def check_images(arrays: Arrays, images: dict[str, torch.Tensor]) -> None:
    for side, image in images.items():
        if f"out_{side}_image_sub" in arrays:
            expected = arrays[f"out_{side}_image_sub"]
            step = image.shape[-1] // expected.shape[-1]
            near(image[..., ::step, ::step], expected, what=f"{side} image")


def check_student_step_cyclegan(arrays: Arrays) -> None:
    for variant, student_gan in (("official", "teacher_image"), ("paper", "student")):
        found = run_student(arrays, "cyclegan", student_gan)
        terms, gradients, images, generators, discriminator, config = found
        for name in ("style", "feature", "dcd"):
            near(terms[name], arrays[f"out_{name}"], what=f"{variant} {name}")
        near(terms["gan"], arrays[f"out_gan_{variant}"], what=f"{variant} gan")
        near(sum(terms.values()), arrays[f"out_total_{variant}"], what=f"{variant} total")
        check_gradients(arrays, variant, gradients)
        check_images(arrays, images)
    # The released code's leak: with its graph, the term's gradient ends up in the teacher.
    leak = generator_loss(config.teaching.gan, discriminator(generators["G_T"](tensor(arrays, "in_A"))))
    norm = torch.nn.utils.get_total_norm(torch.autograd.grad(leak, list(generators["G_T"].parameters())))
    near(norm, arrays["out_grad_norm_teacher_G_official"], what="leak")


def check_student_step_pix2pix(arrays: Arrays) -> None:
    for variant, student_gan in (("nogan", "none"), ("paper", "student")):
        terms, gradients, images, *_ = run_student(arrays, "pix2pix", student_gan)
        for name in ("style", "feature", "dcd"):
            near(terms[name], arrays[f"out_{name}"], what=f"{variant} {name}")
        if variant == "paper":
            near(terms["gan"], arrays["out_gan_conditional"], what="gan")
        near(sum(terms.values()), arrays[f"out_total_{variant}"], what=f"{variant} total")
        check_gradients(arrays, variant, gradients)
        check_images(arrays, images)
