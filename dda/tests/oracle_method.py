"""Checks of the oracle files about prior, routing, losses, slimmable layers and schedule."""

import numpy as np
import torch

from dda.method import losses, routing, schedule
from dda.method import prior as priors
from dda.method.slimmable import SlimConv2d, columns
from dda.method.tiles import cut, offsets


def tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a tensor of its own memory."""
    return torch.from_numpy(np.array(array))


def rgb(array: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] of BGR as RGB [1, 3, H, W]."""
    return tensor(array[..., ::-1]).permute(2, 0, 1)[None].contiguous()


def close(got, expected, relative: float = 0.0, absolute: float = 0.0) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64).cpu().reshape(-1),
        torch.as_tensor(np.array(expected), dtype=torch.float64).reshape(-1),
        rtol=relative,
        atol=absolute,
    )


def check_prior(file: dict[str, np.ndarray]) -> None:
    assert file["hp_d0"] == priors.D0 and np.isclose(file["hp_mean_weight"], 0.3)
    for i in range(int(file["hp_count"])):
        tiles = rgb(file[f"in_bgr_{i}"])
        negated = (0 - tiles).flip(1)
        close(priors.colourfulness(tiles), file[f"out_color_float_{i}"], 1e-5)
        close(priors.colourfulness(tiles, wrap=True), file[f"out_color_official_{i}"], 1e-5)
        close(priors.colourfulness(negated, wrap=True), file[f"out_color_testpath_{i}"], 1e-5)
        close(priors.frequency(tiles), file[f"out_freq_{i}"], 1e-6)
        close(priors.frequency(negated), file[f"out_freq_testpath_{i}"], 1e-6)
        modes = {"paper": "float", "official_train": "official", "official_test": "testpath"}
        for mode, name in modes.items():
            close(priors.moire_prior(tiles, mode), file[f"out_score_{name}_{i}"], 1e-5)
        if f"out_gray_{i}" in file:
            grey = priors.grey(tiles)
            assert np.array_equal(grey[0].numpy(), file[f"out_gray_{i}"])
            close(priors.high_pass_mask(*grey.shape[1:]), file[f"out_hpf_{i}"], absolute=1e-6)
            difference = np.abs(priors.high_pass(grey)[0].numpy() - file[f"out_highpass_{i}"].astype(float))
            assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
        if f"out_resized256_{i}" in file:
            resized = priors.resize_linear(tiles, (256, 256))[0].permute(1, 2, 0).numpy()
            assert np.array_equal(resized[..., ::-1], file[f"out_resized256_{i}"])


def check_routing(file: dict[str, np.ndarray]) -> None:
    for name in (key.removeprefix("in_base_rgb_") for key in file if key.startswith("in_base_rgb_")):
        repeat = int(file[f"hp_repeat_{name}"])
        image = tensor(file[f"in_base_rgb_{name}"]).permute(2, 0, 1)
        image = image.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        size = int(file[f"out_patch_h_{name}"]), int(file[f"out_patch_w_{name}"])
        rows, wide = (offsets(length, tile) for length, tile in zip(image.shape[1:], size))
        assert rows == file[f"out_h_offsets_{name}"].tolist() and wide == file[f"out_w_offsets_{name}"].tolist()
        tiles = cut(image, rows, wide, *size)
        test, true = priors.moire_prior(tiles, "official_test"), priors.moire_prior(tiles)
        close(test, file[f"out_scores_official_{name}"], 1e-4)
        close(true, file[f"out_scores_float_{name}"], 1e-4)
        assert routing.released(test).tolist() == file[f"out_width_index_official_{name}"].tolist()
        assert routing.by_rank(true).tolist() == file[f"out_width_index_intended_{name}"].tolist()
        assert true.argsort(stable=True).tolist() == file[f"out_argsort_float_{name}"].tolist()
    for key in (key for key in file if key.startswith("in_rankscores_")):
        name, scores = key.removeprefix("in_rankscores_"), tensor(file[key])
        assert routing.released(scores).tolist() == file[f"out_rank_official_{name}"].tolist()
        assert routing.by_rank(scores).tolist() == file[f"out_rank_intended_{name}"].tolist()
    classes = routing.class_membership(tensor(file["in_train_scores_fhdmi"]))
    assert np.array_equal(classes.numpy(), file["out_train_class_fhdmi"].astype(bool))
    scores = tensor(file["in_train_scores_aim"])
    assert np.array_equal(routing.ranks(scores).numpy(), file["out_train_rank_aim"])
    classes = routing.class_membership(scores)
    assert np.array_equal(classes.numpy(), file["out_train_class_aim_intended"].astype(bool))
    for key in (key for key in file if key.startswith("hp_grid_")):
        height, width, tile_h, tile_w, threshold = file[key].tolist()
        number = key.removeprefix("hp_grid_")
        assert offsets(height, tile_h, threshold=threshold) == file[f"out_grid_h_{number}"].tolist()
        assert offsets(width, tile_w, threshold=threshold) == file[f"out_grid_w_{number}"].tolist()


