"""Oracle checks of the student's whole objective, in float64."""

import dataclasses

from common.gan.discriminators import PatchDiscriminator
from common.gan.generators import ResnetGenerator
from common.gan.perceptual import VGGFeatures
from common.gan.settings import Networks, Perceptual, Teaching
from common.tests.oracle_gan import Arrays, near, tensor, with_weights

import numpy as np
import torch

from crd.config import Config, Relations
from crd.student import Student

# The pix2pix files do not store the weights of style and feature; these are the recipe's.
STYLE, FEATURE = 1e4, 1e1


def patch_discriminator(arrays: Arrays) -> PatchDiscriminator:
    """The file's discriminator, its size read off its weights."""
    weights = [v for k, v in arrays.items() if k.startswith("param_D.") and k.endswith("weight") and v.ndim == 4]
    width, channels = weights[0].shape[:2]
    return with_weights(PatchDiscriminator(channels, width, "instance", len(weights) - 2), arrays, "param_D.")


def objective(arrays: Arrays, config: Config):
    """The student of a file with its terms, gradients by name and images, in one forward and backward."""
    generators = {}
    for name in ("G_T", "G_S"):
        width = len(arrays[f"param_{name}.model.1.weight"])
        generators[name] = with_weights(ResnetGenerator(width), arrays, f"param_{name}.")
    vgg = with_weights(VGGFeatures(64 // len(arrays["param_vgg.vgg.to_relu_1_2.0.weight"])), arrays, "param_vgg.vgg.")
    discriminator = patch_discriminator(arrays).requires_grad_(False)
    networks = Networks(teacher_width=1, student_width=1)
    student = Student(dataclasses.replace(config, networks=networks), generators["G_S"], vgg)
    source = tensor(arrays, "in_A")
    with torch.no_grad():
        answer = generators["G_T"](source)
    terms = student.terms(source, answer, discriminator)
    sum(terms.values()).backward()
    gradients = {name: p.grad for name, p in generators["G_S"].named_parameters()}
    images = {"teacher": answer, "student": generators["G_S"](source)}
    return terms, gradients, images, discriminator


def check_gradients(arrays: Arrays, prefix: str, gradients: dict[str, torch.Tensor]) -> None:
    """Conv biases before an InstanceNorm have no gradient but rounding: those are held against the largest of all."""
    wanted = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    assert wanted
    largest = max(np.abs(value).max() for value in wanted.values())
    for name, value in wanted.items():
        if name.endswith("bias") and not name.startswith("model.26."):
            assert np.abs(gradients[name].numpy() - value).max() <= 1e-5 * largest, name
        else:
            near(gradients[name], value, what=f"{prefix}{name}")


def check_images(arrays: Arrays, images: dict[str, torch.Tensor]) -> None:
    for side, image in images.items():
        if f"out_{side}_image" in arrays:
            expected = arrays[f"out_{side}_image"]
            step = image.shape[-1] // expected.shape[-1]
            near(image[..., ::step, ::step], expected, what=f"{side} image")


def check_student_step_cyclegan(arrays: Arrays) -> None:
    weight, gan = float(arrays["hp_w_relation"]), float(arrays["hp_w_gan"])
    config = Config(
        "cyclegan",
        student_gan_weight=gan,
        perceptual=Perceptual(style=float(arrays["hp_lambda_style"]), feature=float(arrays["hp_lambda_feature"])),
        relations=Relations(weight, weight, weight),
    )
    terms, gradients, images, discriminator = objective(arrays, config)
    for name in ("style", "feature", "gan"):
        near(terms[name], arrays[f"out_{name}"], what=name)
    for name in ("row", "column", "patch"):
        near(terms[name] / weight, arrays[f"out_{name}"], what=name)
    near(sum(terms.values()), arrays["out_total"], what="total")
    check_gradients(arrays, "grad_G_S.", gradients)
    check_images(arrays, images)
    has_gradient = any(parameter.grad is not None for parameter in discriminator.parameters())
    assert has_gradient == bool(arrays["out_teacher_D_has_grad"])


def check_student_step_pix2pix(arrays: Arrays) -> None:
    double, weight = float(arrays["hp_w_perceptual"]), float(arrays["hp_w_relation"])
    for variant, mode, patch in (
        ("official", "reference", "out_patch_official"),
        ("paper_relations_nogan", "per_image", "out_patch_paper"),
    ):
        config = Config(
            "pix2pix",
            student_gan_weight=0.0,
            teaching=Teaching("hinge"),
            perceptual=Perceptual(style=double * STYLE, feature=double * FEATURE),
            relations=Relations(weight, weight, weight, patch_mode=mode, batch="sum"),
        )
        terms, gradients, images, _ = objective(arrays, config)
        assert set(terms) == {"style", "feature", "row", "column", "patch"}
        for name in ("style", "feature"):
            near(terms[name] / double, arrays[f"out_{name}_unweighted2"], what=f"{variant} {name}")
        stored = {"row": "out_row", "column": "out_column", "patch": patch}
        for name, key in stored.items():
            near(terms[name] / weight, arrays[key], what=f"{variant} {name}")
        near(sum(terms.values()), arrays[f"out_total_{variant}"], what=f"{variant} total")
        check_gradients(arrays, f"grad_{variant}_G_S.", gradients)
        check_images(arrays, images)
    with_gan = dataclasses.replace(config, student_gan_weight=1.0)
    near(objective(arrays, with_gan)[0]["gan"], arrays["out_gan_conditional"], what="gan")
