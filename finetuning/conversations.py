"""Conversations in the layouts that people keep them in, as turns whose roles are in order.

    messages     {"messages": [{"role": "system" | "user" | "assistant", "content": "..."}, ...]}
    ShareGPT     {"conversations": [{"from": "system" | "human" | "gpt", "value": "..."}, ...], "system": "..."}
    Alpaca       {"instruction": "...", "input": "...", "output": "..."}; `input` may be absent or empty
    plain        {"prompt": "...", "completion": "..."}, or `response` or `answer` for `completion`

A conversation has at most one system's turn, its first; then user and assistant take turns, the user first. What comes
after the last answer is left out, as nothing is learned of it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.documents import check_text, read_values

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = {SYSTEM: SYSTEM, USER: USER, ASSISTANT: ASSISTANT}
OF_SHAREGPT = ROLES | {"human": USER, "gpt": ASSISTANT}
ANSWERS = ("completion", "response", "answer")
KNOWN = (
    f"messages; conversations (ShareGPT); instruction and output (Alpaca); prompt and one of {', '.join(ANSWERS)}; "
    "pairs of chosen and rejected are for config/dpo.py"
)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns that end with an answer, or none of them where there is no answer; `where` says which one it is, and so
    many turns after the last answer are `left_out`."""

    turns: tuple[Turn, ...]
    where: str
    left_out: int = 0


def read_conversations(files: Sequence[Path]) -> Iterator[Conversation]:
    """Those of files (data/documents.py), in order. Raises UserError, naming file and line, for what is none."""
    for path in files:
        for where, value in read_values(path):
            yield conversation_of(value, where)


def conversation_of(value: Any, where: str) -> Conversation:
    """The conversation that a JSON object is. Raises UserError."""
    turns = _turns_of(value, where)
    for turn in turns:
        check_text(turn.content, where)
        if not turn.content.strip() and turn.role != SYSTEM:
            raise UserError(f"{where}: a turn of the {turn.role} is empty: leave the conversation out, or fill it")
    _check_order([turn.role for turn in turns], where)
    last = max((number for number, turn in enumerate(turns, start=1) if turn.role == ASSISTANT), default=0)
    return Conversation(tuple(turns[:last]), where, len(turns) - last)


def _check_order(roles: list[str], where: str) -> None:
    if SYSTEM in roles[1:]:
        raise UserError(f"{where}: turn {roles.index(SYSTEM, 1) + 1} is the system's: it comes first, and once")
    spoken = roles[1:] if roles[:1] == [SYSTEM] else roles
    for number, role in enumerate(spoken, start=1 + len(roles) - len(spoken)):
        expected = USER if (number - (len(roles) - len(spoken))) % 2 else ASSISTANT
        if role != expected:
            after = f"after one of the {roles[number - 2]}" if number > 1 else "at the beginning"
            raise UserError(
                f"{where}: turn {number} is of the {role}, {after}: user and assistant take turns, the user first"
            )


def _turns_of(value: Any, where: str) -> list[Turn]:
    """Its turns, in the layout that its keys say."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is no object: a conversation has the keys {KNOWN}")
    keys = {key for key, one in value.items() if one is not None}  # a table has every column in every row
    layouts: list[tuple[bool, Callable[[], list[Turn]]]] = [
        ("messages" in keys, lambda: _listed(value["messages"], ("role", "content"), ROLES, where)),
        ("conversations" in keys, lambda: _of_sharegpt(value, where)),
        ({"instruction", "output"} <= keys, lambda: _of_alpaca(value, where)),
        ("prompt" in keys and bool(keys & {*ANSWERS}), lambda: _of_plain(value, where)),
    ]
    for fits, turns in layouts:
        if fits:
            return turns()
    raise UserError(f"{where} has the keys {', '.join(map(str, value)) or '(none)'}; what is known: {KNOWN}")


def _listed(turns: Any, names: tuple[str, str], roles: dict[str, str], where: str) -> list[Turn]:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: its turns must be a list of objects with {names[0]!r} and {names[1]!r}")
    found = []
    for number, turn in enumerate(turns, start=1):
        role = turn.get(names[0])
        if role not in roles:
            raise UserError(f"{where}: turn {number} has {names[0]}={role!r}, which is none of {', '.join(roles)}")
        found.append(Turn(roles[role], _string(turn.get(names[1]), f"{names[1]!r} of turn {number}", where)))
    return found


def _of_sharegpt(value: dict[str, Any], where: str) -> list[Turn]:
    turns = _listed(value["conversations"], ("from", "value"), OF_SHAREGPT, where)
    system = value.get("system")
    return [*([Turn(SYSTEM, _string(system, "'system'", where))] if system else []), *turns]


def _of_alpaca(value: dict[str, Any], where: str) -> list[Turn]:
    """What the input is comes after what is to be done with it, below a blank line."""
    asked, given, answer = (
        _string(value.get(name) or "", f"{name!r}", where) for name in ("instruction", "input", "output")
    )
    return [Turn(USER, f"{asked}\n\n{given}" if given.strip() else asked), Turn(ASSISTANT, answer)]


def _of_plain(value: dict[str, Any], where: str) -> list[Turn]:
    answers = [name for name in ANSWERS if value.get(name) is not None]
    if len(answers) > 1:
        raise UserError(f"{where} has several answers, {' and '.join(answers)}: keep one of them")
    prompt, answer = (_string(value[name], f"{name!r}", where) for name in ("prompt", answers[0]))
    return [Turn(USER, prompt), Turn(ASSISTANT, answer)]


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} must be a string, not {type(value).__name__}")
    return value
