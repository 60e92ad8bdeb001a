"""An optimizer of whole matrices, such as Muon, on ranks that have parts of them.

The running mean of an element's gradient needs no other element: every rank keeps it for its part. What is made of it
needs the whole matrix, once: the ranks deal the matrices out, each gets the parts of its own from the others,
orthogonalises them, and sends the parts of the change back. Had each rank orthogonalised its part, the update would be
another one.
"""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from components.parts import own_part
from runs.config import RunConfig
from training.optimizers.dealing import Box, Layout, Matrix, deal, index, size
from training.optimizers.registry import OptimizerSpec


@dataclasses.dataclass(frozen=True)
class Sharing:
    """The ranks that have the parts of one copy of the model: `shards` x `tensor`, the latter neighbours."""

    group: dist.ProcessGroup | None = None
    shards: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        return self.shards * self.tensor

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)


def sharing_of(mesh: DeviceMesh | None, divides_replicas: bool) -> Sharing:
    """Those of a mesh of `replica` x `shard` x `tensor`; with ZeRO-1 replicas have rows of the optimizer's state."""
    if mesh is None:
        return Sharing()
    if divides_replicas:
        return Sharing(mesh["replica"].get_group(), mesh["replica"].size())
    shards, tensor = mesh["shard"].size(), mesh["tensor"].size()
    if shards > 1 and tensor > 1:
        group, _ = dist.new_subgroups(shards * tensor)  # neighbours, as the mesh has them
        return Sharing(group, shards, tensor)
    return Sharing(mesh["shard" if shards > 1 else "tensor"].get_group(), shards, tensor)


def tensor_dim(parameter: Tensor) -> int | None:
    """The dimension of a parameter that tensor-parallel ranks divide."""
    if not isinstance(parameter, DTensor) or "tensor" not in (parameter.device_mesh.mesh_dim_names or ()):
        return None
    placement = parameter.placements[parameter.device_mesh.mesh_dim_names.index("tensor")]  # type: ignore[union-attr]
    return placement.dim if isinstance(placement, Shard) else None


