"""ZeRO stage 1 (Rajbhandari et al. 2020): every rank keeps the optimizer state of its rows of each parameter, updates
those rows, and receives the others'.

PyTorch's ZeroRedundancyOptimizer deals out whole parameters: GPT-2's embedding alone is a third of the model, and its
state cannot be divided anew for another number of ranks. Rows divide evenly, and as DTensors their state is saved and
loaded like that of every other strategy.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

# Its name until torch 2.12, and the one since.
gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ZeroOptimizer(torch.optim.Optimizer):
    """An optimizer over whole parameters with whole gradients that holds one rank's part of the state.

    `build` makes the optimizer of this rank's rows from parameter groups like those given here. It must treat every
    element alone, as Adam does.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        mesh: DeviceMesh,
    ):
        self.mesh = mesh
        self.rows: dict[nn.Parameter, Tensor] = {}  # this rank's, a view of the parameter
        for parameter in (p for group in groups for p in group["params"]):
            self.rows[parameter] = self._chunks(parameter.detach())[mesh.get_local_rank()]
        mine = [{**group, "params": [self.rows[p] for p in group["params"]]} for group in groups]
        self.inner = build(mine)
        super().__init__(groups, {})

    def _chunks(self, whole: Tensor) -> list[Tensor]:
        """The rows of every rank, as DTensor divides them; the last ones may have none."""
        chunks = list(whole.chunk(self.mesh.size()))
        return chunks + [whole[:0]] * (self.mesh.size() - len(chunks))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update this rank's rows and exchange them: afterwards the parameters are whole again on every rank."""
        for whole, mine in zip(self.param_groups, self.inner.param_groups, strict=True):
            mine["lr"] = whole["lr"]
            for parameter, rows in zip(whole["params"], mine["params"], strict=True):
                gradient = parameter.grad
                rows.grad = None if gradient is None else self._chunks(gradient)[self.mesh.get_local_rank()]
        self.inner.step()
        for rows in self.rows.values():
            rows.grad = None
        if self.mesh.size() > 1:
            for work in [work for parameter in self.rows for work in self._exchange(parameter.detach())]:
                work.wait()

    def _exchange(self, whole: Tensor) -> Iterable[dist.Work]:
        """Every rank's rows to every rank, started and not waited for."""
        chunks, group = self._chunks(whole), self.mesh.get_group()
        if len(whole) % self.mesh.size() == 0:
            yield gather(whole, chunks[self.mesh.get_local_rank()], group=group, async_op=True)
            return
        for owner, rows in enumerate(chunks):  # as many bytes, in more messages
            if rows.numel():
                yield dist.broadcast(rows, group=group, group_src=owner, async_op=True)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The state as that of the whole parameter: what has its rows is a DTensor."""
        rows = self.rows[parameter]
        return {
            name: self.distributed(value, parameter) if value.shape == rows.shape else value
            for name, value in self.inner.state[rows].items()
        }

    def distributed(self, rows: Tensor, parameter: nn.Parameter) -> DTensor:
        """This rank's rows of something as large as the parameter, as part of the whole."""
        whole = parameter.detach()
        return DTensor.from_local(
            rows, self.mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
        )
