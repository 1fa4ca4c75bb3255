"""Tasks as arrays of word pieces, and how an epoch of them is fed to the loop."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common import checkpoint, distributed
from common.errors import InputError

import torch
from torch import Tensor

from rebnn.glue import tasks, tokenizer, topics
from rebnn.glue.config import Config, Text
from rebnn.glue.tasks import Row, Task
from rebnn.glue.tokenizer import WordPiece


class Batch(NamedTuple):
    """ids, segments and mask int64 [B, L], labels [B] (int64, float where a number is predicted), index [B] in the
    whole set, weight of the mean loss."""

    ids: Tensor
    segments: Tensor
    mask: Tensor
    labels: Tensor
    index: Tensor
    weight: float


class Sentences:
    """Samples as word pieces: [CLS] a [SEP], or [CLS] a [SEP] b [SEP], padded to one length (section 5).

    ids: int32 [N, L]; lengths, starts (of the second segment; the length where there is none): int64 [N]; labels [N].
    truncated: how many samples were cut.
    """

    def __init__(self, rows: Sequence[Row], task: Task, words: WordPiece, length: int):
        self.task = task
        first = words.pieces([row.first for row in rows])
        second = words.pieces([row.second for row in rows]) if task.second is not None else None
        self.ids = torch.full((len(rows), length), words.pad, dtype=torch.int32)
        self.lengths = torch.empty(len(rows), dtype=torch.int64)
        self.starts = torch.empty_like(self.lengths)
        self.truncated = 0
        for i, pieces in enumerate(first):
            other = second[i] if second else []
            room = length - (3 if second else 2)
            kept, kept_other = tokenizer.cut(len(pieces), len(other), room)
            self.truncated += kept + kept_other < len(pieces) + len(other)
            sample = [words.cls, *pieces[:kept], words.sep]
            self.starts[i] = len(sample)
            sample += [*other[:kept_other], words.sep] if second else []
            self.lengths[i] = len(sample)
            self.ids[i, : len(sample)] = torch.tensor(sample, dtype=torch.int32)
        kind = torch.int64 if task.labels else torch.float32
        self.labels = torch.tensor([row.label for row in rows]).to(kind)

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, index: Tensor, trim: bool = False) -> tuple[Tensor, ...]:
        """ids, segments, mask [B, L] and labels [B] of positions [B]; trim: L is the longest of them."""
        lengths, starts = self.lengths[index, None], self.starts[index, None]
        place = torch.arange(int(lengths.max()) if trim else self.ids.shape[1])
        mask = place < lengths
        segments = mask & (place >= starts)
        return self.ids[index, : len(place)].long(), segments.long(), mask.long(), self.labels[index]

    def fingerprint(self) -> str:
        """sha256 over pieces and labels."""
        sha = hashlib.sha256(self.ids.numpy().tobytes())
        sha.update(self.labels.numpy().tobytes())
        return sha.hexdigest()


class Data(NamedTuple):
    """A task with its training part, its evaluated parts by name, its word pieces and what was left out or cut."""

    task: Task
    train: Sentences
    evaluated: dict[str, Sentences]
    words: WordPiece
    counts: dict[str, int]

    def about(self, name: str) -> dict:
        """What env.json and checkpoints say of the data."""
        return {"name": name, "sentences": len(self.train), "sha256": self.train.fingerprint()}


def task_of(settings: Text) -> Task:
    """The task that a config names."""
    return topics.TASK if settings.name == "topics" else tasks.TASKS[settings.name]


def load(config: Config, vocabulary: Sequence[str] | None = None) -> Data:
    """Everything that a config's task consists of; vocabulary: that of a checkpoint, used instead of any other.

    Errors: InputError for data or a vocabulary that is missing or damaged, a set smaller than a batch, and a length
    that holds no words.
    """
    settings, task = config.data, task_of(config.data)
    length = min(settings.max_length, config.network.positions)
    if length < 4:
        raise InputError(f"data.max_length {length}: holds no words beside [CLS] and [SEP]; give at least 4")
    counts, rows = {"longest": length}, {}
    for part in ("train", *tasks.parts(task, settings.evaluate)):
        found, short = (topics.read(part), 0) if task is topics.TASK else tasks.read(task, settings.root, part)
        rows[part] = (_spread(found, settings.limit) if settings.limit else found), short
        if short:
            counts[f"{part}_short_rows"] = short
    if len(rows["train"][0]) < settings.batch_size:
        raise InputError(
            f"the training set has {len(rows['train'][0])} samples, fewer than data.batch_size {settings.batch_size}"
        )
    words = WordPiece(vocabulary) if vocabulary else word_pieces(config, rows["train"][0])
    sets = {part: Sentences(found, task, words, length) for part, (found, _) in rows.items()}
    counts |= {f"{part}_truncated": one.truncated for part, one in sets.items()}
    return Data(task, sets.pop("train"), sets, words, counts)


def word_pieces(config: Config, rows: Sequence[Row]) -> WordPiece:
    """The vocabulary that a config asks for. Errors: InputError."""
    settings = config.data
    if settings.vocab:
        return tokenizer.download(settings.vocab) if settings.download else tokenizer.read(settings.vocab)
    for name, given in (
        ("teacher.checkpoint", config.teacher.checkpoint),
        ("teacher.start", config.teacher.start),
        ("student.start", config.student.start),
    ):
        if given:
            return _beside(name, Path(given))
    return tokenizer.train((text for row in rows for text in row[:2] if text), settings.vocab_size)


def _beside(option: str, weights: Path) -> WordPiece:
    """The vocabulary that belongs to weights: in their folder, or inside a checkpoint of ours."""
    if not weights.exists():
        raise InputError(f"{weights}: there are no weights; give --{option} a folder or a file that exists")
    folder = weights if weights.is_dir() else weights.parent
    if (folder / tokenizer.FILE).is_file():
        return tokenizer.read(folder)
    try:
        state = checkpoint.load_own(weights, "rebnn")["state"]
        return WordPiece(state["vocabulary"], str(weights))
    except (InputError, KeyError) as error:
        raise InputError(
            f"{weights}: --{option} has no vocabulary beside it ({folder / tokenizer.FILE}); its word pieces mean "
            "nothing without it: give --data.vocab"
        ) from error


def batches(
    data: Sentences, order: Tensor, settings: Text, device: torch.device, *, start: int = 0, micro_batches: int = 1
) -> Iterator[list[Batch]]:
    """This rank's micro-batches of every step from `start` on, as one list a step.

    order: int64 [n], positions in the order of the epoch; the last batch may be smaller.
    """
    for step in order.split(settings.batch_size)[start:]:
        parts = distributed.share(step, micro_batches)
        yield [
            Batch(*(x.to(device, non_blocking=True) for x in (*data.fetch(part, settings.trim), part)), weight)
            for part, weight in parts
        ]


def test_batches(data: Sentences, settings: Text, device: torch.device) -> Iterator[Batch]:
    """This rank's share of a set, in order."""
    share = torch.arange(len(data)).tensor_split(distributed.world())[distributed.rank()]
    for part in share.split(max(1, settings.test_batch_size // distributed.world())) if len(share) else []:
        yield Batch(*(x.to(device, non_blocking=True) for x in (*data.fetch(part, settings.trim), part)), 1.0)


def _spread(rows: list[Row], limit: int) -> list[Row]:
    """At most so many rows, evenly spread over the file, which may be sorted by label."""
    return [rows[i * len(rows) // limit] for i in range(limit)] if limit < len(rows) else rows


def report(root: str | Path) -> None:
    """Print which tasks lie below a folder, and where the others come from."""
    print(f"{'task':<10} {'here':<8} {'expected at':<32} source")
    print(f"{'topics':<10} {'present':<8} {'-':<32} pydoc_data.topics of Python's standard library (PSF licence)")
    for name, task in tasks.TASKS.items():
        needed = [Path(root) / task.folder / f"{part}.tsv" for part in ("train", *task.dev)]
        here = "present" if all(path.is_file() for path in needed) else "missing"
        print(f"{name:<10} {here:<8} {needed[0].parent!s:<32} https://gluebenchmark.com/tasks (own licences)")