class WholeMatrices(torch.optim.Optimizer):
    """Muon, of parameters of which this rank may have parts: `group` is their one parameter group, with the `layouts`
    of the whole ones. A matrix that this rank has whole is left to torch.optim.Muon, as a view of the parameter."""

    def __init__(self, group: dict[str, Any], sharing: Sharing, spec: OptimizerSpec, run: RunConfig):
        self.sharing, self.spec, self.run = sharing, spec, run
        place, tensor = divmod(sharing.rank, sharing.tensor)
        layouts: list[Layout] = group["layouts"]
        self.boxes = [layout.part(place, sharing.shards, tensor, sharing.tensor) for layout in layouts]
        found = deal(layouts, sharing.shards, sharing.tensor, lambda m, n: spec.matrix_flops(m, n, run))
        self.whole = [one for one in found if one.owner == sharing.rank and not one.travels]
        travelling, ranks = [one for one in found if one.travels], range(sharing.size)
        # Of each rank: the matrices of which it gets parts from this one, and those of which it gives parts to this one
        self.given, self.taken = (
            [[one for one in travelling if one.owner == owner and size(one.parts[giver])] for giver, owner in pairs]
            for pairs in ([(sharing.rank, other) for other in ranks], [(other, sharing.rank) for other in ranks])
        )
        self.exchanges = bool(travelling)  # the same on every rank, also on one that has a part in none
        super().__init__([group], {"lr": spec.learning_rate_of_matrices(run)})
        for parameter, box in zip(group["params"], self.boxes, strict=True):
            assert own_part(parameter.detach()).shape == tuple(map(len, box)), "a layout that is not the parameter's"
        self.views = [self._part(group["params"][one.parameter].detach(), one, one.box) for one in self.whole]
        self.inner = spec.build_of_matrices(self.views, run) if self.views else None

    def _part(self, values: Tensor, matrix: Matrix, box: Box) -> Tensor:
        """What lies in a box of a matrix, (rows, columns), as a view of this rank's part of a parameter or of something
        as large."""
        own = own_part(values)[index(box, self.boxes[matrix.parameter])]
        return own[0] if own.dim() == 3 else own

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices that this rank has whole, and its parts of all others."""
        (group,) = self.param_groups
        for parameter in group["params"]:
            if not self.state[parameter]:
                self.state[parameter] = self.spec.new_matrix_state(parameter)
        self._update_whole(group)
        if self.exchanges:
            self._update_parts(group)

    def _update_whole(self, group: dict[str, Any]) -> None:
        if self.inner is None:
            return
        self.inner.param_groups[0]["lr"] = group["lr"]
        for view, one in zip(self.views, self.whole, strict=True):
            parameter = group["params"][one.parameter]
            view.grad = self._part(parameter.grad, one, one.box)
            self.inner.state[view] = {
                name: self._part(values, one, one.box) for name, values in self.state[parameter].items()
            }
        self.inner.step()
        for view in self.views:
            view.grad = None

    def _update_parts(self, group: dict[str, Any]) -> None:
        rank, parameters = self.sharing.rank, group["params"]
        n_given = [sum(size(one.parts[rank]) for one in of_owner) for of_owner in self.given]
        n_taken = [sum(size(one.parts[giver]) for one in of) for giver, of in enumerate(self.taken)]
        device = own_part(parameters[0].detach()).device
        parts, received = (torch.empty(sum(numbers), device=device) for numbers in (n_given, n_taken))
        mine = [one for of_owner in self.given for one in of_owner]
        pieces = parts.split([size(one.parts[rank]) for one in mine])
        for one, piece in zip(mine, pieces, strict=True):
            self._advance(parameters[one.parameter], one, piece)
        dist.all_to_all_single(received, parts, n_taken, n_given, group=self.sharing.group)
        self._change(received, group["lr"])
        dist.all_to_all_single(parts, received, n_given, n_taken, group=self.sharing.group)
        for one, piece in zip(mine, pieces, strict=True):
            own = self._part(parameters[one.parameter].detach(), one, one.parts[rank])
            own.mul_(1 - group["lr"] * group["weight_decay"]).add_(piece.view_as(own))

    def _advance(self, parameter: Tensor, one: Matrix, piece: Tensor) -> None:
        """This rank's part of the running mean of a matrix's gradient, and of what is to be orthogonalised, in the
        arithmetic of torch.optim.Muon."""
        momentum, box = self.run.muon_momentum, one.parts[self.sharing.rank]
        gradient = self._part(parameter.grad, one, box)  # type: ignore[arg-type]
        mean = self._part(self.state[parameter]["momentum_buffer"], one, box)
        mean.lerp_(gradient, 1 - momentum)
        piece = piece.view_as(mean)
        if self.run.muon_nesterov:
            torch.lerp(gradient, mean, momentum, out=piece)
        else:
            piece.copy_(mean)

    def _change(self, received: Tensor, lr: float) -> None:
        """In place of the parts of whole matrices the parts of what is added to them: without momentum, a step from
        zero."""
        coming = [(one, one.parts[giver]) for giver, of_giver in enumerate(self.taken) for one in of_giver]
        pieces: dict[int, list[tuple[Box, Tensor]]] = {}
        for (one, box), piece in zip(coming, received.split([size(box) for _, box in coming]), strict=True):
            pieces.setdefault(id(one), []).append((box, piece))
        for one in {id(one): one for one, _ in coming}.values():
            self._change_one(one, pieces[id(one)], lr)

    def _change_one(self, one: Matrix, pieces: list[tuple[Box, Tensor]], lr: float) -> None:
        update = pieces[0][1].new_empty(tuple(map(len, one.box)))
        for box, piece in pieces:
            place = update[index(box, one.box)]
            place.copy_(piece.view_as(place))
        change = self._from_zero(update.view(one.shape), lr).view_as(update)
        for box, piece in pieces:
            place = change[index(box, one.box)]
            piece.view_as(place).copy_(place)

    def _from_zero(self, update: Tensor, lr: float) -> Tensor:
        """Where a step without momentum along `update` leads a matrix of zeros."""
        matrix = torch.zeros_like(update)
        matrix.grad = update
        self.spec.build_of_matrices(
            [matrix], self.run, lr=lr, weight_decay=0.0, momentum=0.0, nesterov=False
        ).step()  # fmt: skip
        return matrix
