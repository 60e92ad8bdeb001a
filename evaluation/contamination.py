"""Which samples of an evaluation set a run may have trained on: those that have so many words in a row with its
training split. The words and their hashes are those of curation (data/curation/contamination.py), which the extra
`curation` brings; 13 words are GPT-3's measure (Brown et al. 2020, appendix C)."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from common.errors import UserError
from data.curation.contamination import hashes_of
from data.dataset import Dataset
from data.mixture import open_data
from data.tokenizers import tokenizer_from_meta
from evaluation.extras import Extra
from evaluation.figures import Figure, mean_error, table
from evaluation.held_out import Read, Reading, bits_per_byte
from evaluation.subject import Run, Subject
from runs.folder import data_of

WORDS = 13  # in a row
PIECE = 1 << 20  # tokens of a document that are in memory at a time,
OVERLAP = 1 << 10  # of which so many are in the next piece, too
CUT_WORD = re.compile(r"\A\S*"), re.compile(r"\S*\Z")  # at the beginning and the end of a piece


@dataclasses.dataclass(frozen=True)
class Found:
    """Of samples (n,): which have words in a row with the training split, and which have too few to be found."""

    contaminated: NDArray[np.bool_]
    too_short: NDArray[np.bool_]


# ---------------------------------------------------------------------------------------------------------------------
# Looking


def look(samples: Sequence[Sequence[str]], training: Iterable[str]) -> Found:
    """Samples of one text or several each, against the texts of training, which are read once."""
    where: dict[int, set[int]] = {}  # by a hash the samples that have it
    for number, texts in enumerate(samples):
        for text in texts:
            for one in hashes_of(text, WORDS):
                where.setdefault(one, set()).add(number)
    long_enough = set().union(*where.values())
    found: set[int] = set()
    for text in training if where else ():
        for one in hashes_of(text, WORDS):
            if one in where:
                found |= where.pop(one)
    numbers = np.arange(len(samples))
    return Found(np.isin(numbers, list(found)), ~np.isin(numbers, list(long_enough)))


def training_texts(run: Run) -> Iterator[str]:
    """The documents of the run's training split, of which a part at a time is in memory. Raises UserError where it is
    not there, or another than it was."""
    wanted = run.configuration.run
    data = open_data(wanted.dataset, wanted.mixture, wanted.val_dataset, wanted.data_dir)
    if data_of(run.checkpoint).get("data of train") != data.splits["train"].checksum:
        raise UserError(
            f"--contamination: {data.folder} was prepared anew since {run.checkpoint} was trained on it: prepare it as "
            "it was"
        )
    total = sum(source.splits["train"].tokens for source in data.sources.values())
    with tqdm(total=total, desc="training data", unit="tok", unit_scale=True, leave=False) as bar:
        for source in data.sources.values():
            yield from texts_of(source, bar)


def texts_of(dataset: Dataset, bar: tqdm) -> Iterator[str]:
    """The training documents; one of more than PIECE tokens in pieces, which have whole words and overlap."""
    split, end, reader = dataset.splits["train"], dataset.tokenizer["end_of_document"], dataset.reader("train")
    tokenizer = tokenizer_from_meta(dataset.tokenizer, dataset.folder)
    open_ended, is_cut = np.array([], dtype=dataset.dtype), False
    for start in range(0, split.tokens, PIECE):
        read, marks = reader.read(start, min(PIECE, split.tokens - start))
        ends = len(open_ended) + np.flatnonzero(reader.ends(read, marks))
        *whole, open_ended = np.split(np.concatenate([open_ended, read]), ends + 1)
        for document in whole:
            text = document[:-1] if document[-1] == end else document
            yield _whole_words(tokenizer.decode(text.tolist()), is_cut, False)
            is_cut = False
        if len(open_ended) >= PIECE:
            yield _whole_words(tokenizer.decode(open_ended.tolist()), is_cut, True)
            open_ended, is_cut = open_ended[-OVERLAP:], True
        bar.update(min(PIECE, split.tokens - start))
    yield _whole_words(tokenizer.decode(open_ended.tolist()), is_cut, False)


def _whole_words(text: str, cut_before: bool, cut_after: bool) -> str:
    """Without the words that may be parts of others. Where there is no space near, as in Chinese, any place will do."""
    for is_cut, word in zip((cut_before, cut_after), CUT_WORD, strict=True):
        if is_cut and len(found := word.search(text)[0]) < OVERLAP // 4:  # type: ignore[index]
            text = text[len(found) :] if word is CUT_WORD[0] else text[: len(text) - len(found)]
    return text


# ---------------------------------------------------------------------------------------------------------------------
# With and without


def check(
    subject: Subject,
    tasks: dict[str, list[dict[str, Any]]],
    reading: Reading | None,
    figures: Sequence[Figure],
) -> Extra:
    """The samples of tasks, as the harness has them, and the documents or windows of a text. Raises UserError for what
    was not trained here."""
    if subject.run is None:
        raise UserError(f"--contamination is of a run: {subject.name} does not say what it was trained on")
    asked = {name: [_texts(doc) for doc in _docs(own).values()] for name, own in tasks.items()}
    if reading is not None:
        asked["text"] = [[_read_text(subject, own)] for own in reading.samples]
    every = [sample for samples in asked.values() for sample in samples]
    found, lines, values, start = look(every, training_texts(subject.run)), [], {}, 0
    for name, samples in asked.items():
        own = Found(*(part[start : start + len(samples)] for part in (found.contaminated, found.too_short)))
        start += len(samples)
        if name in tasks:
            parts = _of_task(name, tasks[name], own, figures)
        elif reading is not None:
            parts = _of_text(subject, reading, own)
        count, short = int(own.contaminated.sum()), int(own.too_short.sum())
        lines += [
            f"contamination: {name}: {count:,} of {len(samples):,} samples ({count / len(samples):.1%}) have {WORDS} "
            f"words in a row with the training data" + (f"; {short:,} have fewer words" if short else "")
        ]
        lines += table([figure for _, figure in parts]) if count else []
        values[name] = {
            "words": WORDS,
            "samples": len(samples),
            "contaminated": count,
            "too_short": short,
            "which": np.flatnonzero(own.contaminated).tolist(),
            "figures": [figure.as_json() | {"samples_are": which} for which, figure in parts],
        }
    return Extra("contamination", lines, values)


def _docs(samples: Sequence[dict[str, Any]]) -> dict[int, Any]:
    """By its number each question once, also of a task whose answers are filtered in several ways."""
    return {sample["doc_id"]: sample["doc"] for sample in samples}


def _texts(doc: Any) -> list[str]:
    """The texts of a task's sample, each on its own: what is asked, what may be answered."""
    if isinstance(doc, str):
        return [doc]
    inner = doc.values() if isinstance(doc, dict) else doc if isinstance(doc, list | tuple) else ()
    return [text for one in inner for text in _texts(one)]


