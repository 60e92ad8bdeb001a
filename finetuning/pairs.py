"""Pairs of answers to one prompt, of which one was preferred, in the layouts that people keep them in.

    a prompt apart   {"prompt": "..." or [turns], "chosen": "..." or [turn], "rejected": "..." or [turn]}
    whole            {"chosen": [turns], "rejected": [turns]}, alike but for the last, with or without "prompt"

Turns are as in `messages` (finetuning/conversations.py). Of both conversations the last answer counts, and no other.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.documents import read_values
from finetuning.conversations import ASSISTANT, USER, Conversation, conversation_of

Pair = tuple[Conversation, Conversation]
KNOWN = (
    "prompt, chosen and rejected; or chosen and rejected, both with all turns; answers with a label are for "
    "--preference=kto"
)


def read_pairs(files: Sequence[Path]) -> Iterator[Pair]:
    """Those of files (data/documents.py), in order: the chosen one, then the rejected one. Raises UserError, naming
    file and line, for what is none."""
    for path in files:
        for where, value in read_values(path):
            yield pair_of(value, where)


def pair_of(value: Any, where: str) -> Pair:
    """The pair that a JSON object is. Raises UserError."""
    keys = {key for key, one in value.items() if one is not None} if isinstance(value, dict) else set()
    if not {"chosen", "rejected"} <= keys:
        found = ", ".join(map(str, value)) or "(none)" if isinstance(value, dict) else "no object"
        raise UserError(f"{where} has the keys {found}; what is known: {KNOWN}")
    chosen, rejected = (answered(value, name, where) for name in ("chosen", "rejected"))
    if chosen.turns[:-1] != rejected.turns[:-1]:
        raise UserError(f"{where}: chosen and rejected are not answers to the same turns")
    if chosen.turns == rejected.turns:
        raise UserError(f"{where}: chosen and rejected are the same: leave the pair out")
    return chosen, rejected


def answered(value: dict[str, Any], name: str, where: str) -> Conversation:
    """The conversation that ends with the answer of this name. Raises UserError."""
    answer = value[name]
    if isinstance(answer, list) and answer and isinstance(answer[0], dict) and answer[0].get("role") != ASSISTANT:
        turns = answer  # all of them
    else:
        prompt = value.get("prompt")
        if prompt is None:
            raise UserError(f"{where}: {name} has no turn before the answer, and there is no prompt")
        before = prompt if isinstance(prompt, list) else [{"role": USER, "content": prompt}]
        turns = [*before, *(answer if isinstance(answer, list) else [{"role": ASSISTANT, "content": answer}])]
    found = conversation_of({"messages": turns}, f"{where}, {name}")
    if not found.turns or found.left_out:
        raise UserError(f"{where}: {name} does not end with an answer of the assistant's")
    return found
