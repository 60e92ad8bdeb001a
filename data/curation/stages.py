"""The steps in their order, in stages: all tasks of one are through before the next one begins.

    documents   what looks at one document alone                               a task a file
    threshold   the score below which the lowest share lies                    one task
    best        documents above it                                             a task a file
    copies      hashes of whole texts that occur again                         a task a range of hashes
    originals   documents but those copies                                     a task a file
    likenesses  signatures that have a band in common                          a task a band
    clusters    documents that these connect                                   one task
    distinct    one document of each cluster                                   a task a file

A pass over the documents, which is a task a file, reads what the one before it wrote, and gathers what the stages
between it and the next one compare: scores, hashes, signatures. A step that is left out has no stages.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

from data.curation import duplicates
from data.curation.contamination import contamination_filter
from data.curation.files import ReadDocuments, ReadInput, SampleWriter, WriteDocuments
from data.curation.filters import BadWordsFilter, LanguageFilter, LengthFilter, read_bad_words
from data.curation.personal import PersonalData
from data.curation.quality import QualityFilter, QualityScore, Threshold
from data.curation.recipe import Needs, Recipe
from data.curation.words import WORDS
from data.parts import PartOfFile

Steps = dict[str, PipelineStep]  # in their order, by what a report calls them
INPUT, WRITTEN = "input", "written"  # the first and the last of a pass
SCORE, PERSONAL = "quality score", "personal data"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the output follows from."""

    output_dir: Path
    parts: tuple[PartOfFile, ...]
    recipe: Recipe
    needs: Needs

    @property
    def folder(self) -> Path:
        """Where everything lies until the output is whole."""
        return self.output_dir / ".curation"

    @property
    def model(self) -> Path:
        return self.folder / "quality.npz"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def scores(self) -> bool:
        return bool(self.needs.good and self.recipe.quality_removed)

    @property
    def examples(self) -> str:
        """The options that the score needs."""
        return "--good" if self.recipe.quality_by == "perplexity" else "--good and --bad"

    @property
    def left_out(self) -> dict[str, str]:
        """Steps without the files that they need, and why."""
        without = {
            "contamination": not self.needs.evaluation and "no --evaluation sets were given",
            "bad words": not self.needs.bad_words and "no --bad_words were given",
            "quality": not self.needs.good and f"no {self.examples} examples were given",
        }
        return {step: why for step, why in without.items() if why}

    @property
    def stages(self) -> list["Stage"]:
        return _stages(self)

    @property
    def passes(self) -> list["Stage"]:
        return [stage for stage in self.stages if stage.is_pass]

    def samples(self, step: str) -> SampleWriter:
        return SampleWriter(self.folder / "samples" / step)


