"""Benchmarks of a model that is being trained, by a run's keys `eval_benchmarks`: opened, and refused, before anything
starts; then asked of the weights as they are, in float32, with the figures that evaluate.py has of that checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from common.errors import UserError, did_you_mean
from configurator import Configuration
from data.mixture import Data
from data.tokenizers import Tokenizer, tokenizer_from_meta
from evaluation.benchmarks import BENCHMARKS, CORE, PROGRAMS
from evaluation.figures import Figure
from evaluation.held_out import MADE, READ, HeldOut, bits_per_byte, made_tasks, own_validation_text, read_windows
from evaluation.subject import Subject
from inference.loading import same_weights
from inference.text import starting_tokens
from model_builder import LanguageModel

INSTEAD = "one with val_dataset, of which eval_benchmarks can make questions"


class _Stopped(Exception):
    """The run is to stop."""


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """What is asked, and what it takes. `wanted` are benchmarks and tasks of lm-evaluation-harness, as
    evaluation.asking has found them."""

    names: Sequence[str]  # of made tasks
    text: HeldOut | None
    wanted: Any
    tokenizer: Tokenizer
    limit: int | None

    def __call__(self, trained: nn.Module, is_stopped: Callable[[], bool]) -> list[dict[str, Any]] | None:
        """The figures as JSON has them; None where the run is to stop before they are known. The model in training
        stays as it is."""
        model = same_weights(trained)
        subject = _subject(model, self.tokenizer)

        def stop(*_: Any) -> None:  # whatever asks, each text that is read begins there
            if is_stopped():
                raise _Stopped

        model.embedding.register_forward_pre_hook(stop)
        try:
            return [figure.as_json() for figure in self.figures(subject)]
        except _Stopped:
            return None

    def figures(self, subject: Subject) -> list[Figure]:
        found: list[Figure] = []
        if self.text is not None:
            if "text" in self.names:
                found += bits_per_byte(subject, read_windows(subject, self.text, subject.block, READ))
            found += made_tasks(subject, self.text, self.limit, None, self.names)
        if self.wanted is not None:
            found += self.wanted.ask(subject, None).figures
        return found


def open_benchmarks(configuration: Configuration, dataset: Data) -> Benchmarks | None:
    """What the run's keys name; None where they name nothing. Raises UserError for what there is not, or cannot be
    asked."""
    run = configuration.run
    wanted = run.benchmarks
    if not wanted:
        return None
    made = [name for name in wanted if name in MADE]
    others = [name for name in wanted if name not in MADE]
    tokenizer = tokenizer_from_meta(dataset.tokenizer, dataset.folder)
    text = own_validation_text(dataset, run.val_dataset, INSTEAD) if made else None
    limit = run.eval_benchmarks_limit
    found = _of_harness(others, limit) if others else None
    if found is not None:
        with torch.device("meta"):
            model = LanguageModel(configuration.model.portable())
        found.check(_subject(model, tokenizer))
    return Benchmarks(made, text, found, tokenizer, limit)


def _of_harness(names: Sequence[str], limit: int | None) -> Any:
    """The benchmarks of evaluate.py among the names, and the harness's tasks."""
    try:
        from evaluation.asking import find_wanted
    except ImportError as error:
        raise UserError(
            f"eval_benchmarks={names[0]!r}{did_you_mean(names[0], MADE)} is none of {', '.join(MADE)}; benchmarks and "
            f"tasks of lm-evaluation-harness need it, but {error.name} is not installed: pip install -e '.[evaluation]'"
        ) from None
    if PROGRAMS in names:
        raise UserError(
            f"eval_benchmarks: {PROGRAMS} runs what a model writes, and a run does not: ask the checkpoints beside it, "
            f"evaluate.py RUN --all_checkpoints --watch --benchmarks {PROGRAMS} --run_generated_code"
        )
    known = [name for name in names if name in (*BENCHMARKS, CORE)]
    return find_wanted([name for name in names if name not in known], known, limit, run_generated_code=False)


def _subject(model: LanguageModel, tokenizer: Tokenizer) -> Subject:
    return Subject("the model in training", model, tokenizer, starting_tokens(tokenizer, None)[-1], False, None)
