"""What each document of a dataset of prompts asks, and the answer that rewards may look at: a file beside the dataset.

questions.json   {"end": the text that ends a completion, or null where the tokenizer's end of a document does,
                  "train": {"checksum", "questions": [[prompt, answer], ...]}, "val": ...}
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_text, replace_file, writing_to
from data.dataset import Dataset, checksum_text

NOTE = "questions.json"


@dataclasses.dataclass(frozen=True)
class Question:
    """What a prompt asks, without the template's markers, and the answer that there is, which may be empty."""

    prompt: str
    answer: str


def write_questions(folder: Path, end: str | None, found: Mapping[str, Sequence[Question]]) -> None:
    """Keeps those of every split, one for each document. Raises UserError."""
    note: dict[str, Any] = {"end": end}
    for split, questions in found.items():
        listed = [[one.prompt, one.answer] for one in questions]
        note[split] = {"checksum": _checksum(listed), "questions": listed}
    with writing_to(folder):
        replace_file(folder / NOTE, json.dumps(note).encode(), on_disk=True)


def read_questions(dataset: Dataset, split: str) -> list[Question]:
    """One for each document of a split. Raises UserError for what is missing, damaged or of other documents."""
    try:
        found = _read(dataset.folder)[split]
        questions = [Question(*map(str, one)) for one in found["questions"]]
        is_whole = found["checksum"] == _checksum(found["questions"])
    except (KeyError, TypeError):
        questions, is_whole = [], False
    if not is_whole or len(questions) != dataset.splits[split].documents:
        raise UserError(f"{dataset.folder / NOTE} is damaged, or of other prompts: begin anew in another --out_dir")
    return questions


def end_of_completions(dataset: Dataset) -> str | None:
    """The text that ends one; None where the tokenizer's end of a document does. Raises UserError."""
    return _read(dataset.folder).get("end")


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(folder / NOTE))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("end"), str | None):
        raise UserError(f"{folder / NOTE} is damaged: begin anew in another --out_dir")
    return found


def _checksum(listed: list[list[str]]) -> str:
    return checksum_text(zlib.crc32(json.dumps(listed).encode()))
