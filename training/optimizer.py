"""A run's optimizer, whatever its ranks share, and its state under the parameters' names."""

import functools
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from components.parts import own_part
from flops_parameter_counting.costs.model_cost import named_weights
from model_builder import LanguageModel
from parallel.expert_parallel import shares_experts
from parallel.whole_matrices import Sharing, WholeMatrices, sharing_of, tensor_dim
from parallel.zero import ZeroOptimizer
from runs.config import RunConfig
from training.optimizers.dealing import Layout
from training.optimizers.registry import OptimizerSpec, optimizer_spec


class Combined(torch.optim.Optimizer):
    """Several optimizers, of other parameters each, as one, with the parameter groups of all."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self.optimizers = optimizers
        for one in optimizers:
            one.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for one in self.optimizers:
            one.step()


def build_optimizer(model: nn.Module, run: RunConfig, mesh: DeviceMesh | None = None) -> torch.optim.Optimizer:
    """What `run.optimizer` names (training/optimizers/); norms, biases and other vectors are not decayed.

    With `use_zero1` its state is divided over the data ranks of the mesh.
    """
    spec = optimizer_spec(run.optimizer)
    groups = parameter_groups(model, run, spec)
    if not spec.takes_matrices:
        build = functools.partial(spec.build, run=run)
    else:
        build = functools.partial(_build_both, spec=spec, run=run, sharing=sharing_of(mesh, run.use_zero1))
    return ZeroOptimizer(groups, build, mesh["replica"]) if mesh is not None and run.use_zero1 else build(groups)


def _build_both(
    groups: list[dict[str, Any]], spec: OptimizerSpec, run: RunConfig, sharing: Sharing
) -> torch.optim.Optimizer:
    matrices, others = ([group for group in groups if ("layouts" in group) == wanted] for wanted in (True, False))
    found: list[torch.optim.Optimizer] = [
        WholeMatrices(group, Sharing() if shares_experts(group["params"][0]) else sharing, spec, run)
        for group in matrices
    ]
    return Combined([*found, spec.build(others, run)] if others else found)


def parameter_groups(model: nn.Module, run: RunConfig, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """What is trained: the matrices of linear layers, where the optimizer takes them, with how they are made up
    (`layouts`); what is decayed besides; and the rest. `of_learning_rate`: what the learning rate is multiplied by."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = layouts_of(model) if spec.takes_matrices else {}
    layouts = {name: layout for name, layout in found.items() if name in trained}
    # The biases of stacked layers are as many rows as there are layers
    tables = {name for name, parameter in trained.items() if parameter.dim() >= 2 and not name.endswith(".bias")}
    others: dict[str, Any] = {"of_learning_rate": 1.0, "new_state": spec.new_state}
    groups: list[dict[str, Any]] = [
        {"names": tables - layouts.keys(), "weight_decay": run.weight_decay, **others},
        {"names": trained.keys() - tables, "weight_decay": 0.0, **others},
    ]
    if layouts:
        groups.insert(0, {
            "names": layouts.keys(), "weight_decay": run.weight_decay, "layouts": list(layouts.values()),
            "of_learning_rate": spec.learning_rate_of_matrices(run) / run.learning_rate if run.learning_rate else 1.0,
            "new_state": spec.new_matrix_state,
        })  # fmt: skip
    for group in groups:
        names = group.pop("names")
        group["params"] = [parameter for name, parameter in trained.items() if name in names]
    return [part for group in groups for part in _by_mesh(group)]


def _by_mesh(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A parameter group as one of what all ranks share in one way, and one of experts that some of them share: one
    call of PyTorch's cannot update both. Groups without parameters are none."""
    found = []
    for wanted in (False, True):
        chosen = [shares_experts(parameter) == wanted for parameter in group["params"]]
        own = {name: group[name] for name in ("params", "layouts") if name in group}
        if any(chosen):
            found.append(group | {name: list(itertools.compress(values, chosen)) for name, values in own.items()})
    return found


def layouts_of(model: nn.Module) -> dict[str, Layout]:
    """How the matrices of linear layers make up parameters, of those that the specs say are any, in their order; of
    experts that ranks share, this rank's part of a parameter."""
    if not isinstance(model, LanguageModel):
        return {}
    stated = {
        name: one
        for found in named_weights(model.config, adapters=model.adapters)
        for one in found.weights
        for name in one.names
    }
    return {
        name: Layout(tuple(_shared(parameter).shape), stated[name].rows_of_matrices, tensor_dim(parameter))
        for name, parameter in model.named_parameters()
        if stated[name].are_matrices
    }


def _shared(parameter: nn.Parameter) -> Tensor:
    """What ranks with the same experts have together of it."""
    return own_part(parameter.detach()) if shares_experts(parameter) else parameter


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `<parameter>.<what>`; empty before the first step."""

    def state(parameter: nn.Parameter) -> dict[str, Tensor]:
        return optimizer.state_of(parameter) if isinstance(optimizer, ZeroOptimizer) else optimizer.state[parameter]

    return {
        f"{name}.{what}": value
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for what, value in state(parameter).items()
    }


def empty_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Gives every parameter the optimizer's state as it is before the first step, to be loaded into; returns it like
    `optimizer_tensors`."""
    inner = optimizer.inner if isinstance(optimizer, ZeroOptimizer) else optimizer
    for group in inner.param_groups:
        for parameter in group["params"]:
            inner.state[parameter] = group["new_state"](parameter)
    return optimizer_tensors(model, optimizer)
