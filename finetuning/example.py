"""The eye test: one conversation as a model will read it, with the tokens that count."""

import itertools

import numpy as np

from common.texts import harmless
from data.dataset import COUNTED, Dataset
from data.packing import lengths_of_documents
from data.tokenizers import Tokenizer

LOOKED_AT = 100  # conversations, of which the shortest is shown
IN_COLOUR, IN_MARKS = ("\x1b[32m", "\x1b[0m"), ("[[", "]]")


def example(dataset: Dataset, tokenizer: Tokenizer, in_colour: bool) -> list[str]:
    """Lines for people: the shortest of the first training conversations. A line's end and other characters that a
    terminal would obey are written out."""
    ids, counts = _shortest(dataset)
    begin, end = IN_COLOUR if in_colour else IN_MARKS
    lines = [
        f"one example, of {len(ids):,} tokens; the {int(counts.sum()):,} that count are "
        f"{'green' if in_colour else f'between {begin} and {end}'}:"
    ]
    text = ""
    for counted, run in itertools.groupby(zip(ids.tolist(), counts.tolist(), strict=True), key=lambda one: one[1]):
        piece = tokenizer.decode_bytes([token for token, _ in run], continued=bool(text)).decode("utf-8", "replace")
        broken = [harmless(line) for line in piece.replace("\n", "\\n\n").split("\n")]
        text += "\n".join(f"{begin}{line}{end}" if counted and line else line for line in broken)
    return lines + [f"  {line}" for line in text.split("\n")]


def _shortest(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(tokens,) ids, and whether they count."""
    split = dataset.splits["train"]
    lengths = lengths_of_documents(split, dataset.dtype, dataset.tokenizer["end_of_document"])[:LOOKED_AT]
    number = int(lengths.argmin())
    first = int(lengths[:number].sum(dtype=np.int64))
    ids, marks = dataset.reader("train").read(first, int(lengths[number]))
    assert marks is not None
    return ids, marks & COUNTED > 0
