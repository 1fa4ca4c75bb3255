"""Data sets in their official layouts, moving digits, and the protocol of evaluation."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from common import labelled
from common.errors import InputError

import pytest
import torch
from torch import nn

from winograd3d import data, lists, video
from winograd3d.data import Clips
from winograd3d.evaluation import evaluate
from winograd3d.moving_digits import moving_digits
from winograd3d.tests import videos

CPU = torch.device("cpu")
SMALL = {"clip_length": 4, "size": 21, "batch_size": 4, "test_batch_size": 3}


def small(name: str, root: Path, **options) -> Clips:
    return Clips(name, str(root), **{**SMALL, **options})


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory) -> Path:
    """Two classes of four groups of two videos; three of them are files, the others folders of frames."""
    return videos.ucf101(tmp_path_factory.mktemp("ucf"), files=3)


# -- moving digits ---------------------------------------------------------------------------------------------------


def test_moving_digits_are_what_section_11_describes():
    train, test = moving_digits()
    assert (len(train), len(test)) == (1200, 597) and train.shape == data.shape_of(Clips("moving_digits"))
    assert len(train.classes) == data.class_count(Clips("moving_digits")) == 20
    labels = torch.cat([train.labels, test.labels])
    assert set(labels.tolist()) == set(range(20)) and abs((labels % 2).float().mean() - 0.5) < 0.05
    clips = torch.cat([train.storage, test.storage])
    corner = clips[:, 0, :, 0, 0]  # empty, unless the digit starts in the first row
    assert corner.mean().abs() < 0.03 and 0.08 < corner.std() < 0.16


def test_digits_move_one_pixel_every_two_frames_to_the_side_of_their_class():
    train, _ = moving_digits()
    clean = train.storage[:, 0].clamp(min=0.5) - 0.5  # the noise lies below
    mass = clean.sum(2)  # N, T, W
    centre = (mass * torch.arange(12)).sum(2) / mass.sum(2)
    moved = centre[:, 6:8].mean(1) - centre[:, :2].mean(1)
    direction = 2 * (train.labels % 2) - 1
    assert ((moved * direction - 3).abs() < 0.35).float().mean() > 0.98
    steps = centre.diff(dim=1) * direction[:, None]  # none inside a pair of frames, one pixel between pairs
    assert (steps[:, ::2].abs() < 0.5).float().mean() > 0.99 and (
        (steps[:, 1::2] - 1).abs() < 0.5
    ).float().mean() > 0.99


def test_moving_digits_are_the_same_for_every_seed_and_epoch_and_share_no_image():
    (one, test), (two, _) = (data.load(Clips("moving_digits"), seed) for seed in (0, 1))
    assert one.fingerprint() == two.fingerprint() != test.fingerprint()
    index = torch.tensor([5, 3])
    assert torch.equal(one.fetch(index, 0)[0], one.fetch(index, 7)[0])
    assert torch.equal(one.clips(index, 3), one.fetch(index, 0)[0][:, None].expand(-1, 3, -1, -1, -1, -1))
    both = torch.cat([one.storage, test.storage]).flatten(1)
    assert len(both.unique(dim=0)) == 1797
    assert len(data.load(Clips("moving_digits", limit=70), 0)[0]) == 70


# -- layouts ---------------------------------------------------------------------------------------------------------


def test_ucf101_is_read_by_its_official_list(ucf101):
    train, test = data.load(small("ucf101", ucf101), 0)
    assert (len(train), len(test)) == (12, 4) and train.classes == ["Apply", "Zoom"]
    assert train.labels.tolist() == [0] * 6 + [1] * 6 and test.labels.tolist() == [0, 0, 1, 1]
    assert {lists.ucf101_group(path)[-3:] for path in test.paths} == {"g04"}
    assert sum(path.is_file() for path in train.paths) == 3
    clips, labels = train.fetch(torch.tensor([0, 11]), 1)
    assert clips.shape == (2, *train.shape) == (2, 3, 4, 21, 21) and labels.tolist() == [0, 1]


def test_classes_are_numbered_by_the_index_file_and_not_by_the_alphabet(tmp_path):
    train, _ = data.load(small("ucf101", videos.ucf101(tmp_path, classes=("Zoom", "Apply"))), 0)
    assert train.classes == ["Zoom", "Apply"] and train.paths[0].parent.name == "Zoom" and train.labels[0] == 0


def test_hmdb51_is_read_by_class_files_in_alphabetical_order(tmp_path):
    train, test = data.load(small("hmdb51", videos.hmdb51(tmp_path)), 0)
    assert train.classes == ["cartwheel", "wave"] and (len(train), len(test)) == (8, 2)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert lists.hmdb51_group(train.paths[0]) == "Film0"


def test_kinetics_is_read_from_class_folders(tmp_path):
    settings = small("kinetics", videos.kinetics(tmp_path))
    train, test = data.load(settings, 0)
    assert train.classes == ["air drumming", "zumba"] and (len(train), len(test)) == (4, 4)
    assert torch.isfinite(test.fetch(torch.arange(4), 0)[0]).all()


def test_files_and_folders_of_the_same_frames_agree(tmp_path):
    pixels = videos.moving_photo(20)
    paths = [videos.encode(tmp_path / "v.avi", pixels), videos.extract(tmp_path / "v", pixels, "img_{:05d}.png")]
    settings = small("ucf101", tmp_path, normalisation="c3d_bgr")
    listed = [lists.Video(path, 0) for path in paths]
    file, folder = data.VideoSet(listed, ["one"], settings, 0, train=False).clips(torch.arange(2), 3)
    assert (file - folder).abs().mean() < 8 and not torch.equal(file, folder)


# -- clips -----------------------------------------------------------------------------------------------------------


def test_a_training_clip_depends_on_seed_epoch_and_number_alone(ucf101):
    settings = small("ucf101", ucf101)
    train, _ = data.load(settings, 0)
    alone, batch = train.fetch(torch.tensor([7]), 3)[0][0], train.fetch(torch.tensor([2, 7, 9]), 3)[0][1]
    assert torch.equal(alone, batch)
    assert not torch.equal(alone, train.fetch(torch.tensor([7]), 4)[0][0])
    assert not torch.equal(alone, data.load(settings, 1)[0].fetch(torch.tensor([7]), 3)[0][0])


def test_training_clips_are_windows_of_the_video_at_random_places(ucf101):
    """Each clip is one of the possible (start, top, left, mirror), and over the epochs they spread over all of them."""
    settings = small("ucf101", ucf101, size=19)  # scales by 29/64, so that no two windows of the sliding photo agree
    train, _ = data.load(settings, 0)
    pixels = video.PIXELS[settings.normalisation]
    whole = video.read_frames(train.paths[5], lambda frames: torch.arange(frames))
    size = video.resized_size(*whole.shape[1:3], settings.size, False)
    planes = video.normalise(video.resize(whole, size), pixels)[:1]  # one colour suffices: 1, 20, h, w
    windows = planes.unfold(1, 4, 1).unfold(2, 19, 1).unfold(3, 19, 1)  # 1, 17, tops, lefts, 4, 19, 19
    seen = Counter()
    for epoch in range(40):
        clip = train.fetch(torch.tensor([5]), epoch)[0][0, :1]
        found = []
        for mirrored in (False, True):
            same = ((clip.flip(-1) if mirrored else clip)[:, None, None, None] - windows).abs().amax(
                (0, 4, 5, 6)
            ) < 1e-5
            found += [(*place, mirrored) for place in same.nonzero().tolist()]
        assert len(found) == 1, f"epoch {epoch}: {found}"
        seen[found[0]] += 1
    starts, tops, lefts, mirrors = (Counter(place[i] for place in seen.elements()) for i in range(4))
    assert len(starts) > 10 and max(starts) <= 16 and len(tops) == size[0] - 18 and len(lefts) > 5
    assert 8 <= mirrors[True] <= 32


def test_evaluation_takes_the_centre_and_never_mirrors(ucf101):
    settings = small("ucf101", ucf101)
    _, test = data.load(settings, 0)
    size = video.resized_size(48, 64, 21, False)
    top, left = video.centre(size, 21)

    def expected(starts: torch.Tensor) -> torch.Tensor:
        whole = video.read_frames(test.paths[1], lambda frames: video.clip_frames(starts, 4, 1, frames).flatten())
        crop = video.resize(whole, size)[..., top : top + 21, left : left + 21]
        return video.normalise(crop, video.PIXELS["kinetics"]).unflatten(1, (-1, 4)).transpose(0, 1)

    assert torch.equal(test.clips(torch.tensor([1]), 5)[0], expected(video.clip_starts(20, 4, 5)))
    centre = test.fetch(torch.tensor([1]), 9)[0][0]
    assert torch.equal(centre, expected(torch.tensor([8]))[0])


def test_a_clip_longer_than_the_video_loops_it(ucf101):
    train, test = data.load(small("ucf101", ucf101, clip_length=23, size=14), 0)
    for clip in (test.fetch(torch.arange(1), 0)[0][0], train.fetch(torch.arange(1), 0)[0][0]):
        assert clip.shape == (3, 23, 14, 14) and torch.equal(clip[:, 20:], clip[:, :3])


def test_an_interval_skips_frames(ucf101):
    (every, _), (third, _) = (data.load(small("ucf101", ucf101, interval=n), 0) for n in (1, 3))
    one, three = (set_.clips(torch.tensor([5]), 1)[0, 0] for set_ in (every, third))
    assert torch.equal(one[:, 2], three[:, 1]) is False  # frames 8.. and 5, 8, 11, 14
    assert torch.equal(one[:, 0], three[:, 1])


def test_loader_workers_do_not_change_a_bit(ucf101):
    train, test = data.load(small("ucf101", ucf101), 0)
    order = labelled.epoch_order(0, 1, torch.arange(len(train)))
    fed = {}
    for workers in (0, 2):
        settings = small("ucf101", ucf101, workers=workers)
        steps = [batch for (batch,) in labelled.batches(train, order, 1, settings, CPU)]
        assert [len(step.images) for step in steps] == [4, 4, 4]
        fed[workers] = torch.cat([step.images for step in steps])
        assert torch.equal(torch.cat([labels for _, labels in labelled.test_batches(test, settings, CPU)]), test.labels)
    assert torch.equal(fed[0], fed[2])


# -- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_holding_out_keeps_groups_together(tmp_path, seed):
    listed = [lists.Video(Path(f"v_A_g{g:02d}_c{c:02d}.avi"), 0) for g in range(30) for c in range(4)]
    first, second = lists.hold_out(listed, lists.ucf101_group, 0.3, seed)
    groups = [{lists.ucf101_group(item.path) for item in part} for part in (first, second)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 30 and len(first) + len(second) == 120
    assert 3 <= len(groups[1]) <= 16


def test_a_holdout_replaces_the_test_list(ucf101):
    train, test = data.load(small("ucf101", ucf101, holdout=0.5), 0)
    assert len(train) + len(test) == 12 and "g04" not in {lists.ucf101_group(path)[-3:] for path in test.paths}
    with pytest.raises(InputError, match=r"data\.holdout 1\.0 leaves"):
        data.load(small("ucf101", ucf101, holdout=1.0), 0)


def test_a_list_that_leaks_a_group_is_refused(tmp_path):
    root = videos.ucf101(tmp_path)
    listed = root / "ucfTrainTestlist" / "testlist01.txt"
    listed.write_text(listed.read_text() + "Apply/v_Apply_g01_c02.avi\n")
    train = root / "ucfTrainTestlist" / "trainlist01.txt"
    train.write_text(train.read_text().replace("Apply/v_Apply_g01_c02.avi 1\n", ""))
    with pytest.raises(InputError, match=r"1 groups are in the training and in the test list.*v_Apply_g01"):
        data.load(small("ucf101", root), 0)


def test_a_limit_is_spread_over_the_classes(ucf101):
    train, test = data.load(small("ucf101", ucf101, limit=4), 0)
    assert train.labels.tolist() == [0, 0, 1, 1] and len(test) == 4


# -- bad input -------------------------------------------------------------------------------------------------------


def test_missing_and_unfit_data_is_refused(tmp_path, ucf101):
    with pytest.raises(InputError, match=r"classInd\.txt: cannot be read"):
        data.load(small("ucf101", tmp_path), 0)
    with pytest.raises(InputError, match=r"trainlist02\.txt: cannot be read"):
        data.load(small("ucf101", ucf101, split=2), 0)
    with pytest.raises(InputError, match="holds no <class>_test_split1"):
        data.load(small("hmdb51", tmp_path), 0)
    with pytest.raises(InputError, match="needs train/<class>/"):
        data.load(small("kinetics", tmp_path), 0)
    with pytest.raises(InputError, match=r"12 clips, fewer than data\.batch_size 13"):
        data.load(small("ucf101", ucf101, batch_size=13), 0)


@pytest.mark.parametrize(
    "line, message",
    [
        ("Apply/v_Apply_g09_c01.avi 1", "1 listed videos are not there.*v_Apply_g09_c01"),
        ("Apply/v_Apply_g01_c01.avi 2", r"trainlist01\.txt:13: .* does not fit the classes"),
        ("Nothing/v_Nothing_g01_c01.avi 1", "does not fit the classes"),
    ],
)
def test_a_line_that_does_not_fit_is_refused(tmp_path, line, message):
    root = videos.ucf101(tmp_path)
    with open(root / "ucfTrainTestlist" / "trainlist01.txt", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=message):
        data.load(small("ucf101", root), 0)


def test_other_bad_lists_are_refused(tmp_path):
    root = videos.hmdb51(tmp_path / "hmdb")
    (root / "testTrainMulti_7030_splits" / "wave_test_split1.txt").write_text("clip.avi 3\n")
    with pytest.raises(InputError, match=r"wave_test_split1\.txt:1: .* is not `<file> <0, 1 or 2>`"):
        data.load(small("hmdb51", root), 0)
    root = videos.ucf101(tmp_path / "ucf")
    for line in ("Apply\n", "one Apply\n"):
        (root / "ucfTrainTestlist" / "classInd.txt").write_text(line)
        with pytest.raises(InputError, match="must hold lines `<number> <class>`"):
            data.load(small("ucf101", root), 0)


def test_a_damaged_video_stops_training_and_evaluation_with_its_path(tmp_path):
    root = videos.ucf101(tmp_path, files=1)
    (root / "UCF-101" / "Apply" / "v_Apply_g01_c01.avi").write_bytes(b"no video")
    train, _ = data.load(small("ucf101", root), 0)
    for read in (lambda: train.fetch(torch.arange(1), 1), lambda: train.clips(torch.arange(1), 2)):
        with pytest.raises(InputError, match=r"v_Apply_g01_c01\.avi: does not decode"):
            read()


def test_fingerprints_tell_data_apart(tmp_path, ucf101):
    train, test = data.load(small("ucf101", ucf101), 0)
    about = labelled.describe(small("ucf101", ucf101), train)
    assert about == {"name": "ucf101", "images": 12, "sha256": train.fingerprint()}
    assert train.fingerprint() != test.fingerprint()


def test_the_command_says_what_is_there(ucf101):
    command = [sys.executable, data.__file__, "--root", ucf101]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "present" in lines["ucf101"] and "missing" in lines["hmdb51"] and "https://" in lines["kinetics"]


# -- evaluation ------------------------------------------------------------------------------------------------------


class Bright(nn.Module):
    """Logits that are a fixed linear function of a clip's mean colour."""

    def __init__(self, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        assert not self.training and clips.shape[0] <= 3
        return 3 * clips.mean((2, 3, 4)) @ self.weight.T


def test_evaluation_counts_clips_and_videos(ucf101):
    settings = small("ucf101", ucf101)
    _, test = data.load(settings, 0)
    network = Bright(2).train()
    metrics = evaluate(network, test, settings, CPU, clips=4)
    assert network.training
    index = torch.arange(len(test))
    network.eval()
    with torch.no_grad():
        right = lambda scores: 100 * (scores.argmax(1) == test.labels).float().mean().item()
        scores = torch.stack([torch.cat([network(c[None]) for c in clips]) for clips in test.clips(index, 4)])
        centre = torch.cat([network(c[None]) for c in test.fetch(index, 0)[0]])
    assert metrics == {
        "clip_top1": right(centre),
        "clip_top2": 100.0,
        "video_top1_prob": right(scores.softmax(-1).mean(1)),
        "video_top2_prob": 100.0,
        "video_top1_logit": right(scores.mean(1)),
        "video_top2_logit": 100.0,
    }
    assert set(evaluate(network, test, settings, CPU)) == {"clip_top1", "clip_top2"}
