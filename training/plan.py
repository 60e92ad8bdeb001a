"""What a run will do and cost, worked out before anything is built. No torch."""

import dataclasses
import fnmatch
import math
from typing import Any

from common.errors import UserError
from common.machine import check_memory
from components.lora.spec import LORA, is_of_adapter, matches
from components.registry import has_module
from configurator import Configuration
from data.mixture import Data, Mixture
from data.packing import Cut
from flops_parameter_counting.costs.memory import rank_memory
from flops_parameter_counting.costs.model_cost import (
    DocumentLengths,
    ModelCost,
    TrainingFlops,
    model_cost,
    parameter_names,
    training_flops,
)
from flops_parameter_counting.costs.optimizer import update_of
from flops_parameter_counting.costs.sharding import Mesh, check_mesh, mesh_of
from flops_parameter_counting.laws.scaling_laws import Law, count_parameters, find_law, is_published, law_from
from model_config import ModelArchitectureConfig
from runs.config import OF_LABELS, RunConfig
from training.schedule import run_length

SAME_RUN = 0.01  # relative difference of FLOPs up to which a prediction is of this run


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is said of a run before it starts: validation loss at its end (nats per token), training FLOPs (full) and
    seconds in training steps. None: not said."""

    law: Law | None
    loss: float | None
    flops: float | None
    seconds: float | None

    @property
    def only_ranks(self) -> bool:
        """Whether the loss is a published law's, of other data and another tokenizer."""
        return self.law is not None and is_published(self.law)

    def as_dict(self) -> dict[str, Any]:
        """For the log, with the law's name."""
        return {
            "law": self.law and self.law.name,
            "loss": self.loss,
            "flops": self.flops,
            "seconds": self.seconds,
        }


@dataclasses.dataclass(frozen=True)
class Source:
    """One of the datasets of a mixture: tokens of its training split, how often the run meets these, whether its own
    validation split is evaluated, bytes of text of a token there, and its part of what the run trains on."""

    tokens: int
    epochs: float
    is_validated: bool
    bytes_per_token: float
    samples: int  # of the run
    padding: float  # share of these samples' tokens


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The run's arithmetic. FLOPs are training FLOPs per token, in both attention conventions."""

    cost: ModelCost
    flops_per_token: dict[str, int]
    flops_by_part: dict[str, int]  # of those in the full convention
    tokens_per_step: int
    length: int  # optimizer steps
    optimizer_flops: int  # of a step's update, in none of the others
    windows: dict[str, int] | None  # of each split; None: the dataset is not prepared (a dry run)
    bytes_per_token: dict[str, float | None] | None
    padding: dict[str, float] | None = None  # share of each split's samples; None as with windows
    prediction: Prediction | None = None
    documents: DocumentLengths | None = None  # of the training split, if they are kept apart and it is prepared
    sources: dict[str, Source] | None = None  # of a mixture

    @property
    def document_length(self) -> float | None:
        """Of the documents that are kept apart, as a token meets them: the mean over tokens, not over documents."""
        return sum(length * share for length, share in self.documents.items()) if self.documents else None

    @property
    def tokens(self) -> int:
        return self.length * self.tokens_per_step

    def flops(self, convention: str) -> int:
        """FLOPs of the whole run."""
        return self.tokens * self.flops_per_token[convention]

    def bits_per_byte(self, loss: float, split: str) -> float | None:
        """A loss in nats per token as bits per byte of the split's text; None for a dataset without text bytes."""
        per_token = (self.bytes_per_token or {}).get(split)
        return loss / math.log(2) / per_token if per_token else None

    def text_tokens(self, tokens: int) -> float:
        """How many of so many tokens of training are text: those that are not padding, in the mean over the run."""
        return tokens * (1 - (self.padding or {}).get("train", 0.0))

    def expected_loss(self, tokens: int) -> float | None:
        """The law's loss of a run that ends after so many tokens, of which padding teaches nothing; None without a law,
        or without tokens."""
        law = self.prediction and self.prediction.law
        if not law or not tokens:
            return None
        return float(law.of(self.cost).loss(count_parameters(self.cost, law.N), self.text_tokens(tokens)))

    @property
    def is_the_predicted_run(self) -> bool:
        """False where the prediction names other FLOPs: keys were changed after it was made."""
        predicted = self.prediction and self.prediction.flops
        return not predicted or abs(self.flops("full") / predicted - 1) <= SAME_RUN


