"""Low-rank adapters beside frozen matrices: which parameters they are, and of which matrices, without PyTorch.

What a matrix W (rows, columns) makes of x becomes W x + scaling B A x, with A (r, columns) and B (rows, r) trained and
W not (Hu et al. 2021, LoRA, section 4.1). A stack of matrices has a stack of adapters. Names and defaults are PEFT's.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Iterable
from typing import Any

from components.spec import Weights

LORA = "lora"  # the name of an adapter in the module whose matrix it adapts
PART = "adapters"  # what its FLOPs are counted under


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The adapters of a model. `targets`: patterns of the names of modules, whole or from any dot on; none: every
    linear layer of mixers and FFNs, and every expert's."""

    r: int
    alpha: float
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False

    @property
    def scaling(self) -> float:
        """alpha / r; with rsLoRA alpha / sqrt(r), at which a higher rank learns no more slowly (Kalajdzievski 2023, A
        Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, theorem 3.2)."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def title(self) -> str:
        kind = f"{'rs' * self.use_rslora}{'DoRA' if self.use_dora else 'LoRA'}"
        return f"{kind}, r={self.r}, times {self.scaling:g}"

    def adapt(self, weights: Weights, name: str) -> bool:
        """Whether this one of them, under its full name, has an adapter: linear layers, or stacks of them, that
        compute in the compute dtype. Routers do not."""
        module, _, kind = name.rpartition(".")
        is_chosen = not self.targets or any(matches(module, pattern) for pattern in self.targets)
        return weights.are_matrices and kind == "weight" and is_chosen

    def beside(self, weights: Iterable[Weights]) -> list[Weights]:
        """The parameters of a component with, after each that has one, those of its adapter."""
        found: list[Weights] = []
        for one in weights:
            found.append(one)
            for name in one.names:
                if self.adapt(one, name):
                    found += self._of(one, name.removesuffix(".weight"))
        return found

    def _of(self, weights: Weights, module: str) -> list[Weights]:
        *copies, rows, columns = weights.shape
        shared: dict[str, Any] = {
            "part": PART, "met": weights.met, "by_expert": weights.by_expert, "writes": weights.writes
        }  # fmt: skip
        A = Weights((f"{module}.{LORA}.A",), (*copies, self.r, columns), True, fed_by=weights.fed_by, **shared)
        B = Weights(
            (f"{module}.{LORA}.B",), (*copies, rows, self.r), True, fed_by=(f"{_last(module)}.{LORA}",), **shared
        )
        magnitude = Weights((f"{module}.{LORA}.magnitude",), (*copies, rows), **shared)
        return [A, B, magnitude] if self.use_dora else [A, B]


def is_of_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return f".{LORA}." in name


def matches(module: str, pattern: str) -> bool:
    """Whether a module's name, or what follows one of its dots, is of a pattern."""
    return fnmatch.fnmatchcase(module, pattern) or fnmatch.fnmatchcase(module, f"*.{pattern}")


def _last(module: str) -> str:
    """The name within its half of a block, of `blocks.<index>.<half>.<name>`."""
    return module.split(".", 3)[-1]
