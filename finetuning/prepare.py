"""Conversations to a prepared dataset in a run's folder, of whose tokens those count that the model would write.

out/<run>/data/conversations/    a dataset (data/dataset.py), with marks; each document is a conversation, of pairs of
                                 answers (finetuning/pairs.py) the chosen one and then the rejected one, of labelled
                                 answers (finetuning/labelled.py) each and then its prompt with another's; or a prompt
                                 (finetuning/prompts.py), with what it asks beside them (data/questions.py)
    prepared.json                what it was made of and what was counted, written last
out/<run>/chat_template.jinja    the template
"""

import dataclasses
import hashlib
import itertools
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.files import replace_file, writing_to
from data.dataset import dtype_for
from data.preparation import SEED
from data.questions import write_questions
from data.tokenizers import Kept
from data.writer import DatasetWriter
from finetuning.conversations import read_conversations
from finetuning.encoding import Encoded, Encoder
from finetuning.labelled import Labelled, beside_others, check_labels, read_labelled
from finetuning.pairs import read_pairs
from finetuning.prompts import encoded_prompts
from finetuning.templates import ChatTemplate
from runs.config import DATA, OF_LABELS, RunConfig
from runs.folder import CHAT_TEMPLATE

NAME = "conversations"
NOTE = "prepared.json"
CONVERSATIONS, PAIRS, LABELLED, PROMPTS = "conversations", "pairs", "labelled answers", "prompts"  # what is prepared
KINDS = {PAIRS: "pairs", LABELLED: "labels", PROMPTS: "prompts"}  # to the writer of the dataset


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be made into a dataset for a run from `model`. Without files for validation a share of the
    conversations is for it."""

    model: str
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    val_fraction: float
    kept: Kept
    template: ChatTemplate
    block_size: int
    what: str = CONVERSATIONS
    reference: str | None = None  # that answers are compared with, where it is not the model
    max_completion: int | None = None  # tokens that the model is to write after prompts, where the data are these
    weights: dict[str, str] = dataclasses.field(default_factory=dict)  # what tells the model's from others

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the dataset, and the model, as JSON has it."""
        of_answers = {PAIRS: {"of_pairs": True}, LABELLED: {"of_labels": True}}.get(self.what)
        return {
            "model": self.model,
            "weights": self.weights,
            "data": [_sha256(path) for path in self.train],
            "val_data": [_sha256(path) for path in self.val] or self.val_fraction,
            "chat_template": hashlib.sha256(self.template.source.encode("utf-8")).hexdigest(),
            "tokenizer": {name: value for name, value in self.kept.entry.items() if name != "file"},
            "block_size": self.block_size,
            **({} if of_answers is None else {**of_answers, "reference": self.reference}),
            **({} if self.max_completion is None else {"max_completion": self.max_completion}),
        }


def what_is_learned(run: RunConfig) -> str:
    """What a run with these keys needs to be prepared."""
    if run.reinforce is not None:
        return PROMPTS
    if run.preference is None:
        return CONVERSATIONS
    return LABELLED if run.preference in OF_LABELS else PAIRS


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the dataset in a run's folder was made of, as Task.identity has it, and what was counted, for people."""

    identity: dict[str, Any]
    counted: list[str]


def read_prepared(run: Path) -> Prepared | None:
    """None without one."""
    folder = run / DATA / NAME
    try:
        found = Prepared(**json.loads((folder / NOTE).read_text(encoding="utf-8")))
        return found if (folder / "meta.json").is_file() else None
    except (OSError, ValueError, TypeError):
        return None


def prepare(task: Task, run: Path) -> Prepared:
    """Writes the dataset and the template into the run's folder. Raises UserError."""
    encoder = Encoder(task.kept.tokenizer, task.template, task.block_size)
    (train, val), counts = (_labelled if task.what == LABELLED else _units)(task, encoder)
    folder = run / DATA / NAME
    with writing_to(folder):
        (folder / NOTE).unlink(missing_ok=True)
    entry, size = task.kept.entry, task.kept.tokenizer.vocab_size
    source = ", ".join(path.name for path in (*task.train, *task.val))
    splits, of = {"train": [*itertools.chain(*train)], "val": [*itertools.chain(*val)]}, KINDS.get(task.what)
    with DatasetWriter(folder, entry, size, f"conversations of {source}", task.kept.content, True, of) as writer:
        for split, some in splits.items():
            for one in some:
                writer.add_marked(split, one.ids, one.counts, one.text_bytes, one.counted_bytes, one.desirable)
    if task.what == PROMPTS:
        questions = {split: [one.question for one in some if one.question] for split, some in splits.items()}
        write_questions(folder, encoder.end_of_answers, questions)
    counted = _counted(counts, {"training": train, "validation": val}, task)
    found = Prepared(task.identity, counted)
    with writing_to(run):
        replace_file(run / CHAT_TEMPLATE, task.template.source.encode("utf-8"))
        replace_file(folder / NOTE, (json.dumps(vars(found), indent=1) + "\n").encode(), on_disk=True)
    return found


