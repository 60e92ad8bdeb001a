"""Prompts that a model completes itself, and what is known of the answer, for rewards that look at it.

    {"prompt": "..." or [turns], "answer": "..."}      `answer` may be absent

Turns are as in `messages` (finetuning/conversations.py), the last one the user's. A prompt is encoded up to where the
template lets the assistant begin, as it is when a model is asked.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.documents import check_text, read_values
from data.questions import Question
from finetuning.conversations import ASSISTANT, USER, Conversation, conversation_of
from finetuning.encoding import Encoded, Encoder

KNOWN = "prompt, a string or a list of turns; and answer, a string, which may be absent"


def read_prompts(files: Sequence[Path]) -> Iterator[tuple[Conversation, str]]:
    """The turns and the answer of those in files (data/documents.py), in order. Raises UserError, naming file and line,
    for what is none."""
    for path in files:
        for where, value in read_values(path):
            yield prompt_of(value, where)


def prompt_of(value: Any, where: str) -> tuple[Conversation, str]:
    """The turns and the answer that a JSON object is. Raises UserError."""
    if not isinstance(value, dict) or value.get("prompt") is None:
        keys = ", ".join(map(str, value)) or "(none)" if isinstance(value, dict) else "no object"
        raise UserError(f"{where} has the keys {keys}; what is known: {KNOWN}")
    prompt, answer = value["prompt"], value.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise UserError(f"{where}: the answer must be a string, not {type(answer).__name__}")
    check_text(answer or "", where)
    asked = prompt if isinstance(prompt, list) else [{"role": USER, "content": prompt}]
    found = conversation_of({"messages": [*asked, {"role": ASSISTANT, "content": "?"}]}, where)  # which is checked
    return dataclasses.replace(found, turns=found.turns[:-1]), answer or ""


def encoded_prompts(
    files: Sequence[Path], encoder: Encoder, max_completion: int
) -> tuple[list[tuple[Encoded, ...]], Counter[str]]:
    """The prompts of files, each as a unit of one, and how many were left out, since block_size has no room for so many
    tokens after them. Raises UserError where that is all of them."""
    found: list[tuple[Encoded, ...]] = []
    counts: Counter[str] = Counter()
    for asked, answer in read_prompts(files):
        counts["read"] += 1
        one = encoder.encode_asked(asked, Question(asked.turns[-1].content, answer))
        if len(one.ids) + max_completion > encoder.block_size:
            counts["without room"] += 1
        else:
            found.append((one,))
    if files and not counts["read"]:
        raise UserError(f"{', '.join(map(str, files))}: there are no prompts in it")
    if files and not found:
        raise UserError(
            f"{', '.join(map(str, files))}: of {counts['read']:,} prompts none leaves room for max_completion="
            f"{max_completion} tokens in block_size={encoder.block_size}: take a larger one, or other data"
        )
    return found, counts
