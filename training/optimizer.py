"""AdamW with weight decay on matrices only, and its state under the parameters' names."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from parallel.zero import ZeroOptimizer
from runs.config import RunConfig


def build_optimizer(model: nn.Module, run: RunConfig, mesh: DeviceMesh | None = None) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); norms, biases and other vectors are not decayed. Fused on every device.

    With `use_zero1` its state is divided over the data ranks of the mesh.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    # The biases of stacked layers are as many rows as there are layers
    matrices = {name for name, parameter in trained.items() if parameter.dim() >= 2 and not name.endswith(".bias")}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained.items() if name in matrices], "weight_decay": run.weight_decay},
        {"params": [p for name, p in trained.items() if name not in matrices], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adamw = functools.partial(
        torch.optim.AdamW, lr=run.learning_rate, betas=(run.beta1, run.beta2), eps=run.adam_eps, fused=True
    )
    return ZeroOptimizer(groups, adamw, mesh["replica"]) if mesh is not None and run.use_zero1 else adamw(groups)


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
    """Gives every parameter AdamW's state as it is before the first step, to be loaded into; returns it like
    `optimizer_tensors`."""
    inner = optimizer.inner if isinstance(optimizer, ZeroOptimizer) else optimizer
    for group in inner.param_groups:
        for parameter in group["params"]:
            inner.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer_tensors(model, optimizer)
