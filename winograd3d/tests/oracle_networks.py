"""What files 09 to 12 hold: metrics, clips and pixels, and whole networks, direct and with masked Winograd layers."""

import re
import tempfile
import zlib
from pathlib import Path

from common.images import write_image
from common.metrics import accuracy

import numpy as np
import torch
from torch import Tensor, nn

from winograd3d.api import convert, merge, pack
from winograd3d.convolution import WinogradConv3d
from winograd3d.data import Clips, VideoSet
from winograd3d.lists import Video
from winograd3d.models import C3D, R3D18, build
from winograd3d.tests.oracle_archive import Archive, assert_close
from winograd3d.video import PIXELS, clip_starts, video_scores

METRICS, NARROW, FULL = 1e-5, 1e-6, 1e-3
GREY_SHARE = 2e-3  # of rounded values may be one grey level off


def names(file: Archive, pattern: str) -> list[str]:
    """First groups of the keys that match, each once."""
    found = list(dict.fromkeys(m[1] for m in map(re.compile(pattern).fullmatch, file.arrays) if m))
    assert found, f"the file holds nothing like {pattern}"
    return found


# -- 09 --------------------------------------------------------------------------------------------------------------


def check_metrics_data(arrays: dict[str, np.ndarray]) -> None:
    """Accuracies of videos and clips, clip starts, and the pixels of two normalisations."""
    file = Archive(arrays)
    logits, labels = file["in_logits"], file["in_labels"]
    assert_close(video_scores(logits), file["out_video_prob"], METRICS, "video probabilities")
    for average in ("prob", "logit"):
        hits = accuracy(video_scores(logits, average), labels, (1, 5))
        for k in (1, 5):
            share = (hits[f"top{min(k, logits.shape[-1])}"] / len(labels)).double()
            assert_close(share, file[f"out_top{k}_{average}"], METRICS, f"top-{k} by {average}")
    hits = accuracy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]), (1,))["top1"]
    assert_close((hits / logits[..., 0].numel()).double(), file["out_clip_top1"], METRICS, "clip top-1")
    length, count = int(file["hp_clip_len"]), int(file["hp_num_clips"])
    for frames in names(file, r"out_clips_(\d+)"):
        assert torch.equal(clip_starts(int(frames), length, count), file[f"out_clips_{frames}"]), f"{frames} frames"
    video = file["in_video"]
    for name, key in (("c3d_bgr", "out_c3d_bgr"), ("kinetics", "out_kinetics_rgb")):
        clip, expected = evaluation_clip(video, name), file[key]
        if not PIXELS[name].rounded:
            assert_close(clip.double(), expected, METRICS, f"pixels of {name}")
            continue
        std = torch.tensor(PIXELS[name].std, dtype=torch.float64)[:, None, None, None]
        levels = (clip.double() - expected) * std
        off = levels.abs() > METRICS * 255
        assert clip.shape == expected.shape and levels.abs().max() < 1 + METRICS * 255, f"{name}: off by grey levels"
        assert off.double().mean() <= GREY_SHARE, f"{name}: {off.double().mean():.2%} of the values differ"
    file.finish()


def evaluation_clip(frames: Tensor, normalisation: str) -> Tensor:
    """The centre clip of uint8 frames [T, H, W, 3] as an evaluation reads it from a folder, every 7th pixel."""
    settings = Clips(clip_length=len(frames), normalisation=normalisation)
    with tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(frames.numpy(), 1):
            write_image(Path(folder) / f"img_{number:05d}.png", frame)
        clips, _ = VideoSet([Video(Path(folder), 0)], ["one"], settings, 0, train=False).fetch(torch.arange(1), 0)
    return clips[0, :, :, ::7, ::7]


# -- 10 --------------------------------------------------------------------------------------------------------------


def fill(network: nn.Module) -> nn.Module:
    """Give every parameter and buffer the values that the weight rule derives from its name."""
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(value.shape), np.float32)
        if key.endswith("running_mean"):
            z = 0.1 * z
        elif key.endswith("running_var"):
            z = 0.5 * np.abs(z) + 0.75
        elif value.ndim > 1:
            z = z * np.sqrt(2 / np.prod(value.shape[1:]))
        else:
            z = 1 + 0.1 * z if key.endswith("weight") else 0.05 * z
        value.copy_(torch.from_numpy(np.asarray(z, np.float32)))
    return network


