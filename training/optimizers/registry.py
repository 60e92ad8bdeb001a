"""The one list of optimizers, and what each states without PyTorch: what it keeps, what a step computes, which keys are
its own, and how PyTorch's class, or a library's, is made. Every file of this folder that registers one adds it.
"""

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from common.errors import UserError, did_you_mean

Run = Any  # a RunConfig, whose key `optimizer` asks this list
SPECS: dict[str, "OptimizerSpec"] = {}


class OptimizerSpec:
    """An optimizer. What it keeps of a parameter are tensors alone: a checkpoint holds nothing else.

    `keys` are the run's keys that change nothing beside other optimizers. `is_elementwise`: what it keeps and does of
    an element needs no other element, so that ranks can share it in any way. `takes_matrices`: matrices of linear
    layers, each alone and whole, go to `build_of_matrices`, whose class has a momentum as torch.optim.Muon has it;
    everything else to `build`.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # for people
    keys: ClassVar[tuple[str, ...]] = ()
    is_elementwise: ClassVar[bool] = True
    takes_matrices: ClassVar[bool] = False

    def check(self, run: Run) -> None:
        """Raises UserError for keys that cannot work together."""
        if not self.is_elementwise and run.is_sharded:
            raise UserError(
                f"optimizer={self.name!r} needs whole parameters on every rank: take neither use_zero1, use_fsdp nor "
                "tensor_parallel"
            )

    def numbers(self, is_matrix: bool) -> int:
        """Numbers, float32, that it keeps for every element of a matrix of a linear layer, or of anything else."""
        raise NotImplementedError

    def matrix_flops(self, rows: int, columns: int, run: Run) -> int:
        """FLOPs of the matrix products with which a step updates one matrix."""
        return 0

    def scratch(self, rows: int, columns: int, run: Run, apart: bool) -> int:
        """Bytes, at most, that updating one matrix takes for its time; `apart`: away from the rank's parameters."""
        return 0

    def new_state(self, parameter: Any) -> dict[str, Any]:
        """The tensors that it keeps of a parameter, or of a rank's part of one, as they are before the first step."""
        raise NotImplementedError

    def new_matrix_state(self, parameter: Any) -> dict[str, Any]:
        """The same of a parameter whose matrices go to `build_of_matrices`."""
        raise NotImplementedError

    def learning_rate_of_matrices(self, run: Run) -> float:
        """Where the schedule has its highest, of what goes to `build_of_matrices`."""
        return run.learning_rate

    def build(self, groups: list[dict[str, Any]], run: Run) -> Any:
        """A torch.optim.Optimizer of these parameter groups, which have their `weight_decay`."""
        raise NotImplementedError

    def build_of_matrices(self, matrices: Sequence[Any], run: Run, **instead: Any) -> Any:
        """A torch.optim.Optimizer of matrices (rows, columns), with arguments `instead` of those that the run says."""
        raise NotImplementedError


_Class = TypeVar("_Class", bound=type[OptimizerSpec])


def register_optimizer(spec_class: _Class) -> _Class:
    """Decorate an optimizer. Raises UserError for a name that exists."""
    if spec_class.name in SPECS:
        raise UserError(f"optimizer {spec_class.name!r} is registered already: choose another name")
    SPECS[spec_class.name] = spec_class()
    return spec_class


def optimizers() -> dict[str, OptimizerSpec]:
    """All of them, by name."""
    _import_all()
    return SPECS


@functools.cache
def _import_all() -> None:
    """Once: a search asks for an optimizer's memory again and again."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        importlib.import_module(f"{__package__}.{path.stem}")


def optimizer_spec(name: str) -> OptimizerSpec:
    """The optimizer of this name. Raises UserError for an unknown one."""
    known = optimizers()
    if name not in known:
        raise UserError(f"optimizer={name!r} is none of: {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def check_optimizer(run: Run, defaults: dict[str, Any]) -> None:
    """Raises UserError for an unknown optimizer, for keys that are another one's, and for what it cannot do."""
    chosen = optimizer_spec(run.optimizer)
    for other in optimizers().values():
        for key in other.keys:
            if key not in chosen.keys and getattr(run, key) != defaults[key]:
                raise UserError(
                    f"{key}={getattr(run, key)!r} changes nothing beside optimizer={run.optimizer!r}: drop it, or take "
                    f"optimizer={other.name!r}"
                )
    chosen.check(run)
