"""What a stage-1 step and an item of the loader cost, each against what a user has otherwise; one thread.

    python bench.py [--rounds 5]

`step`: one step of stage 1 (E, G, D_S, D_N at full width, batch 1, crop 200) as train.py makes it, with all losses,
replay buffers and the finite check. Reference: each network called once, z = E(x), fake = G(z, y), L1 and two
least-squares terms, one backward, one Adam over all, with nn.InstanceNorm2d as released; so the cost says how many
plain adversarial steps the method takes.
`loader`: one item of a 480x640 photograph in memory. Reference: the release's way with scikit-image, four
conversions to Lab, an anti-aliased resize for each image and mask, 50 dilations.
"""

import argparse
from pathlib import Path

from common.cost import compare, interleaved, saved_for_backward, table, write_bench
from common.gan.reference import released_norms
from common.run import entry

import numpy as np
import torch
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.transform import resize as skimage_resize

from hqss.build import build_synthesis
from hqss.config import Config
from hqss.items import Crop, dilate, prepare
from hqss.steps import CriticStep, Pools, SynthesisStep
from hqss.train import adam

CROP, SIZE = 200, (480, 640)
PLACE = Crop(20, 23, True)


def main(argv: list[str]) -> dict:
    """Time everything, print a table and write runs/bench.json; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a row (default: 5)")
    parser.add_argument("--crop", type=int, default=CROP, help=f"side of the step's images (default: {CROP})")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {"step": bench_step(given.rounds, given.crop), "loader": bench_loader(given.rounds)}
    print(table(rows))
    write_bench(Path(__file__).parent / "runs" / "bench.json", rows)
    return rows


def bench_step(rounds: int, crop: int) -> dict:
    """The row of the training step."""
    config = Config()
    mask = torch.zeros(1, 1, crop, crop)
    mask[..., : crop // 3] = 1
    values = {"shadow": torch.rand(1, 3, crop, crop) * 2 - 1, "lit": torch.rand(1, 3, crop, crop) * 2 - 1}
    values |= {"shadow_mask": mask, "lit_mask": mask.flip(3)}

    plain = {name: released_norms(network) for name, network in build_synthesis(config).items()}
    everything = torch.nn.ModuleDict(plain)
    plain_optimiser = adam(config, everything)

    def forward() -> torch.Tensor:
        fake = plain["generator"](plain["encoder"](values["shadow"]), values["lit"])
        scores = plain["critic_shadow"](fake), plain["critic_lit"](fake)
        return (fake - values["lit"]).abs().mean() + sum((score - 1).square().mean() for score in scores)

    def reference() -> None:
        plain_optimiser.zero_grad(set_to_none=True)
        forward().backward()
        plain_optimiser.step()

    encoder, generator, *critics = build_synthesis(config).values()
    paint = SynthesisStep(encoder, generator, tuple(critics), config.synthesis)
    tell = CriticStep(*critics, config.synthesis.discriminator)
    optimisers = adam(config, paint), adam(config, tell)
    pools = Pools(config.synthesis.pool, 0, 1, torch.device("cpu"))

    def watch(loss: torch.Tensor, module: torch.nn.Module) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])
        torch.isfinite(torch.stack([loss.detach(), norm])).all().item()  # read at every step on the CPU only

    def ours() -> None:
        optimisers[0].zero_grad(set_to_none=True)
        terms, fakes = paint(values)
        loss = sum(terms.values())
        loss.backward()
        watch(loss, paint)
        optimisers[0].step()
        optimisers[1].zero_grad(set_to_none=True)
        loss = sum(tell((values["shadow"], values["lit"]), pools.query(0, fakes)).values())
        loss.backward()
        watch(loss, tell)
        optimisers[1].step()

    timing = compare(interleaved({"reference": reference, "step": ours}, rounds, warmup=1), "reference")["step"]
    kept = saved_for_backward(lambda: paint(values), paint.parameters())
    memory = kept / saved_for_backward(forward, everything.parameters())
    return timing.row(layout="contiguous / contiguous", memory=memory, workload=f"stage 1, batch 1, crop {crop}")


def straightforward(rgb: np.ndarray, shadow_mask: np.ndarray, lit_mask: np.ndarray) -> dict[str, torch.Tensor]:
    """One item as the release prepares it: every region masked, converted and resized on its own."""
    size, crop, (row, column, mirror) = 448, 400, PLACE
    cross = ndimage.generate_binary_structure(2, 1)
    dilated = ndimage.binary_dilation(lit_mask, cross, iterations=50)

    def finished(image: np.ndarray) -> torch.Tensor:
        cut = skimage_resize(image, (size, size))[row : row + crop, column : column + crop]
        cut = cut[:, ::-1] if mirror else cut
        return torch.from_numpy(np.ascontiguousarray(cut)).float()

    item = {}
    whole = np.ones_like(shadow_mask)
    for name, region in {"shadow": shadow_mask, "lit": lit_mask, "rest": 1 - lit_mask, "image": whole}.items():
        lab = finished(rgb2lab(rgb * region[..., None])).permute(2, 0, 1)
        item[name] = torch.cat([lab[:1] / 50 - 1, 2 * (lab[1:] + 128) / 255 - 1])
    for name, mask in {"shadow_mask": shadow_mask, "lit_mask": lit_mask, "dilated": dilated}.items():
        item[name] = (finished(mask.astype(np.float64)) > 0.5).float()[None]
    return item


def bench_loader(rounds: int) -> dict:
    """The row of the loader, with the greatest difference between both ways."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    rgb = np.ascontiguousarray(ndimage.uniform_filter(rgb, (9, 9, 1)))
    shadow_mask, lit_mask = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    shadow_mask[100:300, 60:260] = 1
    lit_mask[150:380, 350:540] = 1
    ours = lambda: prepare(rgb, shadow_mask, lit_mask, dilate(lit_mask, "cross", 50), 448, 400, PLACE)
    reference = lambda: straightforward(rgb, shadow_mask, lit_mask)
    one, two = ours(), reference()
    difference = max(float((one[name] - two[name]).abs().max()) for name in two)
    timing = compare(interleaved({"reference": reference, "loader": ours}, rounds, warmup=1), "reference")["loader"]
    note = f"480x640 to 400x400, {1 / timing.median:.0f} items/s, at most {difference:.0e} apart"
    return timing.row(layout="uint8 [H, W, 3]", workload=note)


if __name__ == "__main__":
    entry(main)
