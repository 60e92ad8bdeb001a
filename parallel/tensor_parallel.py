"""Tensor parallelism: every layer shared by neighbouring ranks (Shoeybi et al. 2019, Megatron-LM), the norms and the
residual stream along the sequence (Korthikanti et al. 2022).

    tokens ─ embedding (rows of the vocabulary) ─ positions ─┐ sequence split
      ┌──────────────────────────────────────────────────────┘
      │  norm ─ gather ─ q, k, v by heads ─ attention ─ o ─ sum and split ─ (+)      each block
      │  norm ─ gather ─ a state's inputs by heads ─ scan or rule ─ o ─ sum and split ─ (+)      or this
      │  norm ─ gather ─ gate, up by columns ─ activation ─ down ─ sum and split ─ (+)
      └─ final norm ─ gather ─ head (rows of the vocabulary) ─ loss of all rows
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from components.parts import own_part
from components.spec import Spec
from flops_parameter_counting.costs.model_cost import places_of
from model_builder import LanguageModel
from model_config import Layer, ModelArchitectureConfig

WHOLE, BY_SEQUENCE = Replicate(), Shard(1)  # of activations (B, T, D)


class Replicated(ParallelStyle):
    """A module that every rank computes whole, on activations that every rank has whole."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(
            module,
            device_mesh,
            input_fn=lambda _, inputs, mesh: tuple(  # type: ignore[arg-type]
                DTensor.from_local(x, mesh, [WHOLE]) for x in inputs
            ),
            output_fn=lambda _, output, mesh: output.to_local(),
        )


class RowsOfVector(ParallelStyle):
    """A module that returns its one vector, of which each rank has a part."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def divide(_: str, module: nn.Module, mesh: DeviceMesh) -> None:
            for name, vector in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(distribute_tensor(vector, mesh, [Shard(0)])))

        return distribute_module(
            module,
            device_mesh,
            divide,
            output_fn=lambda _, vector, mesh: own_part(vector),  # type: ignore[arg-type]
        )


class OfOwnHeads(ParallelStyle):
    """A module that every rank computes whole, for its own heads: so the gradient of what comes out, and with it those
    of its parameters and its input, are parts of sums. To DTensor that is a module whose input has other rows on every
    rank; one without an input gives its parameter."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def with_own_rows(_: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> Any:
            if not inputs:
                return inputs
            x = inputs[0].to_local(grad_placements=[Partial()]) if isinstance(inputs[0], DTensor) else inputs[0]
            return DTensor.from_local(x, mesh, [Shard(0)])

        return distribute_module(
            module,
            device_mesh,
            input_fn=with_own_rows,
            output_fn=lambda _, output, mesh: own_part(output),  # type: ignore[arg-type]
        )


