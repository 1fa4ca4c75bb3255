"""Clips of a video: which frames, decoded from files and folders, and their pixels."""

from pathlib import Path

from common.errors import InputError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winograd3d import video
from winograd3d.tests.videos import encode, extract, moving_photo

FRAMES = 20


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return moving_photo(FRAMES)


@pytest.fixture(scope="module")
def files(tmp_path_factory, photo) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        "avi": encode(folder / "a clip é.avi", photo),
        "mp4": encode(folder / "clip.mp4", photo),
        "mkv": encode(folder / "clip.mkv", photo, codec="mjpeg"),  # declares no number of frames
        "jpg": extract(folder / "jpg", photo),
        "png": extract(folder / "png", photo, "image_{:05d}.png"),
    }


def chosen(*numbers: int):
    return lambda frames: torch.tensor(numbers)


# -- which frames ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 12))
def test_clip_starts_lie_at_even_steps_inside_the_video(frames, length, count):
    starts = video.clip_starts(frames, length, count)
    assert len(starts) == count and starts.dtype == torch.int64
    if frames < length:
        assert not starts.any()
    else:
        assert starts.min() >= 0 and starts.max() <= frames - length
        assert torch.equal(starts.sort().values, starts)
        step = (frames - length + 1) / count
        assert (starts.double() - (torch.arange(count) + 0.5) * step).abs().max() <= 1


def test_one_clip_is_the_centre_one():
    assert video.clip_starts(100, 16, 1).tolist() == [42]


def test_a_short_video_is_looped_and_an_interval_is_kept():
    assert video.clip_frames(torch.tensor([0]), 7, 1, 3).tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert video.clip_frames(torch.tensor([2, 5]), 3, 4, 100).tolist() == [[2, 6, 10], [5, 9, 13]]


def test_scores_average_softmax_or_logits():
    logits = torch.tensor([[[5.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]]])
    assert video.video_scores(logits)[0].argmax() == 1  # two moderate votes beat one confident one
    assert video.video_scores(logits, "logit")[0].argmax() == 0
    assert video.video_scores(logits).sum().item() == pytest.approx(1)


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, tolerance", [("avi", 8), ("mp4", 8), ("mkv", 8), ("jpg", 4), ("png", 0)])
def test_the_frames_asked_for_come_in_the_order_asked_for(files, photo, kind, tolerance):
    seen = []

    def choose(frames: int) -> torch.Tensor:
        seen.append(frames)
        return torch.tensor([13, 2, 2, 0, 19])

    read = video.read_frames(files[kind], choose)
    assert seen == [FRAMES] and read.dtype == torch.uint8 and read.shape == (5, 48, 64, 3)
    error = (read.float() - torch.from_numpy(photo[[13, 2, 2, 0, 19]]).float()).abs().mean((1, 2, 3))
    assert error.max() <= tolerance
    # Neighbouring frames differ by more than the codec's loss, so a frame off by one is seen.
    off = (read.float() - torch.from_numpy(photo[[12, 1, 3, 1, 18]]).float()).abs().mean((1, 2, 3))
    assert (off > error + 2).all()


def test_frame_folders_are_read_in_natural_order(tmp_path, photo):
    extract(tmp_path / "x", photo, "frame{}.png", first=0)  # as text, frame10 comes before frame2
    (tmp_path / "x" / "notes.txt").write_text("not a frame")
    read = video.read_frames(tmp_path / "x", lambda frames: torch.arange(frames))
    assert np.array_equal(read.numpy(), photo)


def ends_after(monkeypatch, last: int) -> None:
    """Let the decoder give out only so many frames, as for packed XviD streams, which declare more."""
    decode = video._decode

    def shorter(av, path, wanted):
        read, count = decode(av, path, {number for number in wanted if number < last})
        return read, min(count, last) if len(read) < len(wanted) else count

    monkeypatch.setattr(video, "_decode", shorter)


