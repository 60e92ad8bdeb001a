"""What a run will do and cost, worked out before anything is built. No torch."""

import dataclasses
import math

from configurator import Configuration
from errors import UserError
from flops_parameter_counting.model_cost import CONVENTIONS, ModelCost, model_cost
from flops_parameter_counting.sharding import check_mesh
from training.dataset import Dataset
from training.schedule import run_length


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The run's arithmetic. FLOPs are training FLOPs per token, in both attention conventions."""

    cost: ModelCost
    flops_per_token: dict[str, int]
    tokens_per_step: int
    length: int  # optimizer steps
    windows: dict[str, int] | None  # of each split; None: the dataset is not prepared (a dry run)
    bytes_per_token: dict[str, float] | None

    @property
    def tokens(self) -> int:
        return self.length * self.tokens_per_step

    def flops(self, convention: str) -> int:
        """Of the whole run."""
        return self.tokens * self.flops_per_token[convention]

    def bits_per_byte(self, loss: float, split: str) -> float | None:
        """A loss in nats per token as bits per byte of the split's text; None for a dataset without text bytes."""
        per_token = (self.bytes_per_token or {}).get(split)
        return loss / math.log(2) / per_token if per_token else None


def plan_run(configuration: Configuration, dataset: Dataset | None) -> RunPlan:
    """Raises UserError for an unknown component, or a model and a dataset that do not fit."""
    model, run = configuration.model, configuration.run
    cost = model_cost(model)
    if dataset is not None:
        dataset.check_fits(model.block_size, model.vocab_size or 0)
    flops_per_token = {convention: cost.training_flops(convention) for convention in CONVENTIONS}
    tokens_per_step = run.sequences_per_step * model.block_size
    splits = {} if dataset is None else dataset.splits
    return RunPlan(
        cost=cost,
        flops_per_token=flops_per_token,
        tokens_per_step=tokens_per_step,
        length=run_length(run, tokens_per_step, flops_per_token["full"]),
        windows={name: split.n_windows(model.block_size) for name, split in splits.items()} or None,
        bytes_per_token={name: split.bytes_per_token for name, split in splits.items()} or None,
    )


def check_ranks(configuration: Configuration, world_size: int) -> None:
    """Raises UserError when so many ranks cannot share the run as its keys say."""
    run = configuration.run
    check_mesh(configuration.model, run, world_size)
    accumulation, sharers = run.gradient_accumulation_steps, world_size // run.tensor_parallel
    if accumulation % sharers:
        raise UserError(
            f"gradient_accumulation_steps={accumulation} is not divisible by the {sharers} ranks that share "
            f"a step's micro-batches: take a multiple, for instance {math.ceil(accumulation / sharers) * sharers}"
        )
