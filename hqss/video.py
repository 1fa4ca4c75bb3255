"""The video protocol: frames of static scenes against the brightest value that each pixel ever has (section 6).

    python video.py VIDEOS [--results RESULTS] [--threshold 80] [--frames 1]

VIDEOS holds a folder of frames for each video. V_max and V_min are the greatest and least value of each pixel and
channel over a video; the moving shadow is where the mean over channels of V_max - V_min exceeds the threshold. RESULTS
holds the results in folders of the same names; without it the frames themselves are judged. Frames are compared at
256x256; numbers are means over frames, then over videos.
"""

import argparse
from pathlib import Path

from common.errors import InputError
from common.images import list_images, read_image
from common.report import write_metrics
from common.run import entry
from common.shadow.metrics import score, summary

import numpy as np

SIZE = (256, 256)
COLUMNS = {"rmse": "error_s", "psnr": "psnr_s", "ssim": "ssim_s"}


def extremes(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """V_max and V_min uint8 [H, W, 3] of a video. Errors: InputError for frames of different sizes."""
    low = high = None
    for path in paths:
        frame = read_image(path)
        if high is None:
            low, high = frame.copy(), frame.copy()
        if frame.shape != high.shape:
            raise InputError(
                f"{path} is {frame.shape[1]}x{frame.shape[0]}, the first frame {high.shape[1]}x{high.shape[0]}"
            )
        np.minimum(low, frame, out=low)
        np.maximum(high, frame, out=high)
    return high, low


def moving_shadow(high: np.ndarray, low: np.ndarray, threshold: float) -> np.ndarray:
    """Mask uint8 [H, W], 255 where the mean over channels of V_max - V_min exceeds the threshold."""
    return ((high.astype(np.float64) - low).mean(2) > threshold).astype(np.uint8) * np.uint8(255)


def judge(frames: list[Path], results: dict[str, Path], threshold: float, every: int) -> dict[str, float]:
    """RMSE (sum over channels of absolute Lab errors), PSNR and SSIM of the moving shadow, means over frames.

    Errors: InputError for a video whose shadow does not move.
    """
    high, low = extremes(frames)
    mask = moving_shadow(high, low, threshold)
    if not mask.any():
        raise InputError(f"{frames[0].parent}: nothing changes by more than {threshold:g} levels; lower --threshold")
    values = summary([score(read_image(results[path.stem]), high, mask, SIZE) for path in frames[::every]])
    return {name: values[column] for name, column in COLUMNS.items()}


def main(argv: list[str]) -> dict[str, float]:
    """Print a line for each video and the mean; writes video.json into --results or VIDEOS and returns the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder with a folder of frames for each video")
    parser.add_argument("--results", type=Path, help="folder with a folder of results for each video")
    parser.add_argument("--threshold", type=float, default=80, help="of the moving shadow, levels: 80 or 40")
    parser.add_argument("--frames", type=int, default=1, help="judge every so many frames (default: all)")
    parser.add_argument("--out", type=Path, help="file of the numbers (default: video.json in the folder judged)")
    given = parser.parse_args(argv)
    if given.frames < 1:
        raise InputError(f"--frames {given.frames}: must be at least 1")
    folders = sorted(path for path in given.videos.glob("*") if path.is_dir()) if given.videos.is_dir() else []
    if not folders:
        raise InputError(f"{given.videos}: holds no folder of frames")
    found = {}
    for folder in folders:
        frames = list_images(folder)
        judged = list_images(given.results / folder.name) if given.results else frames
        results = {path.stem: path for path in judged}
        missing = [path.stem for path in frames[:: given.frames] if path.stem not in results]
        if missing:
            raise InputError(f"{given.results / folder.name}: has no result for {len(missing)} frames, as {missing[0]}")
        found[folder.name] = judge(frames, results, given.threshold, given.frames)
        print(f"{folder.name:<16}" + "".join(f" {name} {value:8.3f}" for name, value in found[folder.name].items()))
    mean = {name: float(np.mean([values[name] for values in found.values()])) for name in COLUMNS}
    print(f"{'mean':<16}" + "".join(f" {name} {value:8.3f}" for name, value in mean.items()))
    out = given.out or (given.results or given.videos) / "video.json"
    write_metrics(out, {**mean, "_meta": {"threshold": given.threshold, "videos": found}})
    return mean


if __name__ == "__main__":
    entry(main)