def test_a_stream_that_ends_a_little_early_counts_as_long_as_it_is(files, monkeypatch, photo):
    ends_after(monkeypatch, FRAMES - 1)
    asked = []
    read = video.read_frames(files["avi"], lambda frames: asked.append(frames) or torch.tensor([frames - 1]))
    assert asked == [FRAMES, FRAMES - 1] and read.shape[0] == 1
    assert (read[0].float() - torch.from_numpy(photo[FRAMES - 2]).float()).abs().mean() < 8


@pytest.mark.parametrize("last", [0, 17])
def test_a_stream_that_ends_long_before_its_declared_length_is_damage(files, monkeypatch, last):
    ends_after(monkeypatch, last)
    with pytest.raises(InputError, match=rf"ends after {last} of 20 frames"):
        video.read_frames(files["avi"], chosen(19))


def test_what_does_not_decode_is_refused_with_its_path(tmp_path, files):
    whole = files["mp4"].read_bytes()
    for name, content in {"empty": b"", "noise": bytes(range(256)) * 40, "half": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.mp4: does not decode"):
            video.read_frames(tmp_path / f"{name}.mp4", chosen(0))
    broken = files["avi"].read_bytes()
    (tmp_path / "cut.avi").write_bytes(broken[: len(broken) // 2])
    with pytest.raises(InputError, match=r"cut\.avi: (ends after \d+ of 20|does not decode)"):
        video.read_frames(tmp_path / "cut.avi", chosen(19))
    with pytest.raises(InputError, match="does not decode"):
        video.read_frames(tmp_path / "none.avi", chosen(0))


def test_a_file_without_pictures_is_refused(tmp_path):
    import av

    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="holds no video stream"):
        video.read_frames(tmp_path / "sound.mkv", chosen(0))


def test_folders_that_are_empty_or_mixed_are_refused(tmp_path, photo):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no frame"):
        video.read_frames(tmp_path / "empty", chosen(0))
    extract(tmp_path / "mixed", photo[:2])
    extract(tmp_path / "mixed", photo[:1, :20], first=3)
    with pytest.raises(InputError, match="differ in size"):
        video.read_frames(tmp_path / "mixed", chosen(0, 2))


def test_a_video_is_found_as_a_file_or_as_the_folder_of_its_frames(tmp_path, photo):
    assert video.find(tmp_path / "v.avi") is None
    extract(tmp_path / "v", photo[:1])
    assert video.find(tmp_path / "v.avi") == tmp_path / "v"
    encode(tmp_path / "v.avi", photo[:2])
    assert video.find(tmp_path / "v.avi") == tmp_path / "v.avi"


# -- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, keep_ratio, expected",
    [
        ((240, 320), False, (128, 171)),
        ((240, 320), True, (128, 171)),
        ((240, 426), True, (128, 227)),
        ((320, 240), True, (171, 128)),
    ],
)
def test_sizes_before_the_crop(given, keep_ratio, expected):
    assert video.resized_size(*given, 112, keep_ratio) == expected


def test_the_centre_crop_is_the_one_of_section_5():
    assert video.centre((128, 171), 112) == (8, 30)


def test_resizing_is_bilinear_with_half_pixel_centres():
    ramp = torch.arange(8, dtype=torch.uint8)[None, None, :, None].expand(1, 2, 8, 3).contiguous()
    assert torch.allclose(video.resize(ramp, (2, 4))[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_normalisations_subtract_divide_order_and_round():
    planes = torch.tensor([10.4, 20.0, 30.0])[None, :, None, None]
    found = {name: video.normalise(planes, pixels).flatten().tolist() for name, pixels in video.PIXELS.items()}
    assert found["c3d_bgr"] == pytest.approx([30 - 90, 20 - 98, 10.4 - 102])
    assert found["mmaction"] == pytest.approx([10.4 - 104, 20 - 117, 30 - 128], abs=1e-4)
    kinetics = [(10 / 255 - 0.43216) / 0.22803, (20 / 255 - 0.394666) / 0.22145, (30 / 255 - 0.37645) / 0.216989]
    assert found["kinetics"] == pytest.approx(kinetics, abs=1e-5)