@torch.no_grad()
def check_networks_full(arrays: dict[str, np.ndarray]) -> None:
    """Logits of both networks in full size, and mean and deviation of every convolution's output in module order."""
    file = Archive(arrays)
    rng = np.random.default_rng(int(file["hp_seed_x"]))
    x = torch.from_numpy(rng.standard_normal((1, 3, 16, 112, 112), np.float32))
    head = file["in_x_head"]
    assert torch.equal(x.flatten()[: len(head)].double(), head), "the input is not the reference's"
    for name in names(file, r"out_(.+)_logits"):
        with torch.device("meta"):  # every value is given below; drawing them first takes longer than the check
            network = build(name, int(file[f"hp_{name}_num_classes"]))
        network = fill(network.to_empty(device="cpu")).eval()
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
        found: dict[nn.Module, Tensor] = {}
        note = lambda module, _, y, found=found: found.update({module: torch.stack([y.mean(), y.std()])})
        for module in convolutions:
            module.register_forward_hook(note)
        assert_close(network(x), file[f"out_{name}_logits"], FULL, f"{name}: logits")
        expected = file[f"out_{name}_conv_mean_std"]
        statistics = torch.stack([found[module] for module in convolutions]).double()
        error = ((statistics - expected).abs() / expected[:, 1:]).max().item()  # relative to each layer's deviation
        assert statistics.shape == expected.shape and error <= FULL, f"{name}: statistics off by {error:.1e}"
    file.finish()


# -- 11, 12 ----------------------------------------------------------------------------------------------------------


def parameters(file: Archive) -> dict[str, Tensor]:
    return {key[len("param_") :]: file[key] for key in file.arrays if key.startswith("param_")}


def load(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """All parameters in float64, evaluation mode."""
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing), (missing, unexpected)
    network.double().load_state_dict(state, strict=False)  # again, unrounded
    return network.eval()


@torch.no_grad()
def check_c3d_narrow(arrays: dict[str, np.ndarray]) -> None:
    """A narrow C3D: direct, with masked Winograd layers, and the same packed."""
    file = Archive(arrays)
    x, state, widths = file["in_x"], parameters(file), file.ints("hp_widths")
    classes, hidden = state["fc8.weight"].shape
    network = lambda: load(C3D(classes, widths, hidden, tuple(x.shape[2:]), x.shape[1]), state)
    assert_close(network()(x), file["out_logits_direct"], NARROW, "direct")
    tiles = {layer: file.ints(f"hp_tile_{layer}") for layer in names(file, r"hp_tile_(.+)")}
    for arm in names(file, r"out_logits_((?!direct).+)"):
        masked = network()
        for layer, tile in tiles.items():
            mask = file[f"in_mask_{arm}_{layer}"].bool()
            granularity = "position" if mask.ndim == 1 else "channel"
            options = {"tile": tile, "mode": "vanilla", "granularity": granularity}
            converted = WinogradConv3d.from_conv(masked.get_submodule(layer), **options)
            converted.set_mask(mask)
            masked.set_submodule(layer, converted)
        expected = file[f"out_logits_{arm}"]
        assert_close(masked(x), expected, NARROW, arm)
        assert_close(pack(masked)(x), expected, NARROW, f"{arm}, packed")
    file.finish()


@torch.no_grad()
def check_r3d_narrow(arrays: dict[str, np.ndarray]) -> None:
    """A narrow R3D-18 in evaluation mode, direct and converted without removing anything."""
    file = Archive(arrays)
    x, state, width = file["in_x"], parameters(file), int(file["hp_base_width"])
    network = load(R3D18(len(state["fc.bias"]), width, x.shape[1]), state)
    assert_close(network(x), file["out_logits"], NARROW, "direct")
    convert(network, mode="vanilla")
    assert_close(pack(merge(network))(x), file["out_logits"], NARROW, "merged, BN folded, packed")
    file.finish()