def _read_text(subject: Subject, reads: Sequence[Read]) -> str:
    """What was predicted of a document, or a window."""
    return subject.tokenizer.decode([token for read in reads for token in read.window.continuation])


Part = tuple[str, Figure]  # all, clean or contaminated samples


def _of_text(subject: Subject, reading: Reading, found: Found) -> list[Part]:
    parts = []
    for which, chosen in _chosen(found):
        kept = [read for sample, is_kept in zip(reading.samples, chosen, strict=True) if is_kept for read in sample]
        if kept:
            figure = bits_per_byte(subject, dataclasses.replace(reading, reads=kept))[0]
            parts.append((which, dataclasses.replace(figure, of=f"{which} {figure.of}")))
    return parts


def _of_task(name: str, samples: Sequence[dict[str, Any]], found: Found, figures: Sequence[Figure]) -> list[Part]:
    """Of each metric that is the mean of what its samples have. What guessing has is known of all samples only."""
    places, parts = {doc_id: place for place, doc_id in enumerate(_docs(samples))}, []
    for figure in (figure for figure in figures if (figure.parts or (figure.task,)) == (name,)):
        metric, _, filtered = figure.metric.partition(" (")
        own = [sample for sample in samples if sample["filter"] == (filtered.rstrip(")") or "none")]
        values = [sample.get(metric) for sample in own]
        if not all(isinstance(value, int | float) for value in values):
            continue
        numbers, of_samples = np.array(values, dtype=float), np.array([places[one["doc_id"]] for one in own])
        if not math.isclose(numbers.mean(), figure.value, rel_tol=1e-9, abs_tol=1e-12):
            continue
        for which, chosen in _chosen(found):
            if len(kept := numbers[chosen[of_samples]]):
                part = dataclasses.replace(figure, value=float(kept.mean()), error=mean_error(kept), samples=len(kept))
                chance = figure.chance if which == "all" else None
                parts.append((which, dataclasses.replace(part, chance=chance, of=f"{which} samples")))
    return parts


def _chosen(found: Found) -> list[tuple[str, NDArray[np.bool_]]]:
    """Which samples are of which kind."""
    bad = found.contaminated
    return [("all", np.ones_like(bad)), ("clean", ~bad), ("contaminated", bad)]
