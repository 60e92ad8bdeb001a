"""Who this process is among the processes of a run, as torchrun tells it. No torch."""

import os
from dataclasses import dataclass

from errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Who this process is among the processes of the run."""

    rank: int
    local_rank: int
    size: int
    local_size: int = 1  # ranks of this machine

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: range) -> range:
        """This rank's part of `items`, in contiguous runs whose lengths differ by one at most."""
        each, extra = divmod(len(items), self.size)
        start = self.rank * each + min(self.rank, extra)
        return items[start : start + each + (self.rank < extra)]


ALONE = Ranks(rank=0, local_rank=0, size=1)


def ranks_from_environment() -> Ranks:
    """As torchrun tells them; a plain process is the first of one. Raises UserError for a broken environment."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    try:
        return Ranks(*(int(os.environ.get(name, default)) for name, default in names.items()))
    except ValueError:
        raise UserError(f"{', '.join(names)} must be numbers, as torchrun sets them") from None
