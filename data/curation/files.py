"""Documents between a user's files and the steps, and the samples of what steps remove."""

import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from data.parts import PartOfFile

SAMPLES = 10  # of what a step removes
EXCERPT = 600  # characters of a sample


class ReadInput(PipelineStep):
    """Yields the documents of the user's file that a task is of. A file that cannot be read, also in part, is a
    UserError: datatrove's own readers leave out a line that is no JSON, and the rest of a file that is no UTF-8."""

    type, name = "reader", "input"

    def __init__(self, parts: tuple[PartOfFile, ...], most: int):
        super().__init__()
        self.parts, self.most = parts, most

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        part = self.parts[rank]
        texts = part.texts()
        for number, text in enumerate(itertools.islice(texts, self.most or None), start=1):
            self.stat_update("total", "forwarded")
            self.stat_update("characters", value=len(text))
            yield Document(text=text, id=f"{part.path}, document {number}")
        self.stat_update("empty", value=texts.empty)


def file_name(rank: int) -> str:
    return f"{rank:05d}.jsonl.zst"


class WriteDocuments(JsonlWriter):
    """Writes the documents of a task into a file of its number, also where there are none."""

    def __init__(self, folder: Path, text_alone: bool = False):
        adapter = _text_and_id if text_alone else None
        super().__init__(str(folder), "${rank}.jsonl.zst", compression="infer", adapter=adapter)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.output_mg.get_file(file_name(rank))
        for document in super().run(data, rank, world_size):
            self.stat_update("characters", value=len(document.text))
            yield document


def _text_and_id(_writer: JsonlWriter, document: Document) -> dict[str, str]:
    return {"id": document.id, "text": document.text}


class ReadDocuments(JsonlReader):
    """Yields the documents that a task of this number has written."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), add_file_path=False)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from self.read_files_shard([file_name(rank)])


class SampleWriter:
    """What datatrove's filters give the documents that they remove: keeps the beginnings of some, drawn by their names,
    and writes them when the task's documents are through."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.kept: list[tuple[int, dict[str, str]]] = []
        self.rank: int | None = None

    def __enter__(self) -> "SampleWriter":
        return self

    def write(self, document: Document, rank: int) -> None:
        self.rank = rank
        place = zlib.crc32(document.id.encode())
        if len(self.kept) < SAMPLES or place < self.kept[-1][0]:
            reason = document.metadata.get("filter_reason", "")
            detail = document.metadata.get("contaminated_ngram", "")
            sample = {"id": document.id, "reason": reason, "detail": detail, "text": document.text[:EXCERPT]}
            self.kept = sorted([*self.kept, (place, sample)], key=lambda one: one[0])[:SAMPLES]

    def __exit__(self, *_: object) -> None:
        if not self.kept:  # nor is the task's number known
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.rank:05d}.json").write_text(json.dumps(self.kept), encoding="utf-8")


def read_samples(folder: Path) -> list[dict[str, str]]:
    """Those of all tasks, drawn likewise."""
    kept = [one for path in sorted(folder.glob("*.json")) for one in json.loads(path.read_text(encoding="utf-8"))]
    return [sample for _, sample in sorted(kept, key=lambda one: one[0])[:SAMPLES]]
