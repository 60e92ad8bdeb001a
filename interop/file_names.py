"""The names of tensors in files, where today's class of a model has others."""

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class InFiles:
    """How a family's files name what its class stacks: the module of a layer that has the router and the experts, and
    the matrices of an expert: gate, up and down."""

    module: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def stacked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the class has them. What is incomplete stays as it is, and is refused by its name."""
        names = "|".join((self.gate, self.up, self.down))
        pattern = re.compile(rf"(.*\.){re.escape(self.module)}\.experts\.(\d+)\.({names})\.weight")
        router, found = re.compile(rf"(.*\.){re.escape(self.module)}(\.gate\..*)"), dict[str, Tensor]()
        experts: dict[str, dict[tuple[int, str], Tensor]] = {}
        for name, tensor in tensors.items():
            if one := pattern.fullmatch(name):
                experts.setdefault(one[1], {})[int(one[2]), one[3]] = tensor
            elif one := router.fullmatch(name):
                found[f"{one[1]}mlp{one[2]}"] = tensor
            else:
                found[name] = tensor
        for layer, of_layer in experts.items():
            count = 1 + max(index for index, _ in of_layer)
            if len(of_layer) != 3 * count:
                found |= {f"{layer}{self.module}.experts.{i}.{name}.weight": x for (i, name), x in of_layer.items()}
                continue
            both = [torch.cat((of_layer[i, self.gate], of_layer[i, self.up])) for i in range(count)]
            found[f"{layer}mlp.experts.gate_up_proj"] = torch.stack(both)
            found[f"{layer}mlp.experts.down_proj"] = torch.stack([of_layer[i, self.down] for i in range(count)])
        return found

    def apart(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the files have them."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            layer, is_stack, kind = name.partition("mlp.experts.")
            if not is_stack:
                router = f"{self.module}.gate."
                found[name.replace("mlp.gate.", router) if "mlp.gate." in name else name] = tensor
                continue
            for index, matrix in enumerate(tensor):
                parts = zip((self.gate, self.up), matrix.chunk(2), strict=True) if kind == "gate_up_proj" else ()
                for own, part in parts or ((self.down, matrix),):
                    found[f"{layer}{self.module}.experts.{index}.{own}.weight"] = part.contiguous()
        return found


@dataclasses.dataclass(frozen=True)
class Renamed(InFiles):
    """Where files have every tensor as today's class has it, under another name: parts of names in files, and what the
    class calls them."""

    renamed: tuple[tuple[str, str], ...] = ()

    def stacked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {_replaced(name, self.renamed): tensor for name, tensor in tensors.items()}

    def apart(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        back = tuple((of_class, in_file) for in_file, of_class in self.renamed)
        return {_replaced(name, back): tensor for name, tensor in tensors.items()}


def _replaced(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name
