"""Short real videos and whole data sets made of scikit-image's photographs, for tests of reading."""

from pathlib import Path

from common import photos
from common.images import write_image

import numpy as np


def moving_photo(frames: int, height: int = 48, width: int = 64, photo: str = "chelsea", start: int = 0) -> np.ndarray:
    """A window that slides over a photograph, two pixels a frame: uint8 [T, H, W, 3]."""
    pixels = photos.load(photo)
    return np.stack([pixels[60 : 60 + height, start + 2 * t : start + 2 * t + width] for t in range(frames)])


def encode(path: Path, frames: np.ndarray, codec: str = "mpeg4", rate: int = 25) -> Path:
    """Write frames as a video file at nearly lossless quality; returns path."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"qmin": "1", "qmax": "2"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def extract(folder: Path, frames: np.ndarray, name: str = "img_{:05d}.jpg", first: int = 1) -> Path:
    """Write frames as images into a folder; returns it."""
    for number, frame in enumerate(frames, first):
        write_image(folder / name.format(number), frame)
    return folder


def ucf101(
    root: Path, classes=("Apply", "Zoom"), groups: int = 4, clips: int = 2, frames: int = 20, files: int = 0
) -> Path:
    """UCF101's layout; split 1 tests on the last group of each class. Returns root.

    The first `files` videos are files, the others folders of frames.
    """
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(classes, 1)))
    parts, made = {"train": [], "test": []}, 0
    for label, name in enumerate(classes):
        for group in range(1, groups + 1):
            for clip in range(1, clips + 1):
                video = f"v_{name}_g{group:02d}_c{clip:02d}"
                pixels = moving_photo(frames, photo=("chelsea", "coffee")[label % 2], start=20 * group + clip)
                place = root / "UCF-101" / name
                if made < files:
                    encode(place / f"{video}.avi", pixels)
                else:
                    extract(place / video, pixels)
                made += 1
                given = "" if group == groups else f" {label + 1}"
                parts["test" if group == groups else "train"].append(f"{name}/{video}.avi{given}\n")
    for part, lines in parts.items():
        (lists / f"{part}list01.txt").write_text("".join(lines))
    return root


def hmdb51(root: Path, classes=("wave", "cartwheel"), videos: int = 6) -> Path:
    """HMDB51's layout of frame folders: of each class one video is unused, one to test, the others to train."""
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    for name in classes:
        lines = []
        for number in range(videos):
            video = f"Film{number // 2}_{name}_f_cm_np1_fr_med_{number}"
            extract(root / "hmdb51" / name / video, moving_photo(18, start=10 * number))
            use = {videos - 1: 0, videos - 2: 2}.get(number, 1)
            lines.append(f"{video}.avi {use}\n")
        (lists / f"{name}_test_split1.txt").write_text("".join(lines))
    return root


def kinetics(root: Path, classes=("air drumming", "zumba"), videos: int = 2) -> Path:
    """Kinetics' layout, encoded as mp4 files; returns root."""
    for part in ("train", "val"):
        for label, name in enumerate(classes):
            for number in range(videos):
                pixels = moving_photo(17, start=30 * label + 5 * number)
                encode(root / part / name / f"abcdefghi{label}{number}_000001_000011.mp4", pixels)
    return root
