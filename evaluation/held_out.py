"""What a run can be asked of text that it was not trained on, without any other data: how many bits a byte takes, and
questions that are made of the text, always the same ones.

    choice   which of four passages goes on from a text: one does, three go on from other texts
    cloze    the last word of a text, a word that stands in the text before
"""

import dataclasses
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import read_text
from data.dataset import Dataset, open_dataset
from data.mixture import Data, open_data
from data.tokenizers import Tokenizer, tokenizer_from_meta
from evaluation.figures import Figure, mean_error, ratio_error
from evaluation.scoring import Request, Score, scores
from evaluation.subject import Run, Subject
from evaluation.windows import windows
from runs.folder import data_of

READ = 1 << 16  # tokens, in windows that lie evenly in the text
QUESTIONS = 200  # of each kind, or as many as the text has
BEFORE, AFTER, CHOICES = 192, 32, 4  # characters of a question and of an answer, answers
MADE = ("text", "choice", "cloze")  # what all this is called
MOST_TOKENS = 1 << 25  # of a text, which is in memory
WORD = re.compile(r"(?<=\S)\s[A-Za-z]{4,}(?![A-Za-z])")  # after a space, which belongs to it
BETWEEN = re.compile(r"(?<=\S)\s(?=\S)")  # where a passage may be cut: tokenizers divide before a space


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Documents of tokens, and where they are from. `cut`: whether there was more."""

    name: str
    documents: list[list[int]]
    cut: bool = False

    @property
    def described(self) -> str:
        """How long it is, for people."""
        tokens = sum(map(len, self.documents))
        documents = f" in {len(self.documents):,} documents" if len(self.documents) > 1 else ""
        return f"{'the first ' if self.cut else ''}{tokens:,} tokens{documents}"

    def encoded(self, one: Tokenizer, other: Tokenizer) -> "HeldOut":
        """The same text in the other tokenizer's tokens."""
        return dataclasses.replace(self, documents=[other.encode(one.decode(tokens)) for tokens in self.documents])


@dataclasses.dataclass(frozen=True)
class Question:
    """A text, what may follow it, and which of these does."""

    text: str
    answers: tuple[str, ...]
    right: int


# ---------------------------------------------------------------------------------------------------------------------
# The text


def validation_text(run: Run) -> HeldOut:
    """The split that the run is validated on. Raises UserError where it is not there, or another than it was, and
    where there are several."""
    wanted = run.configuration.run
    data = open_data(wanted.dataset, wanted.mixture, wanted.val_dataset, wanted.data_dir)
    text = own_validation_text(data, wanted.val_dataset, "a text to evaluate on with --text FILE")
    trained_on = data_of(run.checkpoint)
    if not trained_on:
        raise UserError(f"{run.checkpoint} was trained on no data here: name a text with --text FILE")
    if trained_on.get("data of val") != data.splits["val"].checksum:
        raise UserError(
            f"{data.folder} was prepared anew since {run.checkpoint} was trained on it, and what is for validation "
            "now may have been trained on: prepare it as it was, or name a text with --text FILE"
        )
    return text


def own_validation_text(data: Data, val_dataset: str | None, instead: str) -> HeldOut:
    """The one split that a run on these data is validated on. Raises UserError where there are several."""
    if len(data.validation_sources) > 1:
        raise UserError(f"the run is validated on several datasets: name {instead}")
    ((name, dataset),) = data.validation_sources.items()
    return validation_split(dataset, val_dataset or name)


def validation_split(dataset: Dataset, name: str) -> HeldOut:
    """The documents of a dataset's validation split, without their ends, in the dataset's own tokens."""
    split, end, reader = dataset.splits["val"], dataset.tokenizer["end_of_document"], dataset.reader("val")
    read, marks = reader.read(0, min(split.tokens, MOST_TOKENS))
    tokens = read.astype(np.int64)
    pieces = np.split(tokens, np.flatnonzero(reader.ends(read, marks)) + 1)
    documents = [piece[:-1].tolist() if len(piece) and piece[-1] == end else piece.tolist() for piece in pieces]
    name = f"the validation split of {name}"
    return HeldOut(name, [document for document in documents if document], split.tokens > MOST_TOKENS)


