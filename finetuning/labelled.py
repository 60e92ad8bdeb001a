"""Answers that are labelled one by one, desirable or not, in the layouts that people keep them in.

    labelled   {"prompt": "..." or [turns], "completion": "..." or [turn], "label": true or false}
    pairs      as finetuning/pairs.py has them: the chosen answer is desirable, the rejected one is not

Each is learned beside another's answer to its prompt: of how likely a model finds these it is told how far it is from
the reference. Who is beside whom is decided here, once, and not batch by batch: then it is the same whatever divides a
batch, and the reference is asked of these, too, before a run begins.
"""

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from data.documents import read_values
from finetuning.conversations import Conversation
from finetuning.encoding import Encoded, Encoder
from finetuning.pairs import answered, pair_of

KNOWN = "prompt, completion and label; or prompt, chosen and rejected"


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A conversation, whose last answer is desirable or not."""

    conversation: Conversation
    desirable: bool


def read_labelled(files: Sequence[Path]) -> Iterator[tuple[Labelled, ...]]:
    """What each line of files (data/documents.py) has, in order. Raises UserError, naming file and line."""
    for path in files:
        for where, value in read_values(path):
            yield labelled_of(value, where)


def labelled_of(value: Any, where: str) -> tuple[Labelled, ...]:
    """The labelled answer, or two of them, that a JSON object is. Raises UserError."""
    keys = {key for key, one in value.items() if one is not None} if isinstance(value, dict) else set()
    if {"chosen", "rejected"} <= keys:
        chosen, rejected = pair_of(value, where)
        return Labelled(chosen, True), Labelled(rejected, False)
    if not {"prompt", "completion", "label"} <= keys:
        found = ", ".join(map(str, value)) or "(none)" if isinstance(value, dict) else "no object"
        raise UserError(f"{where} has the keys {found}; what is known: {KNOWN}")
    if not isinstance(value["label"], bool):
        raise UserError(f"{where}: 'label' must be true, for a desirable answer, or false, not {value['label']!r}")
    return (Labelled(answered(value, "completion", where), value["label"]),)


def check_labels(labels: Sequence[bool], files: Sequence[Path]) -> None:
    """Raises UserError where nothing can be told apart."""
    if len(set(labels)) < 2:
        word = "desirable" if labels[0] else "undesirable"
        raise UserError(
            f"{', '.join(map(str, files))}: all {len(labels):,} answers are {word}: preference='kto' needs both; "
            "answers that are all good are learned with config/sft.py"
        )


def beside_others(
    answers: Sequence[tuple[Labelled, Encoded]], encoder: Encoder, split: str
) -> list[tuple[Encoded, Encoded]]:
    """Each labelled answer's tokens, and then those of its prompt with another's, which is cut where it does not fit;
    without those of which nothing does. Raises UserError where there are no others."""
    try:
        others = answers_of_others([one.conversation.turns[:-1] for one, _ in answers])
    except ValueError:
        raise UserError(
            f"of {len(answers):,} labelled answers for {split} more than half are to one prompt, and each is learned "
            "beside the answer to another: give more prompts, or another --val_fraction or --val_data"
        ) from None
    found = []
    for (one, own), other in zip(answers, others.tolist(), strict=True):
        turns = (*one.conversation.turns[:-1], answers[other][0].conversation.turns[-1])
        beside = encoder.encode_last(dataclasses.replace(one.conversation, turns=turns), cut=True)
        if beside is not None:
            found.append((dataclasses.replace(own, desirable=one.desirable), beside))
    return found


def answers_of_others(prompts: Sequence[Hashable]) -> np.ndarray:
    """(answers,) int64: of each answer, whose prompts these are, the number of another one to another prompt, each
    number once; where no prompt comes twice that of the answer before, of the first one the last. Raises ValueError
    where more than half are to one prompt.

    Answers to one prompt are put together, and go on by as many places as the most of these: from a group that is no
    longer than that, and no longer than half of the circle, all leave.
    """
    groups: dict[Hashable, int] = {}
    group = np.array([groups.setdefault(prompt, len(groups)) for prompt in prompts])
    most = int(np.bincount(group).max())
    if 2 * most > len(prompts):
        raise ValueError(f"{most} of {len(prompts)} are to one prompt")
    order = np.argsort(group, kind="stable")
    found = np.empty(len(prompts), dtype=np.int64)
    found[order] = np.roll(order, most)
    return found
