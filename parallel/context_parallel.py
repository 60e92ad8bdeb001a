"""Context parallelism: neighbouring ranks divide every sequence, each with as many of its tokens.

    attention                   keys and values of earlier tokens are gathered from the ranks that have them (as Llama
                                Team 2024, The Llama 3 Herd of Models, section 3.3.2, but from earlier ranks alone)
    convolutions                the last tokens of the rank before
    states                      passed on: a rank begins with the state that the one before ends with, and by then that
                                one is on its way through the layers above

All else meets each token alone. What a rank receives on the way forward is what decoding would remember of the tokens
before its own; on the way back it gives as many gradients.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import init_device_mesh

from components.parts import added_over
from model_builder import LanguageModel
from parallel.expert_parallel import exchanged
from parallel.ranks import Ranks


def divide_sequences(model: LanguageModel, ranks: Ranks, device: torch.device) -> None:
    """Let the model, in place, be called on this rank's part of every sequence."""
    shape = (ranks.data_size, ranks.context_parallel, ranks.tensor_parallel)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "context", "tensor"))
    context = DividedSequence(mesh["context"].get_group())
    for module in model.modules():
        if hasattr(module, "context"):
            module.context = context  # type: ignore[assignment]
    for mixer in (cast(Any, block).mixer for block in model.blocks):
        if hasattr(mixer, "scan"):
            mixer.scan = Continued(mixer.scan, mixer.empty_cache, context)


class DividedSequence:
    """The ranks of a group, each with its part of a sequence (components/context.py)."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.rank, self.size = group, group.rank(), group.size()

    def start(self, length: int) -> int:
        return self.rank * length

    @torch.compiler.disable
    def before(self, x: Tensor, dim: int, window: int | None = None) -> Tensor:
        length, distances = x.shape[dim], [rank - self.rank for rank in range(self.size)]
        given, taken = ([_met(length, sign * one, window) for one in distances] for sign in (1, -1))
        return cast(Tensor, _Before.apply(x.movedim(dim, 0), given, taken, self.group)).movedim(0, dim)

    @torch.compiler.disable
    def mean(self, x: Tensor) -> Tensor:
        return added_over(x, self.group) / self.size

    def send(self, values: Tensor, rank: int) -> None:
        """To another rank."""
        dist.send(values.contiguous(), group=self.group, group_dst=rank)

    def receive(self, values: Tensor, rank: int) -> None:
        """In place, what another rank sends."""
        dist.recv(values, group=self.group, group_src=rank)


def _met(length: int, distance: int, window: int | None) -> int:
    """Of a rank's `length` tokens, the last of them, how many the first query of the rank `distance` after it meets."""
    if distance <= 0:
        return 0
    return length if window is None else max(0, min(length, window - 1 - (distance - 1) * length))


class _Before(torch.autograd.Function):
    """rows (T, ...), the last `given` of which go to each rank -> (sum of taken, ...), in the ranks' order. A row's
    gradient is the sum over the ranks that it went to, in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, given: list[int], taken: list[int], group: Any) -> Tensor:
        ctx.given, ctx.taken, ctx.group, ctx.shape = given, taken, group, rows.shape
        return exchanged(torch.cat([rows[len(rows) - count :] for count in given]), given, taken, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        of_ranks = exchanged(gradient, ctx.taken, ctx.given, ctx.group).split(ctx.given)
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        summed = torch.zeros(ctx.shape, dtype=dtype, device=gradient.device)
        for one in of_ranks:
            summed[len(summed) - len(one) :] += one
        return summed.to(gradient.dtype), None, None, None


class Continued:
    """A scan that begins with the state which the rank before ends with. `empty`: a mixer's empty_cache."""

    def __init__(self, scan: Callable[..., tuple[Tensor, Tensor]], empty: Callable[..., Any], context: DividedSequence):
        self.scan, self.empty, self.context = scan, empty, context

    def __call__(self, x: Tensor, *others: Any, **more: Any) -> tuple[Tensor, Tensor]:
        x, state = self._taken(x, self.empty(len(x), 0).state)
        return self._handed(*self.scan(x, *others, **more, initial_state=state))

    @torch.compiler.disable
    def _taken(self, x: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], _Taken.apply(x, empty, self.context))

    @torch.compiler.disable
    def _handed(self, y: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], _Handed.apply(y, state, self.context))


class _Taken(torch.autograd.Function):
    """x, and in place of an empty state that of the rank before; the first rank has none before it. It hangs on x, so
    that every rank has it in its graph and all come to it in one order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, empty: Tensor, context: DividedSequence) -> tuple[Tensor, Tensor]:
        ctx.context, state = context, empty.clone()
        if context.rank > 0:
            context.receive(state, context.rank - 1)
        return x.view_as(x), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_state: Tensor) -> tuple[Any, ...]:
        if ctx.context.rank > 0:
            ctx.context.send(of_state, ctx.context.rank - 1)
        return gradient, None, None


class _Handed(torch.autograd.Function):
    """y, and the state, which the rank after it gets. The gradient of y waits for that of the state."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, state: Tensor, context: DividedSequence) -> tuple[Tensor, Tensor]:
        ctx.context = context
        if context.rank < context.size - 1:
            context.send(state, context.rank + 1)
        return y.view_as(y), state.view_as(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_state: Tensor) -> tuple[Any, ...]:
        if ctx.context.rank < ctx.context.size - 1:
            of_state = torch.empty_like(of_state, memory_format=torch.contiguous_format)
            ctx.context.receive(of_state, ctx.context.rank + 1)
        return gradient, of_state, None
