"""The eye test: one conversation, both of a pair, or a prompt and its answer, as a model will read it, with the tokens
that count."""

import itertools
from collections.abc import Iterator

import numpy as np

from common.texts import harmless
from data.dataset import COUNTED, DESIRABLE, Dataset
from data.packing import lengths_of_documents
from data.questions import read_questions
from data.tokenizers import Tokenizer

LOOKED_AT = 100  # conversations, or pairs, of which the shortest is shown
IN_COLOUR, IN_MARKS = ("\x1b[32m", "\x1b[0m"), ("[[", "]]")


def example(dataset: Dataset, tokenizer: Tokenizer, in_colour: bool) -> list[str]:
    """Lines for people: the shortest of the first training conversations, or pairs of these. A line's end and other
    characters that a terminal would obey are written out."""
    lines = []
    begin, end = IN_COLOUR if in_colour else IN_MARKS
    for what, ids, counts in _shortest(dataset):
        shown = f"the {int(counts.sum()):,} that count are {'green' if in_colour else f'between {begin} and {end}'}"
        lines.append(f"{what}, of {len(ids):,} tokens; {shown if counts.any() else 'the model writes what follows'}:")
        text = ""
        for counted, run in itertools.groupby(zip(ids.tolist(), counts.tolist(), strict=True), key=lambda one: one[1]):
            piece = tokenizer.decode_bytes([token for token, _ in run], continued=bool(text)).decode("utf-8", "replace")
            broken = [harmless(line) for line in piece.replace("\n", "\\n\n").split("\n")]
            text += "\n".join(f"{begin}{line}{end}" if counted and line else line for line in broken)
        lines += [f"  {line}" for line in text.split("\n")]
    return lines


def _shortest(dataset: Dataset) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """What it is, (tokens,) ids, and whether they count."""
    split, reader = dataset.splits["train"], dataset.reader("train")
    assert split.marks is not None
    names: tuple[str, ...] = ("one example",)
    if split.marks.of_pairs:
        names = ("a chosen answer", "the one rejected for it")
    if split.marks.of_labels:
        names = ("an undesirable answer", "another's answer to its prompt, which KL is estimated with")
    lengths = lengths_of_documents(split, dataset.dtype, dataset.tokenizer["end_of_document"]).astype(np.int64)
    units = lengths[: LOOKED_AT * len(names)].reshape(-1, len(names))
    number = int(units.sum(axis=1).argmin())
    first = int(units[:number].sum())
    if split.marks.of_prompts:
        answer = read_questions(dataset, "train")[number].answer
        names = (f"a prompt, whose answer is {answer!r}",)
    for name, length in zip(names, units[number].tolist(), strict=True):
        ids, marks = reader.read(first, length)
        assert marks is not None
        yield "a desirable answer" if marks[-1] & DESIRABLE else name, ids, marks & COUNTED > 0
        first += length