def remove_prepared(run: Path) -> None:
    """Takes away what `prepare` has written."""
    if read_prepared(run) is not None:
        shutil.rmtree(run / DATA / NAME, ignore_errors=True)
        (run / CHAT_TEMPLATE).unlink(missing_ok=True)


def wait_for(task: Task, run: Path, seconds: int) -> None:
    """Until the first rank has prepared the dataset. Raises UserError after so long."""
    identity, end = task.identity, time.monotonic() + seconds
    while (found := read_prepared(run)) is None or found.identity != identity:
        if time.monotonic() > end:
            raise UserError(f"the first rank has prepared no dataset in {run / 'data'} for {seconds} s")
        time.sleep(0.1)


One = TypeVar("One")
Unit = tuple[Encoded, ...]  # what stays together: a conversation, a prompt, a pair, or a labelled answer and another's


def _units(task: Task, encoder: Encoder) -> tuple[tuple[list[Unit], list[Unit]], Counter[str]]:
    """Conversations, pairs or prompts for training and for validation, and what was left out."""
    (train, of_train), (val, of_val) = (_encoded_units(files, encoder, task) for files in (task.train, task.val))
    return (train, val) if task.val else _divided(train, task.val_fraction), of_train + of_val


def _encoded_units(files: Sequence[Path], encoder: Encoder, task: Task) -> tuple[list[Unit], Counter[str]]:
    """What files have, and what was left out. Raises UserError."""
    if task.max_completion is not None:
        return encoded_prompts(files, encoder, task.max_completion)
    return (_encoded_pairs if task.what == PAIRS else _encoded)(files, encoder)


def _labelled(task: Task, encoder: Encoder) -> tuple[tuple[list[Unit], list[Unit]], Counter[str]]:
    """Labelled answers, likewise, each beside another of its split. Both of a line are for the same split."""
    train, of_train = _fitting(task.train, encoder)
    val, of_val = _fitting(task.val, encoder)
    if not task.val:
        train, val = _divided(train, task.val_fraction, at_least=2)
    check_labels([one.desirable for line in train for one, _ in line], task.train)
    counts, units = of_train + of_val, list[list[Unit]]()
    for split, lines in (("training", train), ("validation", val)):
        answers = [*itertools.chain(*lines)]
        found = beside_others(answers, encoder, split)
        counts["without room"] += len(answers) - len(found)
        counts["of others cut"] += sum(beside.cut for _, beside in found)
        units.append([tuple(_in_few_bytes(one, encoder) for one in both) for both in found])
    return (units[0], units[1]), counts


def _fitting(files: Sequence[Path], encoder: Encoder) -> tuple[list[list[tuple[Labelled, Encoded]]], Counter[str]]:
    """Of each line of files the labelled answers that fit, also as tokens, and what was left out."""
    found: list[list[tuple[Labelled, Encoded]]] = []
    counts: Counter[str] = Counter()
    for line in read_labelled(files):
        counts["read"] += len(line)
        fitting = [(one, ids) for one in line if (ids := encoder.encode_last(one.conversation)) is not None]
        counts["without room"] += len(line) - len(fitting)
        if fitting:
            found.append(fitting)
    if files and not found:
        raise UserError(_none_fits(files, counts, LABELLED, encoder))
    return found, counts


def _none_fits(files: Sequence[Path], counts: Counter[str], what: str, encoder: Encoder) -> str:
    if not counts["read"]:
        return f"{', '.join(map(str, files))}: there are no {what} in it"
    return (
        f"{', '.join(map(str, files))}: of {counts['read']:,} {what} none fits in block_size={encoder.block_size}: "
        "take a larger one, or other data"
    )


