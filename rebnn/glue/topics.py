"""The embedded task: of which topic of Python's reference is a passage? The texts are part of the standard library.

`pydoc_data.topics` is what `help()` shows. It differs a little between Python versions, which the data's sha256 tells.
"""

from rebnn.glue.tasks import Row, Task

TOPICS = ("specialnames", "compound", "string-methods", "formatstrings", "typesseq")
"""special methods, compound statements, methods of strings, format strings, sequence types"""
WORDS = 16
"""words of a passage"""
HELD_OUT = 5
"""every fifth passage is held out"""

TASK = Task("topics", 0, None, 1, TOPICS)


def read(part: str) -> list[Row]:
    """The passages of part `train`, or the held-out ones: runs of 16 words in the order of the text."""
    from pydoc_data.topics import topics

    rows = []
    for label, topic in enumerate(TOPICS):
        words = topics[topic].split()
        passages = [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS + 1, WORDS)]
        chosen = [p for i, p in enumerate(passages) if (i % HELD_OUT == HELD_OUT - 1) != (part == "train")]
        rows += [Row(passage, None, float(label)) for passage in chosen]
    return rows
