"""Using generators of a run or of a release: loading, what they cost, gallery, translating files, export.

`load(path, config, role)` of the command bodies is the project's: it returns a generator in evaluation mode.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from common import checkpoint, config, distributed
from common.errors import InputError
from common.gan.complexity import complexity
from common.gan.data import TwoDomains, listing
from common.gan.evaluation import generated
from common.gan.export import onnx_difference, require_onnx, to_onnx
from common.gan.frechet import to_uint8
from common.gan.generators import build_generator
from common.gan.networks import generator_of
from common.gan.settings import Networks
from common.gan.translate import latency, translate, write_gallery
from common.images import read_image, write_image
from common.weights import fit_weights, read_weights

import torch
from torch import Tensor, nn

ROLES = {"student": "model", "teacher": "teacher"}
"""where a checkpoint of ours has the generator"""
TOLERANCE = 1e-3
"""largest difference of exported images, of values in [-1, 1]; an eighth of a grey level"""
ConfigT = TypeVar("ConfigT")
Load = Callable[[str, str | None, str], nn.Module]
More = Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""from a source and the images of its row to further pictures by their name, all [1, 3, H, W] in [-1, 1]"""


def experiment(
    config_class: type[ConfigT], project: str, config_path: str | None, path: str | None
) -> tuple[ConfigT, dict]:
    """The config, and the content of a checkpoint of the project's ({} for a released file, which needs config_path).

    Errors: InputError, CheckpointError.
    """
    if config_path:
        return config.load(config_class, config_path), {}
    own = checkpoint.load_own(path, project, hint="a released generator needs --config as well")
    return config.from_dict(config_class, own["config"]), own


def latencies(generator: nn.Module, size: int, threads: Sequence[int], compiled: bool) -> dict[str, float]:
    """Median and interquartile range of an image's seconds as metrics, for every number of threads and variant."""
    found = {}
    for row in latency(generator, size, threads=threads, compiled=compiled) if threads else []:
        place = f"{row['variant']}_{row['threads']}_threads".replace(" ", "_")
        found |= {f"latency_{place}": row["median"], f"latency_{place}_iqr": row["iqr"]}
    return found


def load_generators(networks: Networks, path: str, role: str, own: bool) -> dict[str, nn.Module]:
    """The generators that a file holds: both in a checkpoint of ours, the one asked for in a released one.

    Errors: CheckpointError for a file of another width or architecture.
    """
    found = {}
    for name in ROLES if own else (role,):
        width = networks.student_width if name == "student" else networks.teacher_width
        found[name] = generator_of(networks, width)
        fit_weights(found[name], read_weights(path, ROLES[name] if own else None), path)
        found[name].eval()
    return found


def costs(networks: Networks, generator: nn.Module) -> dict[str, float]:
    """Parameters and multiply-adds at 256x256, and how many times less than the field's original of width 64."""
    with torch.device("meta"):
        kind = "unet_256" if networks.generator == "unet_256" else "resnet_9blocks"
        original = complexity(build_generator(kind, 64, networks.norm))
    found = complexity(generator)
    return found | {f"{name}_ratio": original[name] / found[name] for name in ("params", "macs", "papers_macs")}


def gallery(
    folder: Path, generators: dict[str, nn.Module], test: TwoDomains, device: torch.device, more: More | None = None
) -> None:
    """FOLDER/index.html with a row for each test image: source, real, each generator's image, and what `more` adds."""
    rows = []
    for i in range(len(test)):
        source, target = test.fetch(torch.tensor([i]), 0)
        images = {"source": source, "real": target}
        images |= {name: next(generated(g.to(device), [source], device)) for name, g in generators.items()}
        images |= more(source.to(device), images) if more else {}
        rows.append({name: f"images/{i:05d}_{name}.png" for name in images})
        for name, image in images.items():
            write_image(folder / rows[-1][name], to_uint8(image)[0].cpu().numpy())
    write_gallery(folder / "index.html", f"Source, real, {', '.join(generators)}", rows)


def predict(argv: list[str], description: str, load: Load) -> list[Path]:
    """The command line of a project's predict.py; returns the paths of the results. Errors: InputError."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="images or folders")
    parser.add_argument("--weights", required=True, help="checkpoint of a run, or a released generator")
    parser.add_argument("--config", help="the experiment of a released generator")
    parser.add_argument("--role", choices=ROLES, default="student", help="generator of the checkpoint")
    parser.add_argument("--out", default="predictions", help="folder of the results (default: predictions)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_args(argv)
    paths = [path for item in map(Path, given.inputs) for path in (listing(item) if item.is_dir() else [item])]
    names = [f"{path.stem}.png" for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several inputs would be written to {', '.join(twice)}; translate them separately")
    device = distributed.start(given.device)
    generator = load(given.weights, given.config, given.role).to(device)
    out, rows = Path(given.out), []
    for path, name in zip(paths, names):
        write_image(out / name, translate(generator, read_image(path), device))
        rows.append({"source": os.path.relpath(path, out), given.role: name})
    write_gallery(out / "index.html", f"Source and {given.role}", rows)
    print(f"{len(paths)} images in {out}")
    return [out / name for name in names]


def export(argv: list[str], description: str, load: Load) -> dict:
    """The command line of a project's export.py; returns path and largest difference. Errors: InputError."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="checkpoint of a run, or a released generator")
    parser.add_argument("--config", help="the experiment of a released generator")
    parser.add_argument("--role", choices=ROLES, default="student", help="generator of the checkpoint")
    parser.add_argument("--out", help="file to write (default: ROLE.onnx beside the checkpoint)")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default: 256)")
    given = parser.parse_args(argv)
    require_onnx()
    generator = load(given.checkpoint, given.config, given.role)
    if given.size < 1 or given.size % generator.multiple:
        raise InputError(f"--size {given.size}: {generator.architecture} takes multiples of {generator.multiple}")
    path = Path(given.out) if given.out else Path(given.checkpoint).with_name(f"{given.role}.onnx")
    to_onnx(generator, path, given.size)
    difference = onnx_difference(generator, path, torch.rand(3, 3, given.size, given.size) * 2 - 1)
    if difference > TOLERANCE:
        raise ArithmeticError(f"{path} differs from torch by {difference:.2g}, more than {TOLERANCE:g}")
    print(f"{path}: {path.stat().st_size:,} bytes, differs from torch by at most {difference:.2g}")
    return {"path": str(path), "difference": difference}
