"""Expert parallelism: neighbouring data ranks share the experts of every layer, and tokens travel to them (Lepikhin et
al. 2020, GShard, section 3.2). The rest of the model is DDP's or FSDP's.

    tokens of this rank ─ router ─ sorted by expert ─ to the ranks that have them ─ experts ─ and back ─ weighted sum
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from components.ffns.experts.products import Expert, sorted_by_expert
from model_builder import LanguageModel
from parallel.ranks import Ranks

Routed = Callable[[Tensor, Tensor, Tensor, Expert], Tensor]  # what components/ffns/experts/products.py has several of
EXPERTS = "experts"  # the dimension of the mesh along which they are divided


def share_experts(model: LanguageModel, ranks: Ranks, sharers: int, device: torch.device) -> set[nn.Parameter]:
    """Divide every layer's experts, in place, among `sharers` neighbouring ranks; the groups of these have copies.
    Returns their parameters, which are left to nobody else to share."""
    shape = (ranks.size // sharers, sharers)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("copies", EXPERTS))
    shared = set()
    for block, layer in zip(model.blocks, model.config.layers, strict=True):
        spec, ffn = layer.ffn_spec, cast(Any, block).ffn
        stated = [] if spec is None else spec.all_weights(model.config.of(layer))
        names = [name for weights in stated if weights.by_expert for name in weights.names]
        if not names:
            continue
        for inner, own in (name.rsplit(".", 1) for name in names):
            module = ffn.get_submodule(inner)
            whole = getattr(module, own)
            parameter = nn.Parameter(distribute_tensor(whole, mesh, [Replicate(), Shard(0)]))
            module.register_parameter(own, parameter)
            shared.add(parameter)
        ffn.routed = Elsewhere(ffn.routed, mesh[EXPERTS].get_group())
    return shared


def shares_experts(values: Any) -> bool:
    """Whether a parameter, or something as large, is of experts that ranks share."""
    return isinstance(values, DTensor) and EXPERTS in (values.device_mesh.mesh_dim_names or ())


class Elsewhere:
    """What experts make of their tokens, (N, D), weights and chosen (N, k) -> (N, D), where each rank of a group has
    some of the experts: as `routed` makes it of what arrives here."""

    def __init__(self, routed: Routed, group: dist.ProcessGroup):
        self.routed, self.group = routed, group

    @torch.compiler.disable
    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor, expert: Expert) -> Tensor:
        ranks, n_own = self.group.size(), expert.gate[0].shape[0]
        order = sorted_by_expert(chosen, ranks * n_own)
        tokens, counts = order.tokens, order.counts
        arriving = torch.empty_like(counts)  # (ranks x n_own,): from each rank, how many for each expert here
        dist.all_to_all_single(arriving, counts, group=self.group)
        given, taken = (of.view(ranks, n_own).sum(1).tolist() for of in (counts, arriving))
        there = _Out.apply(x, tokens, given, taken, self.group)  # (R', D), by the rank that they come from
        experts = torch.arange(n_own, device=x.device).repeat(ranks).repeat_interleave(arriving)
        made = self.routed(there, weights.new_ones(len(there), 1), experts[:, None], expert).to(x.dtype)
        back = _Back.apply(made, order.rows, taken, given, self.group)  # (R, D), of each token k one after the other
        return (weights[..., None] * back.view(*weights.shape, -1)).sum(1)


class _Out(torch.autograd.Function):
    """A row for each choice to the rank that has its expert: `given` of them to each, for `taken` from each. A token's
    gradient is the sum over its rows, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, given: list[int], taken: list[int], group: Any) -> Tensor:
        ctx.given, ctx.taken, ctx.group, ctx.shape = given, taken, group, x.shape
        ctx.save_for_backward(tokens)
        return exchanged(x[tokens], given, taken, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (tokens,) = ctx.saved_tensors
        of_rows = exchanged(gradient, ctx.taken, ctx.given, ctx.group)
        summed = torch.zeros(ctx.shape, device=of_rows.device).index_add_(0, tokens, of_rows.float())
        return summed.to(of_rows.dtype), None, None, None, None


class _Back(torch.autograd.Function):
    """What came of rows to the ranks that they are of, there put back in the `places` that they were sorted from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, given: list[int], taken: list[int], group: Any) -> Tensor:
        ctx.given, ctx.taken, ctx.group = given, taken, group
        ctx.save_for_backward(places)
        received = exchanged(rows, given, taken, group)
        return torch.empty_like(received).index_copy_(0, places, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (places,) = ctx.saved_tensors
        return exchanged(gradient[places], ctx.taken, ctx.given, ctx.group), None, None, None, None


def exchanged(rows: Tensor, given: list[int], taken: list[int], group: dist.ProcessGroup) -> Tensor:
    """Rows (sum of given, ...), in the order of the ranks that so many of them are for -> (sum of taken, ...), in the
    order of those that they come from."""
    received = rows.new_empty(sum(taken), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), taken, given, group=group)
    return received


def complete_gradient(parameter: nn.Parameter) -> None:
    """Of what ranks share: tokens of a whole group have added to it; the groups' sums are added up here (by
    DTensor), and divided by the ranks, as those of the rest of the model are."""
    gradient = cast(DTensor, parameter.grad)
    mesh = gradient.device_mesh
    summed = gradient.redistribute(mesh, cast(DTensor, parameter).placements)
    parameter.grad = summed / mesh.size()