class RowsOfOwnHeads(ColwiseParallel):
    """A linear layer whose rows are divided. The gradient of an input that came out of one OfOwnHeads stays a part of a
    sum."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def as_whole(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if isinstance(inputs[0], DTensor):
                return None
            return (DTensor.from_local(inputs[0], device_mesh, [WHOLE], grad_placements=[Partial()]),)

        module.register_forward_pre_hook(as_whole)
        return super()._apply(module, device_mesh)


class Summand(ParallelStyle):
    """A half of a block that is given all activations as plain tensors, has its own parts of the parameters, as
    `divided` says by name, and returns a summand of its output, alone or before other things (components/parts.py)."""

    def __init__(self, divided: dict[str, str]):
        super().__init__()
        self.divided = divided

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        ways = {"rows": Shard(-2), "columns": Shard(-1)}

        def divide(name: str, inner: nn.Module, mesh: DeviceMesh) -> None:
            for own, parameter in list(inner.named_parameters(recurse=False)):
                way = ways.get(self.divided[f"{name}.{own}".lstrip(".")], WHOLE)
                dim = way.dim % parameter.dim() if isinstance(way, Shard) else None
                placements = [WHOLE if dim is None else Shard(dim)]
                inner.register_parameter(own, nn.Parameter(distribute_tensor(parameter, mesh, placements)))

        return distribute_module(module, device_mesh, divide, self._gather, self._add_up)  # type: ignore[arg-type]

    @staticmethod
    def _gather(module: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> tuple[Tensor, ...]:
        x = DTensor.from_local(inputs[0], mesh, [BY_SEQUENCE]).redistribute(placements=[WHOLE])
        return (x.to_local(grad_placements=[Partial()]),)

    @staticmethod
    def _add_up(module: nn.Module, outputs: Any, mesh: DeviceMesh) -> Any:
        y, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        y = DTensor.from_local(y, mesh, [Partial()]).redistribute(placements=[BY_SEQUENCE]).to_local()
        return (y, *others) if others else y


def shard_layers(model: LanguageModel, mesh: DeviceMesh) -> None:
    """Share the model's layers, in place, among the ranks of a one-dimensional mesh.

    What is divided how is stated by the specs of the components; that they can be shared at all was checked before
    (costs.sharding.check_mesh). The head needs no plan: the loss sees that its weight is distributed.
    """
    by_rows = RowwiseParallel(input_layouts=WHOLE, output_layouts=WHOLE)
    plan: dict[str, ParallelStyle] = {
        "embedding": by_rows,
        "dropout": PrepareModuleOutput(output_layouts=WHOLE, desired_output_layouts=BY_SEQUENCE),
        "final_norm": SequenceParallel(use_local_output=False),
    }
    if model.lm_head is not None:
        plan["lm_head"] = ColwiseParallel()
    for name, module in model.position.named_modules(prefix="position"):
        if any(True for _ in module.parameters(recurse=False)):
            plan[name] = Replicated()
    for index, layer in enumerate(model.config.layers):
        plan |= {f"blocks.{index}.{name}": style for name, style in _block_plan(layer, model.config).items()}
    parallelize_module(model, mesh, plan)


def _block_plan(layer: Layer, config: ModelArchitectureConfig) -> dict[str, ParallelStyle]:
    norms = [place.name for place in places_of(layer, config) if place.name.endswith("_norm")]
    plan: dict[str, ParallelStyle] = {name: SequenceParallel(use_local_output=True) for name in norms}
    for half, spec in zip(("mixer", "ffn"), layer.specs, strict=False):
        if spec.sums_parts:
            weights = spec.all_weights(config.of(layer))
            plan[half] = Summand({name: one.divided for one in weights for name in one.names})
            continue
        plan[half] = PrepareModuleInput(input_layouts=(BY_SEQUENCE,), desired_input_layouts=(WHOLE,))  # gather
        plan |= {f"{half}.{name}": style for name, style in _half_plan(spec, config.of(layer)).items()}
    return plan


def _half_plan(spec: Spec, config: ModelArchitectureConfig) -> dict[str, ParallelStyle]:
    """The linear layers whose rows are divided compute a part of the heads or of the hidden width; those whose columns
    are, a part of the sum, which is added up and divided along the sequence. What is before the heads is whole. Vectors
    that are no biases are in modules of their own."""
    styles: dict[str, Callable[[], ParallelStyle]] = {
        "rows": RowsOfOwnHeads,
        "heads": OfOwnHeads,
        "columns": lambda: RowwiseParallel(output_layouts=BY_SEQUENCE),
    }
    plan: dict[str, ParallelStyle] = {}
    for weights in spec.all_weights(config):
        for name in weights.names if weights.divided else ():
            if weights.multiplies:
                plan[name.removesuffix(".weight")] = styles[weights.divided]()
            elif name.endswith(".weight"):
                own_rows = weights.divided == "rows"
                plan[name.removesuffix(".weight")] = RowsOfVector() if own_rows else styles[weights.divided]()
    return plan