def _encoded(files: Sequence[Path], encoder: Encoder) -> tuple[list[Unit], Counter[str]]:
    """The conversations of files, which stay in memory, and what was left out."""
    found: list[Unit] = []
    counts: Counter[str] = Counter()
    for conversation in tqdm(read_conversations(files), "encoding", unit=" conversations", disable=None, leave=False):
        counts["read"] += 1
        if not conversation.turns:
            counts["without an answer"] += 1
            continue
        counts["turns after the last answer"] += conversation.left_out
        texts = encoder.encode_all(conversation)
        if not texts:
            counts["without room"] += 1
            continue
        counts["exchanges"] += texts[0].left_out
        counts["cut"] += texts[0].cut
        counts["divided"] += len(texts) > 1
        found.append(tuple(_in_few_bytes(one, encoder) for one in texts))
    if files and not counts["read"]:
        raise UserError(_none_fits(files, counts, CONVERSATIONS, encoder))
    if files and not found:
        raise UserError(
            f"{', '.join(map(str, files))}: of {counts['read']:,} conversations none has an answer that begins within "
            f"block_size={encoder.block_size}: take a larger one, or other data"
        )
    return found, counts


def _encoded_pairs(files: Sequence[Path], encoder: Encoder) -> tuple[list[Unit], Counter[str]]:
    """The pairs of files, likewise."""
    found: list[Unit] = []
    counts: Counter[str] = Counter()
    for pair in read_pairs(files):
        counts["read"] += 1
        both = [_in_few_bytes(one, encoder) for half in pair if (one := encoder.encode_last(half)) is not None]
        if len(both) < 2:
            counts["without room"] += 1
        else:
            found.append(tuple(both))
    if files and not found:
        raise UserError(_none_fits(files, counts, PAIRS, encoder))
    return found, counts


def _in_few_bytes(one: Encoded, encoder: Encoder) -> Encoded:
    return dataclasses.replace(one, ids=one.ids.astype(dtype_for(encoder.tokenizer.vocab_size)))


def _divided(conversations: list[One], share: float, at_least: int = 1) -> tuple[list[One], list[One]]:
    """Those for training and a share for validation, but `at_least` so many, which are drawn, always the same ones;
    each in their order."""
    if len(conversations) < 2:
        raise UserError(
            f"{len(conversations)} conversations cannot be split into training and validation: give more, or --val_data"
        )
    n_val = min(max(at_least, math.ceil(share * len(conversations))), len(conversations) - 1)
    drawn = set(np.random.default_rng(SEED).permutation(len(conversations))[:n_val].tolist())
    train = [one for number, one in enumerate(conversations) if number not in drawn]
    return train, [conversations[number] for number in sorted(drawn)]


def _counted(counts: Counter[str], splits: dict[str, list[Unit]], task: Task) -> list[str]:
    """What became of all that was read, turns and tokens. Those of others, beside labelled answers, are not counted."""
    what, block_size = task.what, task.block_size
    lines = [f"{what}: {counts['read']:,} read"]
    for name, units in splits.items():
        some = [unit[0] for unit in units] if what == LABELLED else [*itertools.chain(*units)]
        tokens, counted = sum(len(one.ids) for one in some), sum(int(one.counts.sum()) for one in some)
        answers = sum(one.answers for one in some)
        of_them = f"{sum(one.desirable for one in some):,} desirable" if what == LABELLED else f"{answers:,} answers"
        having = f"{of_them}, {tokens:,} tokens, of which {counted:,} count" if answers else f"{tokens:,} tokens"
        lines.append(f"{name}: {len(units):,} {what}, {having}")
    too_long = {
        CONVERSATIONS: f"of which nothing that counts is in the first {block_size:,} tokens",
        PAIRS: f"of which one is longer than {block_size:,} tokens",
        LABELLED: f"that are, with their prompts, longer than {block_size:,} tokens",
        PROMPTS: f"which leave no room for {task.max_completion} tokens in {block_size:,}",
    }[what]
    left_out = {
        f"{what} without an answer": counts["without an answer"],
        f"{what} {too_long}": counts["without room"],
        "turns after a last answer": counts["turns after the last answer"],
        f"exchanges beyond {block_size:,} tokens": counts["exchanges"],
    }
    said = [f"{count:,} {name}" for name, count in left_out.items() if count]
    lines.append(f"left out: {', '.join(said) or 'nothing'}")
    if counts["cut"]:
        lines.append(f"cut after {block_size:,} tokens: {counts['cut']:,} conversations, in their first exchange")
    if counts["divided"]:
        lines.append(
            f"a text for each answer: {counts['divided']:,} conversations, as the chat template rewrites earlier turns"
        )
    if counts["of others cut"]:
        lines.append(f"cut after {block_size:,} tokens: {counts['of others cut']:,} of others' answers to a prompt")
    return lines