def text_of(path: Path, tokenizer: Tokenizer) -> HeldOut:
    """A file as one document; the folder of a prepared dataset as the documents of its validation split, whatever
    tokenizer it was prepared with. Raises UserError."""
    if path.is_dir():
        dataset = open_dataset(path)
        found, its = validation_split(dataset, str(path)), tokenizer_from_meta(dataset.tokenizer, dataset.folder)
        return found.encoded(its, tokenizer)
    text = read_text(path, newline="")
    if not text:
        raise UserError(f"{path} is empty: there is nothing to evaluate on")
    return HeldOut(str(path), [tokenizer.encode(text)])


# ---------------------------------------------------------------------------------------------------------------------
# Bits per byte


@dataclasses.dataclass(frozen=True)
class Read:
    """A window of a text, of which document it is, whether it goes on in it, and what a model says of its tokens."""

    document: int
    is_continued: bool
    window: Request
    score: Score


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text, and the windows of it that were read, in their order."""

    text: HeldOut
    reads: list[Read]

    @property
    def is_of_documents(self) -> bool:
        return len(self.text.documents) > 1

    @property
    def samples(self) -> list[list[Read]]:
        """The windows of each document, or, where there is a single document, each window."""
        if not self.is_of_documents:
            return [[read] for read in self.reads]
        found: dict[int, list[Read]] = {}
        for read in self.reads:
            found.setdefault(read.document, []).append(read)
        return list(found.values())


def read_windows(
    subject: Subject, text: HeldOut, stride: int, most: int | None = None, batch_size: int | None = None
) -> Reading:
    """The text in windows of `stride` new tokens each: `most` tokens of it, or all."""
    every = [
        (number, place > 0, window)
        for number, document in enumerate(text.documents)
        for place, window in enumerate(windows(document, subject.first, subject.block, min(stride, subject.block)))
    ]
    chosen = evenly(every, None if most is None else max(1, most // stride))
    found = scores(subject.model, [window for *_, window in chosen], batch_size, "text")
    return Reading(text, [Read(*one) for one in zip(*zip(*chosen, strict=True), found, strict=True)])


def bits_per_byte(subject: Subject, reading: Reading) -> list[Figure]:
    """Bits per byte and the perplexity of a token.

    The standard error is that over documents, whose windows are alike, or of a single document over its windows.
    """
    nats, size, tokens = np.array([sums_of(subject, sample) for sample in reading.samples]).T
    of = "documents" if reading.is_of_documents else "windows"
    mean, bits = float(nats.sum() / tokens.sum()), nats / math.log(2)
    error = ratio_error(nats, tokens)
    first = Figure(
        task="text",
        metric="bits per byte",
        value=float(bits.sum() / size.sum()),
        error=ratio_error(bits, size),
        chance=None,
        samples=len(nats),
        of=of,
        is_share=False,
        higher_is_better=False,
        sums=(bits, size),
    )
    error = None if error is None else error * math.exp(mean)  # of the exponential, to first order
    return [
        first,
        dataclasses.replace(first, metric="perplexity of a token", value=math.exp(mean), error=error, sums=None),
    ]


def sums_of(subject: Subject, reads: Sequence[Read]) -> tuple[float, int, int]:
    """Nats, bytes and tokens of windows."""
    sizes = (len(subject.tokenizer.decode_bytes(read.window.continuation, read.is_continued)) for read in reads)
    nats = -sum(read.score.log_likelihood for read in reads)
    return nats, sum(sizes), sum(len(read.window.continuation) for read in reads)


def evenly(items: Sequence, most: int | None) -> list:
    """All, or `most` of them that lie evenly."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, most).round().astype(int).tolist()]


# ---------------------------------------------------------------------------------------------------------------------
# Questions