@dataclasses.dataclass(frozen=True)
class Stage:
    """`steps()` makes what a task does, new for each. `uses_up`: folders that nobody reads once it is through. A pass
    writes documents into the folder of its name."""

    name: str
    tasks: int
    steps: Callable[[], Steps]
    uses_up: tuple[Path, ...] = ()
    is_pass: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A step that must have seen all documents: what it gathers in the pass before, the stages that compare that, and
    what it then does to each document in a pass of its own."""

    name: str  # of its pass
    gather: Callable[[], Steps]
    between: list[Stage]
    steps: Callable[[], Steps]
    uses_up: tuple[Path, ...]


def _stages(plan: Plan) -> list[Stage]:
    comparisons = _comparisons(plan)
    names = ["documents", *(one.name for one in comparisons)]
    acts = [lambda: _alone(plan), *(one.steps for one in comparisons)]
    gathers = [*(one.gather for one in comparisons), dict]
    found = []
    for index, name in enumerate(names):
        before = plan.folder / names[index - 1] if index else None
        used_up = (before, *comparisons[index - 1].uses_up) if before else ()
        write = partial(WriteDocuments, plan.folder / name, text_alone=index == len(comparisons))
        steps = _pass(plan, before, acts[index], write, gathers[index])
        found.append(Stage(name, len(plan.parts), steps, used_up, is_pass=True))
        if index < len(comparisons):
            found += comparisons[index].between
    return found


def _pass(
    plan: Plan,
    source: Path | None,
    act: Callable[[], Steps],
    write: Callable[[], WriteDocuments],
    gather: Callable[[], Steps],
) -> Callable[[], Steps]:
    def steps() -> Steps:
        read = ReadDocuments(source) if source else ReadInput(plan.parts, plan.recipe.documents_per_file)
        return {INPUT: read, **act(), WRITTEN: write(), **gather()}

    return steps


# ---------------------------------------------------------------------------------------------------------------------
# The steps


def _alone(plan: Plan) -> Steps:
    """What looks at one document alone. From repetition to FineWeb it is what FineWeb does, in its order and with its
    values (Penedo et al. 2024, https://arxiv.org/abs/2406.17557): of C4's rules not the one by which every line ends in
    punctuation, in whose place FineWeb's own filter stands."""
    recipe, samples = plan.recipe, plan.samples
    steps: Steps = {"length": LengthFilter(recipe.min_characters, recipe.max_characters, samples("length"))}
    if recipe.languages:
        confidence = recipe.min_language_confidence
        steps["language"] = LanguageFilter(recipe.languages, confidence, samples("language"))
    if recipe.gopher_repetition:
        steps["repetition"] = GopherRepetitionFilter(language=WORDS, exclusion_writer=samples("repetition"))
    if recipe.gopher_quality:
        steps["Gopher"] = GopherQualityFilter(language=WORDS, exclusion_writer=samples("Gopher"))
    if recipe.c4_quality:
        steps["C4"] = C4QualityFilter(samples("C4"), filter_no_terminal_punct=False, language=WORDS)
    if recipe.fineweb_quality:
        steps["FineWeb"] = FineWebQualityFilter(samples("FineWeb"), language=WORDS)
    if plan.needs.bad_words:
        steps["bad words"] = BadWordsFilter(read_bad_words(plan.needs.bad_words), samples("bad words"))
    if plan.needs.evaluation:
        words = recipe.contamination_words
        steps["contamination"] = contamination_filter(plan.evaluation, words, samples("contamination"))
    if recipe.replace_personal:
        steps[PERSONAL] = PersonalData()
    if plan.scores:
        steps[SCORE] = QualityScore(recipe.quality_by, plan.model, plan.folder / "scores")
    return steps


def _comparisons(plan: Plan) -> list[Comparison]:
    recipe = plan.recipe
    wanted = [
        (plan.scores, _quality),
        (recipe.exact_duplicates, _copies),
        (recipe.near_duplicates, _near_copies),
    ]
    return [make(plan) for is_wanted, make in wanted if is_wanted]


def _quality(plan: Plan) -> Comparison:
    scores, threshold, share = plan.folder / "scores", plan.folder / "threshold.txt", plan.recipe.quality_removed
    return Comparison(
        "best",
        dict,  # the scores are there before the documents are written, as each goes with its document
        [Stage("threshold", 1, lambda: {"": Threshold(scores, share, threshold)})],
        lambda: {"quality": QualityFilter(threshold, plan.samples("quality"))},
        (scores,),
    )


def _copies(plan: Plan) -> Comparison:
    hashes, found = plan.folder / "hashes", plan.folder / "copies"
    return Comparison(
        "originals",
        lambda: {"": duplicates.exact_signature(hashes)},
        [Stage("copies", duplicates.RANGES, lambda: {"": duplicates.exact_find(hashes, found)})],
        lambda: {"copies": duplicates.exact_filter(found, plan.samples("copies"))},
        (hashes, found),
    )


def _near_copies(plan: Plan) -> Comparison:
    recipe = plan.recipe
    signatures, pairs, found = (plan.folder / name for name in ("signatures", "likenesses", "clusters"))
    return Comparison(
        "distinct",
        lambda: {"": duplicates.near_signature(recipe, signatures)},
        [
            Stage("likenesses", recipe.minhash_bands, lambda: {"": duplicates.near_find(recipe, signatures, pairs)}),
            Stage("clusters", 1, lambda: {"": duplicates.near_cluster(recipe, pairs, found)}),
        ],
        lambda: {"near copies": duplicates.near_filter(found, plan.samples("near copies"))},
        (signatures, pairs, found),
    )
