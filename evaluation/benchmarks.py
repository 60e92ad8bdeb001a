"""The benchmarks by their usual names: which task of lm-evaluation-harness 0.4.13 each is, how many examples stand in
its prompts, which metric counts, and what was published of GPT-3; and CORE, a mean over 22 tasks.

Published figures stand with their setting and source; where a task was asked otherwise, they do not compare exactly.
"""

import dataclasses
import math
from collections.abc import Sequence

from common.errors import UserError, did_you_mean
from evaluation.figures import NORMAL_95, Figure

BROWN = "Brown et al. 2020, arXiv 2005.14165"
HENDRYCKS = "Hendrycks et al. 2020, arXiv 2009.03300"
LIN = "Lin et al. 2021, arXiv 2109.07958"
CHEN = "Chen et al. 2021, arXiv 2107.03374"


@dataclasses.dataclass(frozen=True)
class Published:
    """What GPT-3 with 175 billion parameters has, a share of 1, and how it was asked."""

    value: float
    setting: str
    source: str


@dataclasses.dataclass(frozen=True)
class Questions:
    """A task of the harness with so many examples in its prompts, and the metric that counts, named as in Figure.
    `chance` is that of guessing where the task itself does not tell."""

    task: str
    folder: str  # of the harness's `tasks` that has it
    shots: int
    metric: str
    chance: float | None = None

    @property
    def name(self) -> str:
        return f"{self.task} ({self.shots}-shot)"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Questions under a name of its own, GPT-3's figures, and the share that is the goal for a model as large."""

    name: str
    questions: Questions
    published: tuple[Published, ...]
    goal: float


PROGRAMS = "humaneval"  # whose answers are programs: evaluation/programs.py asks them
EXACT = "exact_match (strict-match)"

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("mmlu", Questions("mmlu", "mmlu/default", 5, "acc"),
                  (Published(0.439, "5-shot", HENDRYCKS),), 0.45),
        Benchmark("hellaswag", Questions("hellaswag", "hellaswag", 0, "acc_norm"),
                  (Published(0.789, "0-shot", BROWN),), 0.80),
        Benchmark("arc_easy", Questions("arc_easy", "arc", 0, "acc_norm"),
                  (Published(0.688, "0-shot", BROWN),), 0.70),
        Benchmark("arc_challenge", Questions("arc_challenge", "arc", 0, "acc_norm"),
                  (Published(0.514, "0-shot", BROWN),), 0.55),
        Benchmark("truthfulqa", Questions("truthfulqa_mc1", "truthfulqa", 0, "acc"),
                  (Published(0.21, "MC1", LIN),), 0.35),
        Benchmark("piqa", Questions("piqa", "piqa", 0, "acc_norm"),
                  (Published(0.810, "0-shot", BROWN),), 0.82),
        Benchmark("winogrande", Questions("winogrande", "winogrande", 0, "acc"),
                  (Published(0.702, "0-shot", BROWN),), 0.72),
        Benchmark("boolq", Questions("boolq", "super_glue/boolq", 0, "acc"),
                  (Published(0.605, "0-shot", BROWN), Published(0.764, "32-shot", BROWN)), 0.78),
        Benchmark("gsm8k", Questions("gsm8k", "gsm8k", 5, EXACT), (), 0.20),
        Benchmark(PROGRAMS, Questions(PROGRAMS, "", 0, "pass@1"),
                  (Published(0.0, "pass@1", CHEN),), 0.25),
    )
}  # fmt: skip

