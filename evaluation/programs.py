"""Questions whose answers are programs: HumanEval (Chen et al. 2021, arXiv 2107.03374), and files of such questions. A
model goes on with a function's beginning, greedily; it is right if the function passes the question's tests, which run
as evaluation/sandbox.py says.

A file has a line of JSON for each question, with HumanEval's keys:

    prompt        the program's beginning, up to the function's documentation
    test          Python code that defines check(candidate), which raises where the candidate is wrong
    entry_point   the function's name
    max_gen_toks  tokens that are generated at most (512), of the file's own
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.utils import hash_string

from common.errors import UserError
from evaluation.benchmarks import PROGRAMS
from evaluation.figures import Figure, mean_error
from evaluation.harness import Asked, Generation, Outcome, spare_the_wait, where_from
from evaluation.rows import read_rows
from evaluation.sandbox import missing, run_confined
from evaluation.subject import Subject

DATASET = "openai/openai_humaneval"
KEYS = ("prompt", "test", "entry_point")
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # where a function has ended, as in the harness
MOST_TOKENS = 512
METRIC = "pass@1"

Problem = dict[str, Any]


def check_allowed(allowed: bool) -> None:
    """Raises UserError where programs of a model may not run, or cannot run confined."""
    if not allowed:
        raise UserError(
            "questions whose answers are programs run what the model writes: --run_generated_code allows it, without a "
            "network and with nothing to write to (docs/evaluation.md)"
        )
    if (why := missing()) is not None:
        raise UserError(f"what a model writes does not run unconfined, and confining it is not possible here: {why}")


def humaneval() -> list[Problem]:
    """HumanEval's 164 questions. Raises UserError where they cannot be had."""
    spare_the_wait()
    try:
        return list(datasets.load_dataset(DATASET, split="test"))
    except Exception as error:  # the library raises anything for data that it cannot get
        raise UserError(f"cannot load {PROGRAMS}: {error}; {where_from(error)}") from None


def read_problems(file: Path) -> list[Problem]:
    """Raises UserError for a file that has no such questions."""
    problems = read_rows(file, "--tasks")
    for number, problem in enumerate(problems, 1):
        if lacking := [key for key in KEYS if not isinstance(problem.get(key), str)]:
            raise UserError(f"--tasks: question {number} of {file} has no {lacking[0]}: it has {', '.join(KEYS)}")
        most = problem.get("max_gen_toks", MOST_TOKENS)
        if type(most) is not int or most < 1:
            raise UserError(f"--tasks: question {number} of {file}: max_gen_toks is no whole number of 1 or more")
    return problems


def check_problems(subject: Subject, problems: Sequence[Problem]) -> None:
    """Raises UserError where the model has no room for an answer."""
    for problem in problems:
        Generation.of(_how(problem), subject)


def ask_for_programs(subject: Subject, name: str, problems: Sequence[Problem], batch_size: int | None) -> Outcome:
    """The share of problems whose tests the first answer passes, and each answer with how its program ended."""
    asked = Asked(subject, batch_size)
    texts = asked.generate_until([_instance(name, number, problem) for number, problem in enumerate(problems)])
    asked.report_cuts()
    programs = [program_of(problem, text) for problem, text in zip(problems, texts, strict=True)]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        endings = list(pool.map(run_confined, programs))
    finally:
        pool.shutdown(cancel_futures=True)
    passed = np.array([ending.passed for ending in endings], dtype=float)
    figure = Figure(name, METRIC, float(passed.mean()), mean_error(passed), None, len(passed), "samples", parts=(name,))
    samples = [
        {
            "doc_id": number, "doc": problem, "target": problem["test"], "resps": [[text]], "filter": "none",
            "metrics": [METRIC], "doc_hash": hash_string(program_of(problem, "")),
            "prompt_hash": hash_string(problem["prompt"]), METRIC: value, "ending": ending.said,
        }
        for number, (problem, text, value, ending) in enumerate(
            zip(problems, texts, passed.tolist(), endings, strict=True)
        )
    ]  # fmt: skip
    return Outcome([figure], {name: samples})


def program_of(problem: Problem, text: str) -> str:
    """The function as the model wrote it, and its tests, which are called last."""
    return f"{problem['prompt']}{text}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\n"


def _instance(name: str, number: int, problem: Problem) -> Instance:
    return Instance("generate_until", problem, (problem["prompt"], _how(problem)), 0, (name, number, 1))


def _how(problem: Problem) -> dict[str, Any]:
    return {"until": list(STOPS), "max_gen_toks": problem.get("max_gen_toks", MOST_TOKENS)}
