"""Who this process is among the processes of a run, as torchrun tells it, and what it takes part in. No torch."""

import os
from dataclasses import dataclass, field, replace

from common.errors import UserError
from runs.config import RunConfig

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """One process of a run. `tensor_parallel` neighbouring ranks share every layer and so see the same data;
    `context_parallel` neighbouring groups of these divide every sequence; the data are shared among what they form.
    With `pipeline_parallel` there are as many of these for each stage, one stage after the other: the ranks at the same
    place in each see the same data."""

    rank: int
    local_rank: int
    size: int
    local_size: int = 1  # ranks of this machine
    tensor_parallel: int = 1
    context_parallel: int = 1
    pipeline_parallel: int = 1
    started_by: int | None = field(default=None, compare=False)  # the process that started this one

    def sharing(self, run: RunConfig) -> "Ranks":
        """The same, as they share a run's layers, sequences and blocks."""
        names = ("tensor_parallel", "context_parallel", "pipeline_parallel")
        return replace(self, **{name: getattr(run, name) for name in names})

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """Parts that a step's micro-batches are shared among."""
        return self.copies // self.context_parallel

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor_parallel % self.copies // self.context_parallel

    @property
    def copies(self) -> int:
        """Ranks, or groups of those that share every layer, with tokens of their own, in a stage: gradients are
        averaged over them."""
        return self.size // self.tensor_parallel // self.pipeline_parallel

    @property
    def stage(self) -> int:
        """Of the pipeline, from 0."""
        return self.rank // (self.size // self.pipeline_parallel)

    @property
    def speaks_for_its_tokens(self) -> bool:
        """Whether what it measures on its tokens counts in a sum over the ranks: of those with the same ones, one, and
        of a pipeline the last stage, which has the loss."""
        return self.rank % self.tensor_parallel == 0 and self.stage == self.pipeline_parallel - 1

    def own_part(self, length: int) -> slice:
        """The tokens of a sequence of so many that this rank has."""
        part, index = length // self.context_parallel, self.rank // self.tensor_parallel % self.context_parallel
        return slice(index * part, (index + 1) * part)

    def share(self, items: range) -> range:
        """This rank's part of `items`, in contiguous runs whose lengths differ by one at most."""
        each, extra = divmod(len(items), self.data_size)
        start = self.data_rank * each + min(self.data_rank, extra)
        return items[start : start + each + (self.data_rank < extra)]


ALONE = Ranks(rank=0, local_rank=0, size=1)


def ranks_from_environment() -> Ranks:
    """The ranks as torchrun tells them; a plain process is the first of one. Raises UserError for a broken
    environment."""
    defaults = dict(zip(LAUNCHER_VARIABLES, ("0", "0", "1", "1"), strict=True))
    try:
        rank, local_rank, size, local_size = (int(os.environ.get(name, default)) for name, default in defaults.items())
    except ValueError:
        raise UserError(f"{', '.join(LAUNCHER_VARIABLES)} must be numbers, as torchrun sets them") from None
    ranks = Ranks(rank, local_rank, size, local_size, started_by=os.getppid())
    if not 0 <= ranks.rank < ranks.size:
        raise UserError(f"RANK={ranks.rank} is not one of WORLD_SIZE={ranks.size} ranks: let torchrun set them")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if ranks.size > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={ranks.size}, but {' and '.join(missing)} do not say where the ranks meet: start them with "
            "torchrun"
        )
    return ranks


def restarts() -> int:
    """How often torchrun has started these ranks again after one of them failed (`--max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
