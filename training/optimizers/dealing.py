"""Which rank updates which matrix, where ranks have parts of them. No torch.

A parameter is a matrix (rows, columns) or a stack of them (copies, rows, columns), and a matrix of it some of its rows.
Tensor-parallel ranks divide one of its dimensions evenly, or have it whole; `shards` then divide the first one, as
torch.chunk does. A matrix that a rank has whole is updated there. The others are dealt out: each to the rank that has
the least to do, the costliest first.
"""

import dataclasses
import functools
import heapq
import math
from collections.abc import Callable, Sequence

Box = tuple[range, ...]  # of a parameter: which of its indices in each dimension


@dataclasses.dataclass(frozen=True)
class Layout:
    """A parameter's shape, the rows of each matrix of it, one below the other, and the dimension that tensor-parallel
    ranks divide (None: each has it whole)."""

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    tensor_dim: int | None = None

    @property
    def matrices(self) -> list[Box]:
        copies = [(range(copy, copy + 1),) for copy in range(self.shape[0])] if len(self.shape) == 3 else [()]
        ends = [sum(self.rows[: index + 1]) for index in range(len(self.rows))]
        of_one = [range(end - rows, end) for end, rows in zip(ends, self.rows, strict=True)]
        return [(*copy, rows, range(self.shape[-1])) for copy in copies for rows in of_one]

    def part(self, shard: int, shards: int, tensor: int, tensors: int) -> Box:
        """What a rank has, the `shard`-th of `shards` and the `tensor`-th of `tensors`."""
        box = [range(size) for size in self.shape]
        if self.tensor_dim is not None:
            each = self.shape[self.tensor_dim] // tensors
            box[self.tensor_dim] = range(tensor * each, (tensor + 1) * each)
        each = -(-len(box[0]) // shards)
        box[0] = box[0][shard * each : (shard + 1) * each]
        return tuple(box)


def size(box: Box) -> int:
    """Elements."""
    return math.prod(map(len, box))


def meet(one: Box, other: Box) -> Box:
    """What lies in both."""
    return tuple(range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def index(box: Box, inside: Box) -> tuple[slice, ...]:
    """Where a box lies in a tensor of the larger one."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, inside, strict=True))


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One of the parameter of this number, where it lies there, which part of it each rank gives, and who updates it:
    of those that tensor-parallel ranks have whole there is one for each of these."""

    parameter: int
    box: Box
    parts: tuple[Box, ...]
    owner: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.box[-2]), len(self.box[-1])

    @property
    def travels(self) -> bool:
        """Whether its owner lacks some of it."""
        return size(self.parts[self.owner]) < size(self.box)


Cost = Callable[[int, int], int]  # of a matrix (rows, columns)


def deal(layouts: Sequence[Layout], shards: int, tensors: int, cost: Cost) -> list[Matrix]:
    """Every matrix of these parameters, in their order, among shards x tensors ranks; the latter are neighbours."""
    found: list[tuple[int, int, Box, tuple[Box, ...], int | None]] = []
    for number, layout in enumerate(layouts):
        for column, box, parts, holder in _divided(layout, shards, tensors):
            found.append((number, column, box, parts, holder))
    costs = [cost(len(box[-2]), len(box[-1])) for _, _, box, _, _ in found]
    loads = [0] * (shards * tensors)
    for (_, _, _, _, holder), own in zip(found, costs, strict=True):
        if holder is not None:
            loads[holder] += own
    least = [[(loads[rank], rank) for rank in range(column, len(loads), tensors)] for column in range(tensors)]
    for heap in least:
        heapq.heapify(heap)
    owners = [holder if holder is not None else -1 for _, _, _, _, holder in found]
    for place in sorted(range(len(found)), key=lambda place: -costs[place]):
        if owners[place] < 0:
            column = found[place][1]
            heap = min(least, key=lambda heap: heap[0]) if column < 0 else least[column]
            load, owners[place] = heap[0]
            heapq.heapreplace(heap, (load + costs[place], owners[place]))
    return [Matrix(number, box, parts, owner) for (number, _, box, parts, _), owner in zip(found, owners, strict=True)]


@functools.cache
def _divided(layout: Layout, shards: int, tensors: int) -> list[tuple[int, Box, tuple[Box, ...], int | None]]:
    """Of each matrix the tensor-parallel rank that it is dealt out for (-1: all of them together), where it lies, the
    part of each rank, and the rank that has it whole."""
    nothing = (range(0),) * len(layout.shape)
    ranks = [(shard, tensor) for shard in range(shards) for tensor in range(tensors)]
    together = layout.tensor_dim is not None or tensors == 1
    held = [layout.part(shard, shards, tensor, tensors) for shard, tensor in ranks]
    found = []
    for column in [-1] if together else range(tensors):
        for box in layout.matrices:
            parts = tuple(
                meet(box, held[rank]) if column in (-1, tensor) else nothing for rank, (_, tensor) in enumerate(ranks)
            )
            whole = (rank for rank, part in enumerate(parts) if size(part) == size(box))
            found.append((column, box, parts, next(whole, None)))
    return found
