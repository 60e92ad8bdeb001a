"""What a rank has of tensors that may be distributed, and what ranks that share a layer add up within it."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from torch.nn import functional as F


def own_part(values: Tensor) -> Tensor:
    """This rank's part, or all of what every rank has whole, in the same memory; of the latter, the gradient is the sum
    of all ranks'."""
    if not isinstance(values, DTensor):
        return values
    gradients = [Partial() if one.is_replicate() else one for one in values.placements]
    return values.to_local(grad_placements=gradients)


def ranks_of(parameter: Tensor) -> int:
    """How many ranks share a layer that it is of: tensor-parallel ones."""
    if not isinstance(parameter, DTensor) or "tensor" not in (parameter.device_mesh.mesh_dim_names or ()):
        return 1
    return parameter.device_mesh["tensor"].size()


def parts_of(layer: Any) -> tuple[Tensor, Tensor | None]:
    """This rank's part of the matrix of an nn.Linear, or of those of a StackedLinear, and of the bias."""
    return own_part(layer.weight), None if layer.bias is None else own_part(layer.bias)


def summand_of(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The same of a layer whose output the ranks add up: each adds its share of the bias."""
    (weight, bias), ranks = parts_of(layer), ranks_of(layer.weight)
    return weight, bias if bias is None or ranks == 1 else bias / ranks


class PartLinear(nn.Linear):
    """A linear layer, of which a rank computes the outputs whose rows it has, or all: (..., in) -> (..., own out)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *parts_of(self))


class SummandLinear(nn.Linear):
    """A linear layer, of which a rank has the columns of its own inputs: (..., own in) -> (..., out), to be added up
    over the ranks."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *summand_of(self))


def added_up(values: Tensor, parameter: Tensor) -> Tensor:
    """The sum of the values of all ranks that share `parameter`, of one shape, on each of them; alone, the values
    themselves. What each rank makes of the sum is its own, and so is its gradient: these are added up, too."""
    if not isinstance(parameter, DTensor):
        return values
    return added_over(values, parameter.device_mesh.get_group())


def added_over(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of the values of a group's ranks, on each of them, and likewise of their gradients."""
    return cast(Tensor, _AddedUp.apply(values, group))


class _AddedUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_reduced(values, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_reduced(gradient, ctx.group), None


def _all_reduced(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
