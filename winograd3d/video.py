"""Videos to clips: which frames (section 6), decoded from a file or a folder, and their pixels (section 5)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.images import READABLE, read_image

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VIDEOS = (".avi", ".mp4", ".mkv", ".webm", ".mov")
EARLY_END = 0.1  # share of the declared frames that a stream may lack: packed XviD streams lose a few, damage more


class Pixels(NamedTuple):
    """How a checkpoint expects its pixels: (x − mean) / std of 0-255 values, in which order, rounded first or not."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False
    rounded: bool = False


# Mean, std and channel order belong to the weights: of C3D's Sports-1M file in PyTorch, of mmaction2, of torchvision.
PIXELS = {
    "c3d_bgr": Pixels((90.0, 98.0, 102.0), (1.0, 1.0, 1.0), bgr=True),
    "mmaction": Pixels((104.0, 117.0, 128.0), (1.0, 1.0, 1.0)),
    "kinetics": Pixels(
        tuple(255 * v for v in (0.43216, 0.394666, 0.37645)),
        tuple(255 * v for v in (0.22803, 0.22145, 0.216989)),
        rounded=True,
    ),
}

# -- which frames ----------------------------------------------------------------------------------------------------


def clip_starts(frames: int, length: int, count: int) -> Tensor:
    """First frames of `count` clips at even steps, int64 [count]; all 0 where the video is shorter than a clip."""
    step = max(0, frames - length + 1) / count
    return torch.tensor([int(k * step + step / 2) for k in range(count)])


def clip_frames(starts: Tensor, length: int, interval: int, frames: int) -> Tensor:
    """Frame numbers of clips [K, length]; a clip longer than the video begins again (index modulo F)."""
    return (starts[:, None] + interval * torch.arange(length)) % frames


def video_scores(logits: Tensor, average: str = "prob") -> Tensor:
    """One score for each class of a video from those of its clips: [V, K, C] -> [V, C].

    average: "prob" is the mean of the softmax, the protocol's; "logit" the mean of the logits.
    """
    return logits.float().softmax(-1).mean(1) if average == "prob" else logits.float().mean(1)


# -- reading ---------------------------------------------------------------------------------------------------------


def find(path: Path) -> Path | None:
    """A video where a list names it, or the folder of its frames beside it; None if neither is there."""
    if path.is_file():
        return path
    return path.with_suffix("") if path.with_suffix("").is_dir() else None


def read_frames(path: Path, choose: Callable[[int], Tensor]) -> Tensor:
    """The frames that `choose` picks once it knows how many there are: uint8 [n, H, W, 3].

    path: a video file, or a folder of images in natural order (img_00001.jpg before img_00010.jpg). Errors:
    InputError for what does not decode, holds no frame, or ends long before the length that it declares.
    """
    frames = _folder_frames(path, choose) if path.is_dir() else _file_frames(path, choose)
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"video {path}: its frames differ in size; extract them again")
    return torch.from_numpy(np.stack(frames))


def _folder_frames(path: Path, choose: Callable[[int], Tensor]) -> list[np.ndarray]:
    images = [file for file in path.iterdir() if file.suffix.lower() in READABLE and not file.name.startswith(".")]
    if not images:
        raise InputError(f"video {path}: the folder holds no frame ({', '.join(READABLE[:3])}, …); extract them again")
    images.sort(key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.stem)])
    wanted = choose(len(images)).tolist()
    read = {number: read_image(images[number]) for number in set(wanted)}
    return [read[number] for number in wanted]


def _file_frames(path: Path, choose: Callable[[int], Tensor]) -> list[np.ndarray]:
    try:
        import av
    except ImportError as error:
        raise InputError("videos are decoded by PyAV: pip install av (folders of frames need nothing)") from error
    try:
        with av.open(str(path)) as container:
            declared = container.streams.video[0].frames
            declared = declared or sum(1 for packet in container.demux(video=0) if packet.size)
        wanted = choose(max(1, declared)).tolist()
        read, count = _decode(av, path, set(wanted))
        if len(read) < len(set(wanted)):  # the decoder knows better than the header
            if count == 0 or count < (1 - EARLY_END) * declared:
                raise InputError(f"video {path}: ends after {count} of {declared} frames; download it again")
            wanted = choose(count).tolist()
            read, _ = _decode(av, path, set(wanted))
    except (av.error.FFmpegError, IndexError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = "it holds no video stream" if isinstance(error, IndexError) else str(error)
        raise InputError(f"video {path}: does not decode ({reason}); download it again or leave it out") from error
    return [read[number] for number in wanted]


def _decode(av, path: Path, wanted: set[int]) -> tuple[dict[int, np.ndarray], int]:
    """RGB frames by number and how many were seen; from the beginning, as numbers count decoded frames."""
    read, count = {}, 0
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            count = number + 1
            if number in wanted:
                read[number] = frame.to_ndarray(format="rgb24")
                if len(read) == len(wanted):
                    break
    return read, count


# -- pixels ----------------------------------------------------------------------------------------------------------


def resized_size(height: int, width: int, size: int, keep_ratio: bool) -> tuple[int, int]:
    """(H, W) before a crop of `size`: 128 x 171 for 112, or with its short side 128 and its own shape."""
    short = round(size * 128 / 112)
    if not keep_ratio:
        return short, round(size * 171 / 112)
    scale = short / min(height, width)
    return max(short, int(height * scale + 0.5)), max(short, int(width * scale + 0.5))


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear in float with half-pixel centres and no antialiasing: uint8 [T, H, W, 3] -> float [T, 3, h, w]."""
    planes = frames.permute(0, 3, 1, 2).float()
    return F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=False)


def centre(size: tuple[int, int], crop: int) -> tuple[int, int]:
    """Top and left of the centre crop, halves to even: 8 and 30 of 128 x 171 for 112."""
    return round((size[0] - crop) / 2), round((size[1] - crop) / 2)


def normalise(planes: Tensor, pixels: Pixels) -> Tensor:
    """Float RGB of 0-255 [T, 3, H, W] to what the weights expect, [3, T, H, W]."""
    if pixels.rounded:
        planes = planes.round()
    if pixels.bgr:
        planes = planes.flip(1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (pixels.mean, pixels.std))
    return ((planes - mean) / std).transpose(0, 1)
