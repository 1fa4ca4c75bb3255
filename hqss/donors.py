"""Whose mask may give a photograph its lit region: a map over the training set by matrix products (section 2)."""

import hashlib
import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath

from common.errors import InputError
from common.randomness import integers

import numpy as np
import torch
from torch import Tensor

from hqss.method import admissible, ratios_of

DONOR, REDRAWS = 67, 160  # slots; a redraw takes one each
TRIES = 101  # the first draw and at most 100 more
LEAST = 0.05
BLOCK = 1 << 14  # pixels of one product


class Donors:
    """For each of n photographs the donors to draw from.

    ratio: [n, n] or None where only `allowed` is known (the release's map). rule: `ratio` draws from `allowed` and
    falls back to `any`, which takes any other mask that gives at least 5 % of the own area.
    """

    def __init__(self, allowed: Tensor, ratio: Tensor | None, rule: str = "ratio"):
        self.lists = [row.nonzero().flatten() for row in allowed]
        self.ratio, self.rule = ratio, rule

    def draw(self, seed: int, epoch: int, index: int) -> int:
        """The donor of photograph `index` in an epoch; uniform among the admissible."""
        choices = self.lists[index]
        if self.rule == "ratio" and len(choices):
            return int(choices[integers(seed, epoch, index, DONOR, len(choices))])
        draws = integers(seed, epoch, index, torch.arange(REDRAWS, REDRAWS + TRIES), len(self.lists))
        fits = draws != index
        if self.ratio is not None:
            fits &= self.ratio[index, draws] >= LEAST
        found = fits.nonzero()
        return int(draws[found[0, 0]] if len(found) else draws[-1])


def count_common(masks: Callable[[int], np.ndarray], n: int) -> Tensor:
    """|M_i and M_j| as float64 [n, n] of n masks of one size, read once and held as bits.

    Errors: InputError for masks of different sizes.
    """
    packed, shape = [], None
    for index in range(n):
        mask = masks(index)
        if shape not in (None, mask.shape):
            raise InputError(
                f"mask {index} is {mask.shape[1]}x{mask.shape[0]}, the first {shape[1]}x{shape[0]};"
                " lit regions come from other masks, so bring the photographs to one size"
            )
        shape = mask.shape
        packed.append(np.packbits(mask.reshape(-1) > 0))
    bits = np.stack(packed)
    common = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, bits.shape[1], BLOCK // 8):
        block = torch.from_numpy(np.unpackbits(bits[:, start : start + BLOCK // 8], axis=1)).float()
        common += (block @ block.T).double()  # sums of at most BLOCK ones are exact
    return common


def build(masks: Callable[[int], np.ndarray], n: int, lower: float, upper: float, rule: str) -> Donors:
    """The donors of n masks. Errors: InputError for a single photograph, which has no other to take a region from."""
    if n < 2:
        raise InputError(f"there is {n} training photograph; lit regions come from the masks of others, so give two")
    ratio = ratios_of(count_common(masks, n))
    return Donors(admissible(ratio, lower, upper), ratio, rule)


def load(
    path: Path, names: Sequence[str], files: Sequence[Path], masks: Callable[[int], np.ndarray], settings
) -> Donors:
    """The donors that `path` keeps: read where they belong to these masks, otherwise built and written.

    files: the mask files, whose bytes decide whether a stored map is theirs. A .pickle is the release's and only read.
    Errors: InputError.
    """
    bounds = settings.ratio_min, settings.ratio_max
    if path.suffix in (".pickle", ".pkl"):
        return Donors(read_released(path, names), None, settings.donors)
    sha = hashlib.sha256()
    for name, file in zip(names, files):
        sha.update(f"{name}\n".encode() + file.read_bytes())
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                found, ratio = str(stored["sha256"]), torch.from_numpy(stored["ratio"])
        except Exception as error:  # a damaged file can make the reader raise nearly anything
            raise InputError(f"{path}: is not a map of donors ({error}); remove it, it is built anew") from error
        if found == sha.hexdigest():
            return Donors(admissible(ratio, *bounds), ratio, settings.donors)
    donors = build(masks, len(names), *bounds, settings.donors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez(file, sha256=np.array(sha.hexdigest()), ratio=donors.ratio.numpy())
    return donors


class _Plain(pickle.Unpickler):
    """Dicts, lists and strings need no names; whoever asks for one wants to execute something."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def read_released(path: Path, names: Sequence[str]) -> Tensor:
    """The release's map {mask path: [mask paths]} as bool [n, n], matched by the stems of the files.

    Nothing in the file is executed. Errors: InputError for a file of another kind or of other photographs.
    """
    try:
        content = _Plain(io.BytesIO(path.read_bytes())).load()
        stem = lambda text: PureWindowsPath(text).stem  # takes both kinds of slashes
        lists = {stem(key): [stem(item) for item in items] for key, items in content.items()}
    except Exception as error:  # a damaged or hostile pickle can raise nearly anything
        raise InputError(f"{path}: is not a plain map of mask paths ({error})") from error
    place = {name: i for i, name in enumerate(names)}
    strange = sorted((lists.keys() | {item for items in lists.values() for item in items}) ^ place.keys())
    if strange:
        raise InputError(f"{path}: is not the map of these {len(names)} masks; {len(strange)} differ, as {strange[0]}")
    allowed = torch.zeros(len(names), len(names), dtype=torch.bool)
    for name, items in lists.items():
        allowed[place[name], [place[item] for item in items]] = True
    return allowed
