"""WordPiece of uncased BERT: from a given vocabulary, or trained on the training text; pairs cut as BERT cuts them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD = "[PAD]"
FILE = "vocab.txt"


class WordPiece:
    """Texts to word pieces by a vocabulary, the number of a piece being its place in it.

    Errors: InputError for a vocabulary that holds a piece twice or lacks one of the special ones.
    """

    def __init__(self, vocabulary: Sequence[str], source: str = "the vocabulary"):
        numbers = {piece: number for number, piece in enumerate(vocabulary)}
        missing = [piece for piece in SPECIAL[:4] if piece not in numbers]
        if missing:
            raise InputError(f"{source}: lacks {', '.join(missing)}; give the vocab.txt of an uncased BERT")
        if len(numbers) < len(vocabulary):
            twice = next(piece for i, piece in enumerate(vocabulary) if numbers[piece] != i)
            raise InputError(f"{source}: holds {twice!r} twice; give the vocab.txt of an uncased BERT")
        self.vocabulary = list(vocabulary)
        self.pad, self.cls, self.sep = (numbers[piece] for piece in ("[PAD]", "[CLS]", "[SEP]"))
        self.tokenizer = _pipeline(models.WordPiece(vocab=numbers, unk_token="[UNK]", max_input_chars_per_word=100))

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The pieces of each text, without special ones."""
        return [found.ids for found in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def train(texts: Iterable[str], size: int) -> WordPiece:
    """A vocabulary of at most so many pieces, special ones included, learned from the texts.

    Errors: InputError where the size leaves no room for letters.
    """
    tokenizer = _pipeline(models.WordPiece(unk_token="[UNK]"))
    words: dict[str, None] = {}
    texts = list(texts)
    for text in texts:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        words |= dict.fromkeys(word for word, _ in pieces)
    # The trainer numbers letters inside words in the order of a hash table, another one in each call, and ties between
    # merges go by number; named beforehand they have fixed ones.
    inner = [f"##{letter}" for letter in sorted({letter for word in words for letter in word[1:]})]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIAL, *inner], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    numbers = tokenizer.get_vocab()
    if len(numbers) > size:
        raise InputError(f"data.vocab_size {size}: the letters of the text alone take {len(numbers)}; give more")
    return WordPiece(sorted(numbers, key=numbers.get))


def read(place: str | Path) -> WordPiece:
    """The vocabulary in a file, one piece a line, or in a folder's vocab.txt. Errors: InputError."""
    path = Path(place) / FILE if Path(place).is_dir() else Path(place)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: no readable vocabulary ({getattr(error, 'strerror', None) or error}); give vocab.txt, one word"
            " piece a line, as --data.vocab, or the name of a model with --data.download true"
        ) from error
    return WordPiece([line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)], str(path))


def download(name: str) -> WordPiece:
    """The vocabulary of a model on the Hugging Face hub. Errors: InputError where it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return read(hf_hub_download(name, FILE))
    except InputError:
        raise
    except Exception as error:  # of the network, the hub or the name: all end here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"--data.vocab {name}: its vocabulary cannot be downloaded ({reason}); give a local vocab.txt"
        ) from error


def cut(first: int, second: int, budget: int) -> tuple[int, int]:
    """What stays of a pair: the longer one loses its last piece, the second if both are equal, until they fit."""
    excess = max(0, first + second - budget)
    levelled = min(excess, abs(first - second))
    rest = excess - levelled
    if first > second:
        first -= levelled
    else:
        second -= levelled
    return max(0, first - rest // 2), max(0, second - (rest + 1) // 2)


def _pipeline(model: models.Model) -> Tokenizer:
    """Uncased BERT's steps around a model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