def choices(texts: Sequence[str]) -> list[Question]:
    """Each passage with what follows it, and with what follows the next three passages in a drawn order."""
    places = [(text, match.start()) for text in texts for match in BETWEEN.finditer(text, BEFORE, len(text) - AFTER)]
    passages = [(text[place - BEFORE : place], text[place : place + AFTER]) for text, place in spread(places)]
    random.Random(0).shuffle(passages)
    found = []
    for number, (text, right) in enumerate(passages):
        others = dict.fromkeys(after for _, after in [*passages[number + 1 :], *passages[:number]] if after != right)
        wrong = list(itertools.islice(others, CHOICES - 1))
        if len(wrong) == CHOICES - 1:
            place = number % CHOICES
            found.append(Question(text, (*wrong[:place], right, *wrong[place:]), place))
    return found


def clozes(texts: Sequence[str]) -> list[Question]:
    """Each passage with its last word, which stands in it before."""
    places = [(text, match) for text in texts for match in WORD.finditer(text, BEFORE)]
    found = []
    for text, match in spread([(text, match) for text, match in places if _is_known(text, match)]):
        found.append(Question(text[match.start() - BEFORE : match.start()], (match[0],), 0))
    return found


def _is_known(text: str, match: re.Match) -> bool:
    return re.search(rf"\b{match[0][1:]}\b", text[match.start() - BEFORE : match.start()]) is not None


def spread(places: Sequence) -> list:
    return evenly(places, QUESTIONS)


def ask(subject: Subject, questions: Sequence[Question], batch_size: int | None) -> Iterator[list[Score]]:
    """The scores of each question's answers."""
    pairs = [_request(subject, question.text, answer) for question in questions for answer in question.answers]
    found = iter(scores(subject.model, pairs, batch_size, "questions"))
    for question in questions:
        yield [next(found) for _ in question.answers]


def _request(subject: Subject, text: str, answer: str) -> Request:
    """Encoded together and divided after the tokens that the text has alone, as the harness does."""
    context, whole = subject.encode(text), subject.encode(text + answer)
    return Request(tuple(context), tuple(whole[len(context) :]))


def made_tasks(
    subject: Subject, text: HeldOut, limit: int | None, batch_size: int | None, kinds: Sequence[str] = MADE
) -> list[Figure]:
    """The figures of the kinds of questions, of the first `limit` of each, or of all; where they are not named, of
    those whose answers are not longer than the model's block. A guess at a cloze is the answer that most questions
    have."""
    texts = [subject.tokenizer.decode(document) for document in text.documents]
    figures = []

    def suit(asked: Sequence[Question]) -> bool:
        return bool(asked) and (kinds is not MADE or _fit(subject, asked))

    if "choice" in kinds and suit(asked := choices(texts)[:limit]):
        found = zip(asked, ask(subject, asked, batch_size), strict=True)
        right = [_likeliest(answers) == question.right for question, answers in found]
        figures.append(_figure("choice", "right passage", right, 1 / CHOICES))
    if "cloze" in kinds and suit(asked := clozes(texts)[:limit]):
        right = [answer.is_greedy for (answer,) in ask(subject, asked, batch_size)]
        ((_, most),) = Counter(question.answers for question in asked).most_common(1)
        figures.append(_figure("cloze", "right word", right, most / len(asked)))
    return figures


def _fit(subject: Subject, questions: Sequence[Question]) -> bool:
    requests = (_request(subject, question.text, answer) for question in questions for answer in question.answers)
    return all(len(request.continuation) <= subject.block for request in requests)


def _likeliest(answers: Sequence[Score]) -> int:
    return max(range(len(answers)), key=lambda number: answers[number].log_likelihood)


def _figure(task: str, metric: str, right: Sequence[bool], chance: float) -> Figure:
    values = np.array(right, dtype=float)
    sums = (values, np.ones(len(values)))
    return Figure(task, metric, float(values.mean()), mean_error(values), chance, len(values), sums=sums)