def plan_run(configuration: Configuration, dataset: Data | None) -> RunPlan:
    """Raises UserError for an unknown component, or a model and a dataset that do not fit."""
    model, run = configuration.model, configuration.run
    if dataset is not None:
        dataset.check_fits(model.block_size, model.vocab_size or 0, cut_of(configuration).follow_one_another)
    check_frozen(configuration)
    check_adapters(configuration)
    documents = None
    if run.mask_documents:
        check_documents(model)
        if dataset is not None:
            documents = document_lengths(dataset, cut_of(configuration))
    cost = model_cost(model, documents=documents)
    training = flops_of_training(configuration, documents)
    flops_per_token = training.by_convention
    tokens_per_step = run.sequences_per_step * model.block_size
    splits = {} if dataset is None else dataset.splits
    windows, padding = (None, None) if dataset is None else windows_of(dataset, cut_of(configuration))
    plan = RunPlan(
        cost=cost,
        flops_per_token=flops_per_token,
        flops_by_part=training.by_part,
        tokens_per_step=tokens_per_step,
        length=run_length(run, tokens_per_step, flops_per_token["full"]),
        optimizer_flops=update_of(model, run, Mesh(1, 1, 1)).flops,
        windows=windows,
        bytes_per_token={name: split.bytes_per_token for name, split in splits.items()} or None,
        padding=padding,
        prediction=prediction_of(run),
        documents=documents,
    )
    if isinstance(dataset, Mixture):
        sources = sources_of(dataset, plan, configuration)
        plan = dataclasses.replace(plan, sources=sources, padding=padding_of_samples(plan, sources))
    if plan.prediction is None or plan.prediction.loss is not None:
        return plan
    loss = plan.expected_loss(plan.tokens)
    return dataclasses.replace(plan, prediction=dataclasses.replace(plan.prediction, loss=loss))