# CORE (Li et al. 2024, DataComp-LM, arXiv 2406.11794): 22 tasks, their examples in the prompts as in the repository's
# eval/heavy.yaml. What guessing has is that of the harness's tasks, which eval/eval_meta_data.csv has, too; there it is
# for boolq the share of the more frequent answer, taken here as well, and another one for commonsense_qa, LSAT-AR and
# the identification of languages, which have other answers there.
CORE = "core"
CORE_SIZE = 22
CORE_QUESTIONS = (
    Questions("hellaswag", "hellaswag", 0, "acc_norm"),
    Questions("hellaswag", "hellaswag", 10, "acc_norm"),
    Questions("arc_easy", "arc", 10, "acc_norm"),
    Questions("arc_challenge", "arc", 10, "acc_norm"),
    Questions("copa", "super_glue/copa", 0, "acc"),
    Questions("commonsense_qa", "commonsense_qa", 10, "acc"),
    Questions("piqa", "piqa", 10, "acc_norm"),
    Questions("openbookqa", "openbookqa", 0, "acc_norm"),
    Questions("lambada_openai", "lambada", 0, "acc", 0.0),
    Questions("wsc273", "wsc273", 0, "acc"),
    Questions("winogrande", "winogrande", 0, "acc"),
    Questions("agieval_lsat_ar", "agieval", 3, "acc", 0.20),
    Questions("boolq", "super_glue/boolq", 10, "acc", 0.62),
    Questions("coqa", "coqa", 0, "em", 0.0),
    Questions("bigbench_qa_wikidata_generate_until", "bigbench", 10, "exact_match", 0.0),
    Questions("bigbench_dyck_languages_generate_until", "bigbench", 10, "exact_match", 0.0),
    Questions("bigbench_cs_algorithms_generate_until", "bigbench", 10, "exact_match", 0.0),
    Questions("bigbench_operators_generate_until", "bigbench", 10, "exact_match", 0.0),
    Questions("bigbench_repeat_copy_logic_generate_until", "bigbench", 10, "exact_match", 0.0),
    Questions("bigbench_language_identification_multiple_choice", "bigbench", 10, "acc"),
)
CORE_MISSING = ("jeopardy", "squad")  # of the 22, which the harness does not have; its squadv2 is another task


def benchmarks_of(names: Sequence[str]) -> list[str]:
    """The names, with `all` spelled out. Raises UserError for one that is none."""
    known = [*BENCHMARKS, CORE, "all"]
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"there is no benchmark {unknown[0]!r}{did_you_mean(unknown[0], known)}: --benchmarks takes "
            f"{', '.join(known)}; other tasks of lm-evaluation-harness are --tasks"
        )
    found = [one for name in names for one in (BENCHMARKS if name == "all" else [name])]
    return list(dict.fromkeys(found))


def questions_of(names: Sequence[str]) -> list[Questions]:
    """What the harness asks for these benchmarks, each once."""
    single = [BENCHMARKS[name].questions for name in names if name not in (CORE, PROGRAMS)]
    every = [*single, *(CORE_QUESTIONS if CORE in names else ())]
    return list({one.name: one for one in every}.values())


def benchmark_figure(name: str, asked: Figure) -> Figure:
    """The figure of a benchmark's questions under the benchmark's name, beside GPT-3's and the goal."""
    benchmark = BENCHMARKS[name]
    said = [f"{100 * one.value:.3g}% ({one.setting})" for one in benchmark.published]
    named = f"{name} ({benchmark.questions.shots}-shot)"
    published, goal = ", ".join(said) or "none known", f"{benchmark.goal:.0%}+"
    return dataclasses.replace(asked, task=named, published=published, goal=goal)


def core_figures(found: dict[str, Figure]) -> list[Figure]:
    """CORE as far as it goes: of each task (accuracy - chance) / (1 - chance), and their mean. Each figure is an
    accuracy by its questions' name, with its chance."""
    figures = [found[one.name] for one in CORE_QUESTIONS]
    missing = CORE_SIZE - len(figures)
    value, error = core_of(figures)
    name = "CORE" if not missing else f"CORE, {len(figures)} of {CORE_SIZE} tasks"
    samples = sum(figure.samples for figure in figures)
    noisy = error is not None and abs(value) <= NORMAL_95 * error
    note = ("within noise of chance, " if noisy else "") + f"without {' and '.join(CORE_MISSING)}"
    return [Figure(name, "centred accuracy", value, error, None, samples, "samples", note=note), *figures]


def core_of(figures: Sequence[Figure]) -> tuple[float, float | None]:
    """The mean of centred accuracies and its standard error. Errors of different tasks are independent; of figures of
    one task, which have the same questions, they add up as if they were one."""
    total = 0.0
    errors: dict[str, float] = {}
    for figure in figures:
        task, chance = figure.task.partition(" ")[0], figure.chance or 0.0
        total += (figure.value - chance) / (1 - chance)
        errors[task] = errors.get(task, 0.0) + (math.nan if figure.error is None else figure.error) / (1 - chance)
    error = math.hypot(*errors.values()) / len(figures)
    return total / len(figures), None if math.isnan(error) else error
