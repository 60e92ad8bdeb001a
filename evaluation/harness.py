"""Tasks of EleutherAI's lm-evaluation-harness, asked of a model of this repository; the extra `evaluation` brings it.

The harness prepares prompts and takes metrics; `Asked` is its LM class, over evaluation/scoring.py and
inference/generation.py. What it answers is what the harness's own `hf` backend answers of the exported folder.
"""

import dataclasses
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import lm_eval.tasks
import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.model import TemplateLM
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS, DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from yaml import YAMLError

from common.errors import UserError, did_you_mean
from data.tokenizers import Tokenizer
from evaluation.benchmarks import BENCHMARKS, CORE, Questions, benchmark_figure, core_figures, questions_of
from evaluation.figures import Figure, mean_error
from evaluation.scoring import Request, scores
from evaluation.subject import Subject
from evaluation.windows import windows
from inference.generation import generate_batch
from inference.sampling import Sampling

HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent
GENERATED_AT_ONCE = 32  # texts, where no batch size is given
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the harness's names for one
SECONDS_TO_ANSWER = 5  # for Hugging Face's hub
RESAMPLES = 200  # for a standard error that has no closed form
UNBOUNDED = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "bleu", "chrf", "ter")  # no shares


class Asked(TemplateLM):
    """A subject as the harness asks it. What a model may not be asked for raises UserError."""

    def __init__(self, subject: Subject, batch_size: int | None):
        super().__init__()
        self.subject, self.batch_size = subject, batch_size
        self._names: list[str] = []  # the tasks of the requests that are answered
        self._cuts: Counter[str] = Counter()  # per task the prompts that lost their beginning, each answer's one

    @property
    def eot_token_id(self) -> int:
        """The token that a text without context follows."""
        return self.subject.first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the base class: without special tokens, nothing stands before the text."""
        if add_special_tokens is False:
            return self.subject.tokenizer.encode_prompt(string)
        return self.subject.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Per request the log-likelihood of its answer, and whether greedy decoding would write it."""
        self._names = [request.task_name or "" for request in requests]
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        for name, one in zip(self._names, asked, strict=True):
            self._cuts[name] += len(one.context) + len(one.continuation) > self.subject.block + 1
        found = scores(self.subject.model, asked, self.batch_size, "likelihoods")
        return [(score.log_likelihood, score.is_greedy) for score in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in disjoint windows."""
        block = self.subject.block
        texts = [list(windows(self.tok_encode(one.args[0]), self.subject.first, block, block)) for one in requests]
        every = [window for text in texts for window in text]
        found = iter(scores(self.subject.model, every, self.batch_size, "texts"))
        return [sum(next(found).log_likelihood for _ in text) for text in texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A text for each prompt, up to its task's stop strings."""
        alike: dict[str, list[int]] = defaultdict(list)  # by how they are generated the numbers of requests
        for number, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(number)
        found: dict[int, str] = {}
        for numbers in alike.values():
            how = Generation.of(requests[numbers[0]].args[1], self.subject)
            size = self.batch_size or GENERATED_AT_ONCE
            for start in range(0, len(numbers), size):
                batch = numbers[start : start + size]
                prompts = [self.tok_encode(requests[number].args[0]) for number in batch]
                for number, prompt in zip(batch, prompts, strict=True):
                    self._cuts[requests[number].task_name or ""] += len(prompt) + how.most > self.subject.block
                found |= dict(zip(batch, texts_after(self.subject, prompts, how, batch), strict=True))
        return [found[number] for number in range(len(requests))]

    def report_cuts(self) -> None:
        """Says on standard error which prompts were not read whole."""
        for name, count in (+self._cuts).items():
            block = self.subject.block
            print(f"{name}: {count:,} texts were longer than the block of {block:,} and lost their beginning",
                  file=sys.stderr)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Generation


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a task wants its texts: how a token is chosen, how many at most, and the strings that end a text."""

    sampling: Sampling
    most: int
    stops: tuple[str, ...]

    @classmethod
    def of(cls, wanted: dict[str, Any], subject: Subject) -> "Generation":
        """From a task's `generation_kwargs`. Raises UserError for one that is not known, and where the model's block
        has no room for so many tokens."""
        given = dict(wanted)
        stops = given.pop("until", None) or []
        stops = [stops] if isinstance(stops, str) else stops
        end = subject.tokenizer.end_of_document
        stops += [] if end is None else [subject.tokenizer.decode([end])]
        limits = [given.pop(name, None) for name in TOKEN_LIMITS]
        most = int(next((limit for limit in limits if limit is not None), DEFAULT_MAX_GEN_TOKS))
        if most >= subject.block:
            raise UserError(
                f"a task generates up to {most:,} tokens, and the model's block is of {subject.block:,}, prompt "
                "included: take a model with a longer block, or a task that generates fewer"
            )
        temperature = float(given.pop("temperature", 1.0 if given.get("do_sample") else 0.0))
        greedy = not given.pop("do_sample", temperature > 0)
        top_k, top_p = int(given.pop("top_k", subject.tokenizer.vocab_size)), float(given.pop("top_p", 1.0))
        if given:
            raise UserError(f"generation_kwargs: {next(iter(given))} is not known here: leave it out of the task")
        return cls(Sampling(0.0 if greedy else temperature, top_k, top_p), most, tuple(stop for stop in stops if stop))

    def cut(self, text: str) -> str:
        """The text before the first of the stop strings."""
        return text[: min((text.index(stop) for stop in self.stops if stop in text), default=len(text))]


def texts_after(subject: Subject, prompts: Sequence[list[int]], how: Generation, seeds: Sequence[int]) -> list[str]:
    """The text that follows each prompt, which loses its first tokens where the block has no room for them."""
    starts = [(prompt or [subject.first])[-(subject.block - how.most) :] for prompt in prompts]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    new: list[list[int]] = [[] for _ in starts]
    ended: set[int] = set()
    longest = max((len(stop.encode()) for stop in how.stops), default=0)  # a token has a byte at least
    chosen = generate_batch(subject.model, starts, subject.tokenizer, how.sampling, how.most, generators, ended)
    for number, token in chosen:
        new[number].append(token)
        ended |= {number} if how.cut(tail := _text(subject.tokenizer, new[number][-longest:])) != tail else set()
    return [how.cut(_text(subject.tokenizer, tokens)) for tokens in new]


def _text(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """As transformers has it: special tokens are left out, and so is a space that the tokenizer puts before texts."""
    special = set(tokenizer.special.values())
    return tokenizer.decode([token for token in tokens if token not in special])


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and what came of them


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The figures of all tasks, and per task what was asked and answered, sample by sample."""

    figures: list[Figure]
    samples: dict[str, list[dict[str, Any]]]


def check_tasks(subject: Subject, loaded: dict[str, Any]) -> None:
    """Raises UserError for a task that cannot be asked."""
    for name, task in loaded["tasks"].items():
        refuse_code(name, getattr(task, "UNSAFE_CODE", False))
        if task.OUTPUT_TYPE == "generate_until":
            Generation.of(task.get_config("generation_kwargs") or {}, subject)


def refuse_code(name: str, unsafe: bool) -> None:
    """Raises UserError for a task that runs what a model writes."""
    if unsafe:
        raise UserError(
            f"{name} runs code that the model writes, in this process: that is refused; humaneval is one of "
            "--benchmarks, and --tasks takes programs with tests as a file of JSON lines"
        )


def ask_tasks(subject: Subject, loaded: dict[str, Any], limit: int | None, batch_size: int | None) -> Outcome:
    """Ask what TaskManager.load gives, always the same questions. Raises UserError."""
    check_tasks(subject, loaded)
    tasks = loaded["tasks"]
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    asked = Asked(subject, batch_size)
    with LibraryFirst():
        found = evaluate(lm=asked, task_dict=loaded, limit=limit, bootstrap_iters=0)
    asked.report_cuts()
    figures = [figure for name in tasks for figure in figures_of(name, tasks[name], found)]
    groups = [figure for name in loaded["groups"] for figure in figures_of_group(name, loaded, found, figures)]
    return Outcome([*groups, *figures], found["samples"])


def load_benchmarks(names: Sequence[str]) -> dict[str, list[Any]]:
    """The harness's tasks of the benchmarks but for programs, by the name of their questions. Raises UserError."""
    return {one.name: load_questions(one) for one in questions_of(names)}


def as_loaded(benchmarks: dict[str, list[Any]]) -> dict[str, Any]:
    """The same as TaskManager.load gives it."""
    tasks = {task.task_name: task for tasks in benchmarks.values() for task in tasks}
    return {"tasks": tasks, "groups": {}, "group_map": {}}


def run_benchmarks(
    subject: Subject, names: Sequence[str], loaded: dict[str, list[Any]], limit: int | None, batch_size: int | None
) -> Outcome:
    """Ask what `load_benchmarks` gave of the names, of each task `limit` samples or all. Raises UserError."""
    outcome = ask_tasks(subject, as_loaded(loaded), limit, batch_size)
    by_name = {
        one.name: figure_of(one, [task.task_name for task in loaded[one.name]], outcome) for one in questions_of(names)
    }
    figures = [benchmark_figure(name, by_name[BENCHMARKS[name].questions.name]) for name in names if name != CORE]
    return Outcome([*figures, *(core_figures(by_name) if CORE in names else [])], outcome.samples)


def load_questions(wanted: Questions) -> list[Any]:
    """The harness's tasks, each under a name that says how many examples its prompts have. Raises UserError."""
    manager = TaskManager(include_path=str(HARNESS_TASKS / wanted.folder), include_defaults=False)
    tasks = list(_loaded(manager, [wanted.task])["tasks"].values())
    for task in tasks:
        task.set_config(key="num_fewshot", value=wanted.shots)
        task.set_config(key="task", value=f"{task.task_name} ({wanted.shots}-shot)")
    return tasks


def figure_of(wanted: Questions, names: Sequence[str], outcome: Outcome) -> Figure:
    """The metric that counts, of all these tasks' samples."""
    parts = [figure for figure in outcome.figures if figure.task in names and figure.metric == wanted.metric]
    figure = pooled(wanted.name, parts)
    return figure if wanted.chance is None else dataclasses.replace(figure, chance=wanted.chance)


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """What TaskManager.load gives. Files are read first, since the harness's own thousands of tasks take seconds."""
    files = [file for name in names for file in task_files(Path(name))]
    others = [name for name in names if not Path(name).exists()]
    manager = TaskManager(include_defaults=bool(others))
    if unknown := [name for name in others if name not in manager.all_tasks]:
        raise UserError(
            f"there is no task {unknown[0]!r}{did_you_mean(unknown[0], manager.all_tasks)}, and no file of this name: "
            "--tasks takes names of lm-evaluation-harness, YAML files, and folders of them"
        )
    for name in others:  # before its own Python is imported, which may ask the hub for what runs the code
        file = manager.task_index[name].yaml_path
        refuse_code(name, file is not None and bool(load_yaml(file, resolve_func=False).get("unsafe_code")))
    return _loaded(manager, [*map(local_task, files), *others])


def task_files(path: Path) -> list[Path]:
    """The YAML files that a path names: itself, or all in a folder. Raises UserError where there is none."""
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.yaml")) if path.is_dir() else []
    if path.is_dir() and not found:
        raise UserError(f"{path} has no task: no *.yaml in it")
    return found


def local_task(file: Path) -> dict[str, Any]:
    """A task's configuration, with the data files that it names looked for beside it. Raises UserError."""
    try:
        task = load_yaml(file)
    except (OSError, ValueError, YAMLError, ImportError, AttributeError) as error:
        raise UserError(f"cannot read the task {file}: {_line(error)}") from None
    if "task" not in task:
        raise UserError(f"{file} is no task: it has no key 'task'")
    files = (task.get("dataset_kwargs") or {}).get("data_files")
    if files is not None:
        task["dataset_kwargs"] |= {"data_files": _beside(file, files)}
    return task


def _beside(file: Path, data: Any) -> Any:
    """The same names, of files by their whole paths. Raises UserError for one that is not there."""
    if isinstance(data, dict):
        return {split: _beside(file, one) for split, one in data.items()}
    if isinstance(data, list):
        return [_beside(file, one) for one in data]
    path = file.absolute().parent / str(data)
    if not path.is_file():
        raise UserError(f"{file} names the data {data}, which is not beside it")
    return str(path)


def _loaded(manager: TaskManager, wanted: list[Any]) -> dict[str, Any]:
    """What TaskManager.load gives of all, each loaded in turn, so that an error names its task. The harness and its
    libraries raise anything for data that they cannot get or read."""
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for one in wanted:
        name = one if isinstance(one, str) else one["task"]
        if isinstance(one, str):
            spare_the_wait()
        try:
            with LibraryFirst():
                loaded: dict[str, Any] = dict(manager.load([one]))
        except Exception as error:
            raise UserError(f"cannot load the task {name}: {_line(error)}; {where_from(error)}") from None
        found = {part: content | loaded[part] for part, content in found.items()}
    return found


def where_from(error: Exception) -> str:
    """How data come to a machine that has no network, in words."""
    named = re.search(r"'([\w.-]+/[\w.-]+)' on the Hub", str(error))
    if named is None:
        return "where there is no network, load it once where there is one, and copy the folder that HF_HOME names"
    return (
        f"where there is a network, `hf download --repo-type dataset {named[1]} --local-dir {named[1]}` gets the data: "
        "put that folder where evaluate.py is called, or evaluate there once and copy the folder that HF_HOME names"
    )


def spare_the_wait() -> None:
    """Where the hub does not answer, its libraries would ask it again for half a minute for each dataset: then only
    data are used that are here."""
    if huggingface_hub.constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # of whatever library is asked
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        print(f"no data are downloaded: {huggingface_hub.constants.ENDPOINT} does not answer ({_line(error)})",
              file=sys.stderr)  # fmt: skip


class LibraryFirst(MetaPathFinder):
    """Some of the harness's tasks import a library named `evaluate`, as this repository's command is, too: within the
    block it is the library."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        root = Path(__file__).parents[1]
        others = [place for place in sys.path if Path(place or ".").resolve() != root]
        return PathFinder.find_spec(fullname, others) if fullname == "evaluate" else None

    def __enter__(self) -> None:
        self._command = sys.modules.pop("evaluate", None)
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        if self._command is not None:
            sys.modules["evaluate"] = self._command


def _line(error: BaseException) -> str:
    """An error's text on one line."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def figures_of(name: str, task: Any, found: dict[str, Any]) -> Iterator[Figure]:
    """A task's metrics, with the standard errors that follow from its samples."""
    samples = found["samples"][name]
    for key, value in found["results"][name].items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        own = [sample[metric] for sample in samples if sample["filter"] == filtered]
        better = found["higher_is_better"][name].get(metric)
        said = metric if filtered == "none" else f"{metric} ({filtered})"
        error = error_of(own, task.aggregation()[metric])
        chance = chance_of(metric, task, samples)
        is_share = metric not in UNBOUNDED
        parts = (name,) if task.aggregation()[metric] is mean else ()
        yield Figure(name, said, value, error, chance, len(own), "samples", is_share, better is not False, parts=parts)


def error_of(values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> float | None:
    """The standard error of a metric over samples: of a mean in closed form, of others by resampling."""
    if len(values) < 2:
        return None
    if all(isinstance(value, int | float) for value in values) and aggregate is mean:
        return mean_error(np.array(values, dtype=float))
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return float(np.std([aggregate([values[index] for index in draw]) for draw in draws.tolist()], ddof=1))


def chance_of(metric: str, task: Any, samples: Sequence[dict[str, Any]]) -> float | None:
    """What guessing has where one of several answers is right: as many are asked for as there are."""
    by_choice = task.OUTPUT_TYPE == "multiple_choice" and task.get_config("process_results") is None
    if not by_choice or metric not in ("acc", "acc_norm"):
        return None
    return float(np.mean([1 / len(task.doc_to_choice(sample["doc"])) for sample in samples]))


def figures_of_group(
    name: str, loaded: dict[str, Any], found: dict[str, Any], figures: Sequence[Figure]
) -> Iterator[Figure]:
    """A group's metrics, whose standard errors and chances are those of its tasks, each with the weight of its samples,
    as most groups have it."""
    members = {task.task_name for task in loaded["groups"][name].get_all_tasks()}
    for key, value in found["results"].get(name, {}).items():
        metric, _, filtered = key.partition(",")
        parts = [figure for figure in figures if figure.task in members and figure.metric == metric]
        if filtered != "none" or metric.endswith("_stderr") or not parts or not isinstance(value, int | float):
            continue
        yield dataclasses.replace(pooled(name, parts), value=value, parts=())


def pooled(name: str, parts: Sequence[Figure]) -> Figure:
    """The figure of all samples of several tasks."""
    samples = [part.samples for part in parts]
    weights = np.array(samples) / sum(samples)
    errors = [part.error for part in parts if part.error is not None]
    error = math.sqrt(float(((weights * errors) ** 2).sum())) if len(errors) == len(parts) else None
    chances = [part.chance for part in parts if part.chance is not None]
    chance = float(weights @ chances) if len(chances) == len(parts) else None
    value = float(weights @ [part.value for part in parts])
    tasks = tuple(task for part in parts for task in part.parts)
    return dataclasses.replace(
        parts[0], task=name, value=value, error=error, chance=chance, samples=sum(samples), parts=tasks
    )