def flops_of_training(configuration: Configuration, documents: DocumentLengths | None) -> TrainingFlops:
    """Those of a token of the mean. Where answers are labelled every other sequence is only asked, forward."""
    model, run = configuration.model, configuration.run
    training = training_flops(model, run.frozen_names, documents, run.adapters)
    if run.preference not in OF_LABELS:
        return training
    asked = training_flops(model, lambda _: True, documents, run.adapters)
    by_part = {part: (flops + asked.by_part[part]) // 2 for part, flops in training.by_part.items()}
    return TrainingFlops(by_part, (training.masked + asked.masked) // 2)


def sources_of(mixture: Mixture, plan: RunPlan, configuration: Configuration) -> dict[str, Source]:
    run, cut = configuration.run, cut_of(configuration)
    samples = mixture.counts(plan.length * run.sequences_per_step, cut.block_size, run.seed)
    return {
        name: Source(
            source.splits["train"].tokens,
            samples.get(name, 0) / cut.n_windows(source, "train"),
            mixture.validation_sources.get(name) is source,
            source.splits["val"].bytes_per_token,
            samples.get(name, 0),
            cut.padding(source, "train"),
        )
        for name, source in mixture.sources.items()
    }


def padding_of_samples(plan: RunPlan, sources: dict[str, Source]) -> dict[str, float]:
    """As RunPlan has it, that of training in the mean over the run's samples, of which a mixture's sources have those
    that its phases say."""
    samples = sum(source.samples for source in sources.values())
    padded = sum(source.samples * source.padding for source in sources.values())
    return (plan.padding or {}) | ({"train": padded / samples} if samples else {})


def cut_of(configuration: Configuration) -> Cut:
    run = configuration.run
    return Cut(configuration.model.block_size, run.packing, run.group_size if run.reinforce is not None else 1)


def windows_of(data: Data, cut: Cut) -> tuple[dict[str, int], dict[str, float]]:
    """How many windows each split has, and the share of these that is padding. Raises UserError."""
    windows, padding = {}, {}
    for name, sources in (("train", data.sources), ("val", data.validation_sources)):
        each = [(cut.n_windows(source, name), cut.padding(source, name)) for source in sources.values()]
        windows[name] = sum(count for count, _ in each)
        padding[name] = sum(count * share for count, share in each) / windows[name]
    return windows, padding


def document_lengths(data: Data, cut: Cut) -> DocumentLengths:
    """Of the training samples, as `Cut.document_lengths` says; of a mixture by the shares of its last phase."""
    found: dict[int, float] = {}
    for name, share in data.shares.items():
        for length, part in cut.document_lengths(data.sources[name], "train").items():
            found[length] = found.get(length, 0.0) + share * part
    return found


def check_documents(model: ModelArchitectureConfig) -> None:
    """Raises UserError for a model that would mix the documents of a window, or turn them by another's length."""
    positions = model.component("position_encoding")
    for layer in model.layer_counts:
        if layer.mixer_spec.takes_documents is None:
            raise UserError(f"mask_documents=True: a layer of {layer.mixer} does not keep documents apart")
        if positions.turns_by_length(model.of(layer)):
            raise UserError(
                "mask_documents=True: this rope_scaling turns tokens by the length of their text, beyond its original "
                f"context, and a window of block_size={model.block_size} has several: take a smaller one"
            )


def not_built(model: ModelArchitectureConfig) -> str | None:
    """What keeps a model that can be counted from being built; None if nothing does."""
    for layer in model.layer_counts:
        for spec in layer.specs:
            if not has_module(spec.kind, spec.name):
                return f"{spec.kind}={spec.name!r} can be counted, but there is no module that computes it yet"
    return None


def check_buildable(model: ModelArchitectureConfig) -> None:
    """Raises UserError for a component that can be counted and not built."""
    if (lacking := not_built(model)) is not None:
        raise UserError(lacking)


def check_memory_of_run(configuration: Configuration, world_size: int) -> None:
    """Raises UserError for a run on a CPU of which each rank needs far more memory than its machine has. A GPU has its
    own, and says itself when that is too little."""
    run = configuration.run
    dtype = "bfloat16" if run.dtype == "auto" else run.dtype
    try:
        needed = sum(rank_memory(configuration.model, run, world_size, dtype).values())
    except UserError:  # a component of the user's own that does not say what it keeps
        return
    check_memory("the run", needed, "a smaller model or batch fits; --dry_run plans any size")


def check_frozen(configuration: Configuration) -> None:
    """Raises UserError for a pattern that names no parameter, and where nothing is left to be trained."""
    frozen = configuration.run.frozen
    if frozen is None:
        return
    names = parameter_names(configuration.model)
    for pattern in frozen.split(","):
        if not fnmatch.filter(names, pattern.strip()):
            raise UserError(
                f"frozen: {pattern.strip()!r} is no parameter's name: they are such as {', '.join(sorted(names)[:3])}"
            )
    if all(map(configuration.run.freezes, names)):
        raise UserError(f"frozen={frozen!r} leaves nothing to be trained")


def check_adapters(configuration: Configuration) -> None:
    """Raises UserError for a target that is no linear layer of a mixer or an FFN."""
    adapters = configuration.run.adapters
    if adapters is None:
        return
    every = dataclasses.replace(adapters, targets=())
    names = parameter_names(configuration.model, every)
    modules = {name.rpartition(".")[0] for name in names if not is_of_adapter(name)} | {"lm_head"}
    adaptable = {name.partition(f".{LORA}.")[0] for name in names if is_of_adapter(name)}
    for pattern in adapters.targets:
        if any(matches(name, pattern) for name in adaptable):
            continue
        if any(matches(name, pattern) for name in modules):
            raise UserError(
                f"lora_targets: {pattern!r} is no linear layer of a mixer or an FFN: embedding and head, which may be "
                "one table, norms, routers and convolutions have no adapters"
            )
        some = ", ".join(sorted({name.rpartition(".")[2] for name in adaptable})[:4])
        raise UserError(f"lora_targets: {pattern!r} is no module's name: they are such as {some}")


def prediction_of(run: RunConfig) -> Prediction | None:
    """What the run's keys predict; None where they say nothing. Raises UserError for what is no law."""
    said = (run.predicted_loss, run.predicted_flops, run.predicted_seconds)
    if run.scaling_law is None and said == (None, None, None):
        return None
    try:
        return Prediction(named_law(run.scaling_law), *said)
    except UserError as error:
        raise UserError(f"scaling_law: {error}") from None


def named_law(value: str | dict | None) -> Law | None:
    """What the key `scaling_law` means. Raises UserError for what is no law."""
    if isinstance(value, dict):
        return law_from(value, "law")
    return None if value is None else find_law(value)


def check_ranks(configuration: Configuration, world_size: int) -> None:
    """Raises UserError when so many ranks cannot share the run as its keys say."""
    run = configuration.run
    check_mesh(configuration.model, run, world_size)
    accumulation, sharers = run.gradient_accumulation_steps, mesh_of(run, world_size).batches
    if accumulation % sharers:
        raise UserError(
            f"gradient_accumulation_steps={accumulation} is not divisible by the {sharers} ranks that share "
            f"a step's micro-batches: take a multiple, for instance {math.ceil(accumulation / sharers) * sharers}"
        )
    if run.pipeline_schedule == "1f1b" and accumulation < run.pipeline_parallel * sharers:
        raise UserError(
            f"pipeline_schedule='1f1b' needs {run.pipeline_parallel * sharers} micro-batches, pipeline_parallel="
            f"{run.pipeline_parallel} for each of {sharers} pipelines, and gradient_accumulation_steps={accumulation}: "
            "take as many, or pipeline_schedule='gpipe'"
        )
