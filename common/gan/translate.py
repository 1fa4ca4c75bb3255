"""Using a trained generator: one image, a folder, a gallery page, how long it takes."""

import html
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.gan.data import to_tensor
from common.gan.frechet import to_uint8

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 14px sans-serif; margin: 2em; }} td, th {{ padding: 4px; text-align: center; }}
img {{ width: 256px; image-rendering: auto; }}</style></head>
<body><h1>{title}</h1><table><tr>{head}</tr>
{rows}
</table></body></html>
"""


@torch.inference_mode()
def translate(network: nn.Module, image: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Translate one image uint8 [H, W, 3] of any size; the result has its size.

    The image is continued by reflection (by its edge where it is too small for that) to the next multiple of what the
    generator halves, and the result is cropped back.
    """
    height, width = image.shape[:2]
    multiple = getattr(network, "multiple", 4)
    x = to_tensor(image)[None].to(device)
    down, right = -height % multiple, -width % multiple
    mode = "reflect" if down < height and right < width else "replicate"
    training = network.training
    try:
        y = network.eval()(F.pad(x, (0, right, 0, down), mode=mode))
    finally:
        network.train(training)
    return to_uint8(y[..., :height, :width].float())[0].cpu().numpy()


def write_gallery(path: str | Path, title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """An HTML page with one row a picture; rows: {column: path of an image relative to the page}."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    cell = lambda row, c: (
        f'<td><img src="{html.escape(row[c])}" alt="{html.escape(c)}"></td>' if c in row else "<td></td>"
    )
    body = "\n".join("<tr>" + "".join(cell(row, column) for column in columns) + "</tr>" for row in rows)
    Path(path).write_text(PAGE.format(title=html.escape(title), head=head, rows=body), encoding="utf-8")


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def latency(
    network: nn.Module,
    size: int = 256,
    *,
    threads: Sequence[int] = (1,),
    layouts: Sequence[str] = ("contiguous", "channels_last"),
    compiled: bool = False,
    warmup: int = 100,
    rounds: int = 100,
) -> list[dict]:
    """Time of one image for every number of threads and layout: rows of median and interquartile range in seconds.

    Rounds of all variants of one thread number alternate, so that they meet the same conditions.
    """
    device = next(network.parameters()).device
    before, rows = torch.get_num_threads(), []
    network = network.eval()
    variants: dict[str, tuple[nn.Module, Tensor]] = {}
    for layout in layouts:
        form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        image = torch.rand(1, 3, size, size, device=device).to(memory_format=form) * 2 - 1
        variants[layout] = network, image
        if compiled:
            variants[f"{layout} compiled"] = torch.compile(network), image
    try:
        for count in threads:
            torch.set_num_threads(count)
            seconds: dict[str, list[float]] = {name: [] for name in variants}
            for number in range(warmup + rounds):
                for name, (model, image) in variants.items():
                    began = time.perf_counter()
                    model(image)
                    synchronise(device)
                    if number >= warmup:
                        seconds[name].append(time.perf_counter() - began)
            for name, values in seconds.items():
                low, median, high = statistics.quantiles(values, n=4)
                rows.append({"variant": name, "threads": count, "median": median, "iqr": high - low})
    finally:
        torch.set_num_threads(before)
    return rows
