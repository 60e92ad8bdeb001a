"""AdamW with weight decay on matrices only, and its state under the parameters' names."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from run_config import RunConfig


def build_optimizer(parameters: Iterable[nn.Parameter], run: RunConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); norms, biases and other vectors are not decayed. Fused on every device."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": run.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (run.beta1, run.beta2)
    return torch.optim.AdamW(groups, lr=run.learning_rate, betas=betas, eps=run.adam_eps, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `<parameter>.<what>`; empty before the first step."""
    return {
        f"{name}.{what}": value
        for name, parameter in model.named_parameters()
        for what, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter, _, what = name.rpartition(".")
        optimizer.state[parameters[parameter]][what] = value
