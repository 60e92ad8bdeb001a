"""A sample that is curated in a temporary folder, every step of it, to say what a curation takes."""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import zstandard

from common.errors import UserError
from common.files import writing_to
from data.curation.execution import open_many_files, run_task
from data.curation.files import file_name
from data.curation.recipe import Recipe
from data.curation.run import prepare_needs
from data.curation.stages import Plan, Stage
from data.documents import Documents
from data.estimate import GROUPS, Clock, Group, Sample, Work, describe, groups_of, size_of
from data.tokenizers import Kept

FEW = 5  # documents a group, whose time is nearly that which a task takes for none
LEAST = 5 * FEW * GROUPS
DO_NOT_GROW = ("log", "samples", "evaluation")  # folders that are as large for any number of documents


def measure_curation(plan: Plan, kept: Kept, documents: int, clock: Clock = time.perf_counter) -> Sample:
    """Curates so many documents. Raises UserError."""
    if plan.recipe.documents_per_file:
        raise UserError("--estimate is of all documents of files: give a --config without documents_per_file")
    open_many_files()
    _carry_out(plan, groups_of(plan.parts, FEW * GROUPS), clock)  # which loads what every process loads once
    few, groups = (groups_of(plan.parts, count, keep=True) for count in (FEW * GROUPS, documents))
    before, done = (_carry_out(plan, given, clock) for given in (few, groups))
    if (read := sum(group.documents for group in groups)) < LEAST:
        raise UserError(f"--estimate: {read:,} documents are too few to estimate from: give {LEAST:,} or more")
    counts = _counts(groups, done.left, kept)
    shares, together = counts["text bytes"] / counts["text bytes"].sum(), done.together
    counts["bytes on disk"], counts["bytes on disk meanwhile"] = together * done.on_disk, together * done.most * shares
    more = 1 - sum(group.text_bytes for group in few) / counts["text bytes"].sum()  # of the text
    work, a_file = [], 0.0
    for stage, seconds, fixed in zip(done.stages, done.seconds, before.seconds, strict=True):
        if stage.is_pass:
            work.append(Work((seconds - np.median(fixed)) / more))
            a_file += float(np.median(fixed) - (1 - more) / len(groups) * work[-1].seconds.sum())
        else:
            work.append(Work(max((seconds - fixed).sum() / more, 0.0) * shares, stage.tasks))
    said = describe(groups, float(counts["tokens"].sum()), float(sum(one.seconds.sum() for one in work)))
    return Sample(counts, tuple(work), said, _assumed(plan.recipe, done.stages, a_file))


@dataclasses.dataclass(frozen=True)
class _Done:
    """Seconds of each task of each stage (tasks,); the most bytes that documents, and what is compared of them, took;
    for each group its documents that are left, and their bytes on disk (groups,); and how much smaller these are
    together."""

    stages: list[Stage]
    seconds: list[np.ndarray]
    most: int
    left: list[list[str]]
    on_disk: np.ndarray
    together: float


def _carry_out(plan: Plan, groups: Sequence[Group], clock: Clock) -> _Done:
    """All stages for these documents, in a folder that is gone afterwards."""
    seconds, most = [], 0
    with tempfile.TemporaryDirectory() as folder, writing_to(Path(folder)):
        plan = dataclasses.replace(plan, output_dir=Path(folder), parts=tuple(groups))
        plan.folder.mkdir()
        prepare_needs(plan, lambda _: None)
        for number, stage in enumerate(plan.stages):
            seconds.append(np.array([_timed(plan, number, rank, clock) for rank in range(stage.tasks)]))
            grown = [path for path in plan.folder.iterdir() if path.is_dir() and path.name not in DO_NOT_GROW]
            most = max(most, sum(map(size_of, grown)))
            for used in stage.uses_up:
                shutil.rmtree(used, ignore_errors=True)
        written = [plan.folder / plan.passes[-1].name / file_name(rank) for rank in range(len(groups))]
        left = [[*Documents([path])] for path in written]
        on_disk = np.array([path.stat().st_size for path in written], float)
        return _Done(plan.stages, seconds, most, left, on_disk, _compressed_together(written))


def _compressed_together(written: Sequence[Path]) -> float:
    """How much smaller what files hold is after as much before it in one file than in a file for each, as what writes
    them compresses it."""
    content = []
    for path in written:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as lines:
            content.append(lines.read())
    before, after = content[::2], content[1::2]
    added = _compressed(b"".join([*before, *after])) - _compressed(b"".join(before))
    return added / sum(map(_compressed, after))


def _compressed(content: bytes) -> int:
    """Bytes, as datatrove's writers write them: at which level that is depends on which packages fsspec finds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "content.zst"
        with fsspec.open(str(path), "wb", compression="zstd") as file:
            file.write(content)
        return path.stat().st_size


def _timed(plan: Plan, number: int, rank: int, clock: Clock) -> float:
    began = clock()
    run_task(plan, number, rank)
    return clock() - began


def _counts(groups: Sequence[Group], left: Sequence[Sequence[str]], kept: Kept) -> dict[str, np.ndarray]:
    def tokens(texts: Sequence[str]) -> int:
        return sum(len(kept.tokenizer.encode(text)) for text in texts)

    counts = {
        "text bytes": [group.text_bytes for group in groups],
        "documents": [group.documents for group in groups],
        "tokens": [tokens(group.read) for group in groups],
        "text bytes left": [sum(len(text.encode()) for text in texts) for texts in left],
        "documents left": [len(texts) for texts in left],
        "tokens left": [tokens(texts) for texts in left],
    }
    return {name: np.array(values, float) for name, values in counts.items()}


def _assumed(recipe: Recipe, stages: Sequence[Stage], a_file: float) -> tuple[str, ...]:
    limits = [f"{stage.name} {stage.tasks}" for stage in stages if not stage.is_pass]
    found = [
        "there are as many files as processes or more",
        f"what a file takes beside its documents, {1000 * a_file:.0f} ms here, and what is done once are not in it",
    ]
    if limits:
        found.append(f"processes that can share what is done between passes: {', '.join(limits)}")
    if recipe.exact_duplicates or recipe.near_duplicates:
        found.append("copies are as frequent as in the sample; all documents together have more, and less is left")
    return tuple(found)