def check_losses(file: dict[str, np.ndarray]) -> None:
    target, weight = tensor(file["in_target"]), float(file["hp_lambda"])
    functions = {
        "l1": losses.l1,
        "asl": losses.asl,
        "sobel": losses.sobel_l1,
        "l2": losses.l2,
        "charbonnier": losses.charbonnier,
        "combined": lambda x, y: sum(losses.multi_scale([x], y, weight).values()),
    }
    for name, function in functions.items():
        output = tensor(file["in_pred"]).requires_grad_()
        loss = function(output, target)
        loss.backward()
        close(loss.detach(), file[f"out_{name}"], 1e-5)
        close(output.grad, file[f"grad_{name}"], 1e-5, 1e-6)


def layers(file: dict[str, np.ndarray]) -> dict[str, tuple[torch.nn.Module, tuple]]:
    """Each layer of the file and the segments of what it is fed with."""
    made = {}
    for name in (key.split("_")[1] for key in file if key.endswith("_weight") and key.startswith("param_")):
        weight = file[f"param_{name}_weight"]
        out, into, k = weight.shape[:3]
        fed = ((into, True),)
        if name == "deconv":
            layer, fed = torch.nn.ConvTranspose2d(out, into, k, 2, 1), ((out, False),)
        elif name == "plain":
            layer = SlimConv2d(into, out, k, padding=1)
        elif name == "infull":
            layer, fed = SlimConv2d(into, out, k, 2, 1, slim=(False, True)), ((into, False),)
        elif name == "outfull":
            layer = SlimConv2d(into, out, k, padding=2, dilation=2, slim=(True, False))
        elif name == "cat":
            fed = ((into // 3, True), (into - into // 3, True))
            layer = SlimConv2d(into, out, k, padding=1, segments=fed)
        elif name == "catrgbfirst":
            fed = ((3, False), (into - 3, True))
            layer = SlimConv2d(into, out, k, segments=fed)
        else:
            assert name == "catrgblast", name
            fed = ((into - 3, True), (3, False))
            layer = SlimConv2d(into, out, k, segments=((3, False), (into - 3, True)))
        made[name] = layer, fed
    return made


def check_slimmable_layers(file: dict[str, np.ndarray]) -> None:
    for name, (layer, fed) in layers(file).items():
        layer.weight.data, layer.bias.data = (tensor(file[f"param_{name}_{kind}"]) for kind in ("weight", "bias"))
        for width in file["hp_widths"]:
            key = f"{name}_w{round(100 * float(width)):03d}"
            given = tensor(file[f"in_{name}"])
            x = torch.cat([given[:, s : s + n] for s, n in columns(fed, float(width))], 1).requires_grad_()
            layer.zero_grad()
            y = layer(x) if name == "deconv" else layer(x, float(width))
            y.square().sum().backward()
            close(y.detach(), file[f"out_{key}"], 1e-4, 1e-5)
            close(layer.weight.grad, file[f"grad_{key}_weight"], 1e-4, 1e-4)
            close(layer.bias.grad, file[f"grad_{key}_bias"], 1e-4, 1e-4)
            close(x.grad, file[f"grad_{key}_in"], 1e-4, 1e-4)
            if name != "deconv":
                close(layer.slice(float(width))(x).detach(), file[f"out_{key}"], 1e-4, 1e-5)


def check_schedule(file: dict[str, np.ndarray]) -> None:
    scores = file["in_psnr"].astype(np.float64).tolist()
    for rule in ("official", "intended"):
        rate, stop, rates = 1e-4, -1, []
        for epoch in range(len(scores)):
            if stop < 0:
                rate = schedule.plateau(rate, scores[: epoch + 1], rule)
                stop = epoch if rate < schedule.LOWEST_RATE else -1
            rates.append(rate * float(file["hp_lr_scale"]))
        close(rates, file[f"out_lr_{rule}"], 1e-6)
        assert stop == int(file[f"out_stop_{rule}"])
    rates = [schedule.multistep(epoch) for epoch in range(len(file["out_multistep_lr"]))]
    close(rates, file["out_multistep_lr"], 1e-6)
    cycle = file["out_width_cycle"].tolist()
    assert [schedule.width_of_step(step) for step in range(len(cycle))] == cycle


CHECKS = {
    "prior": check_prior,
    "routing": check_routing,
    "losses": check_losses,
    "slimmable_layers": check_slimmable_layers,
    "schedule": check_schedule,
}
