"""How the ranks of a run divide a model: the shapes of its parameters, and what each rank has of them. No torch.

Ranks form a block of `replicas` x `shards` x `tensor` (parallel/strategy.py). Tensor parallelism divides matrices by
rows or by columns, evenly; FSDP and ZeRO-1 divide rows, of vectors elements, and pad to a multiple of the ranks. Expert
parallelism gives each of neighbouring data ranks some experts, which nothing else divides. A pipeline divides the
blocks, and each of its stages is such a block of ranks (costs/pipeline.py).
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from common.arrays import larger, product
from common.errors import UserError
from components.lora.spec import Adapters
from components.spec import Weights
from flops_parameter_counting.costs.model_cost import (
    WHOLE,
    Frozen,
    Stage,
    all_places,
    named_weights,
    places_of,
    places_outside,
    tables,
)
from flops_parameter_counting.costs.pipeline import check_divided
from model_config import Layer, ModelArchitectureConfig
from runs.config import RunConfig, check_shared_adapters


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The ranks of a run, by what they divide. Without FSDP every data rank is a replica. Of the data ranks, each
    `experts` neighbours share the experts, and each `context` neighbours divide every sequence. There are as many of
    them for each of the stages of a `pipeline`."""

    replicas: int
    shards: int
    tensor: int
    experts: int = 1
    context: int = 1
    pipeline: int = 1

    @property
    def size(self) -> int:
        return self.data * self.tensor * self.pipeline

    @property
    def data(self) -> int:
        """Ranks with tokens of their own, over which gradients are averaged."""
        return self.replicas * self.shards

    @property
    def batches(self) -> int:
        """Parts that a step's micro-batches are shared among."""
        return self.data // self.context


def mesh_of(run: RunConfig, world_size: int) -> Mesh:
    """The mesh that `parallel.strategy.device_mesh` makes, for ranks that `check_mesh` has passed."""
    data = world_size // (run.tensor_parallel * run.pipeline_parallel)
    replicas = run.fsdp_replicas if run.use_fsdp else data
    sharing = (run.tensor_parallel, run.expert_parallel, run.context_parallel, run.pipeline_parallel)
    return Mesh(replicas, data // replicas, *sharing)


def check_mesh(model: ModelArchitectureConfig, run: RunConfig, world_size: int) -> None:
    """Raises UserError when so many ranks cannot share the model as the run's keys say."""
    check_shared_adapters(run)
    if run.pipeline_parallel > 1:
        if world_size % (run.pipeline_parallel * run.fsdp_replicas):
            raise UserError(
                f"{world_size} ranks are no multiple of pipeline_parallel x fsdp_replicas = {run.pipeline_parallel} x "
                f"{run.fsdp_replicas}"
            )
        check_divided(model, run)
    if world_size % (run.tensor_parallel * run.fsdp_replicas):
        raise UserError(
            f"{world_size} ranks are no multiple of tensor_parallel x fsdp_replicas = {run.tensor_parallel} x "
            f"{run.fsdp_replicas}"
        )
    if run.tensor_parallel > 1:
        _check_tensor_parallel(model, run)
    if run.expert_parallel > 1:
        _check_expert_parallel(model, run.expert_parallel, world_size)
    if run.context_parallel > 1:
        _check_context_parallel(model, run, world_size)


def _check_context_parallel(model: ModelArchitectureConfig, run: RunConfig, world_size: int) -> None:
    """Raises UserError for what cannot go on where another rank's tokens end."""
    ranks, tensor = run.context_parallel, run.tensor_parallel
    if world_size % (tensor * ranks):
        raise UserError(
            f"{world_size} ranks are no multiple of tensor_parallel x context_parallel = {tensor} x {ranks}"
        )
    if model.block_size % ranks:
        raise UserError(f"context_parallel={ranks} does not divide block_size={model.block_size}: change one of them")
    for layer in model.layer_counts:
        if not layer.mixer_spec.takes_context:
            raise UserError(
                f"context_parallel: a layer of {layer.mixer} does not go on where another rank's tokens end"
            )
        if model.component("position_encoding").turns_by_length(model.of(layer)):
            raise UserError(
                "context_parallel: this rope_scaling turns tokens by the length of their text, beyond its original "
                "context, and a rank sees a part of it: take a smaller block_size"
            )
    if model.dropout:
        raise UserError("context_parallel needs dropout=0: ranks would drop the same places of their tokens")


def _check_expert_parallel(model: ModelArchitectureConfig, ranks: int, world_size: int) -> None:
    if world_size % ranks:
        raise UserError(f"{world_size} ranks are no multiple of expert_parallel={ranks}")
    stated = [one for place in all_places(model) for one in place.spec.all_weights(place.config) if np.any(place.count)]
    counts = [one.shape[0] for one in stated if one.by_expert]
    if not counts:
        raise UserError(f"expert_parallel={ranks}, but no layer has experts: drop it, or write E into ffn_pattern")
    for count in counts:
        if np.any(count % ranks):
            raise UserError(f"expert_parallel={ranks} does not divide n_experts={count}: change one of them")


def _check_tensor_parallel(model: ModelArchitectureConfig, run: RunConfig) -> None:
    """Raises UserError for a component that tensor-parallel ranks cannot share, and for a size that they do not divide:
    a head, a column or a row belongs to one of them, and each token of a sequence, or of their part of it."""
    ranks, length = run.tensor_parallel, model.block_size // run.context_parallel
    sizes: list[tuple[str, Any]] = []
    for place in all_places(model):
        for found in (place.spec, *place.spec.within(place.config).values()) if np.any(place.count) else ():
            if not found.is_shared(place.config):
                raise UserError(found.not_shared.format(f"{found.kind}={found.name!r}"))
            sizes += found.shared_sizes(place.config).items()
    part = "block_size" if run.context_parallel == 1 else "block_size/context_parallel"
    for name, size in (*sizes, ("vocab_size", model.vocab_size), (part, length)):
        if np.any((size or 0) % ranks if size is None or np.ndim(size) == 0 else size % ranks):
            raise UserError(f"tensor_parallel={ranks} does not divide {name}={size}: change one of them")
    if model.dropout:
        raise UserError(
            "tensor_parallel needs dropout=0: ranks that hold different parts of a sequence would drop the same places"
        )


@dataclasses.dataclass(frozen=True)
class Parameter:
    """`copies` matrices (rows, width) of a model, or vectors of `rows` elements; or arrays of these, of a search."""

    rows: int
    width: int = 1
    copies: int = 1
    divided: str = ""  # by tensor parallelism, as components.spec.Weights has it
    trained: bool = True  # with a gradient, and the optimizer's state
    is_matrix: bool = False  # of a linear layer, or a stack of them
    by_expert: bool = False  # rows are of experts
    is_apart: bool = False  # from what data ranks divide: experts that some of them share
    _parts: dict[int, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def size(self) -> int:
        return self.copies * self.rows * self.width

    def of_tensor_rank(self, ranks: int) -> "Parameter":
        """What one of `ranks` that share every layer has."""
        if ranks == 1:
            return self
        if self.divided == "rows":
            return dataclasses.replace(self, rows=self.rows // ranks)
        return dataclasses.replace(self, width=self.width // ranks) if self.divided == "columns" else self

    def of_expert_rank(self, ranks: int) -> "Parameter":
        """What one of `ranks` that share experts has."""
        if ranks == 1 or not self.by_expert:
            return self
        return dataclasses.replace(self, rows=self.rows // ranks, is_apart=True)

    def part(self, shards: int) -> int:
        """Elements that the first of `shards` ranks has; the last ones may have fewer, and their place is padded. They
        are kept, because weights, gradients and optimizer ask for the same, and a search's are long arrays."""
        if shards not in self._parts:
            is_whole = shards == 1 or self.is_apart
            self._parts[shards] = self.size if is_whole else self.copies * -(-self.rows // shards) * self.width
        return self._parts[shards]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What blocks with equal parameters have in common: their layer, and which of its parameters are frozen."""

    layer: Layer
    frozen: tuple[bool, ...] = ()

    def gathered_bytes(self, e: int) -> int:
        """Bytes of an element of such a block's weights as FSDP gathers them to compute in a dtype of `e` bytes: 4
        where its mixer does not bear to be rounded."""
        return 4 if self.layer.mixer_spec.in_float32 else e


@dataclasses.dataclass(frozen=True)
class Parameters:
    """All parameters, as FSDP groups them: `blocks` are those of the mixer and the FFN of one block, for each kind, and
    `counts` say how many blocks are of it, of `layers` in all; `root` are the others, norms included. `last` is the
    kind of the last block."""

    root: tuple[Parameter, ...]
    blocks: dict[Kind, tuple[Parameter, ...]]
    counts: dict[Kind, Any]
    last: Kind
    layers: Any

    @property
    def in_blocks(self) -> tuple[Parameter, ...]:
        """Those of all blocks."""
        return tuple(times(self.counts[kind], one) for kind, block in self.blocks.items() for one in block)

    @property
    def all(self) -> tuple[Parameter, ...]:
        return self.root + self.in_blocks

    @property
    def size(self) -> int:
        return elements(self.all)

    def block(self, kind: Kind, shards: int, trained: bool = False) -> Any:
        """Elements of a block of this kind that data ranks divide, padded for `shards` of them, or of what is trained
        of it; 0 where a search has none."""
        divided = together(self.blocks[kind])
        size = shards * elements(of_trained(divided) if trained else divided, shards)
        count = self.counts[kind]
        return size * (count > 0) if isinstance(count, np.ndarray) else size

    def largest_gradients(self, shards: int) -> Any:
        """Elements of the gradients of a block, padded for `shards` ranks."""
        return functools.reduce(larger, (self.block(kind, shards, trained=True) for kind in self.blocks))

    def of_rank(self, mesh: Mesh) -> "Parameters":
        """What one rank has of layers and of experts that it shares."""

        def parts(group: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
            return tuple(one.of_tensor_rank(mesh.tensor).of_expert_rank(mesh.experts) for one in group)

        blocks = {kind: parts(block) for kind, block in self.blocks.items()}
        return dataclasses.replace(self, root=parts(self.root), blocks=blocks)


def elements(group: Iterable[Parameter], shards: int = 1) -> int:
    """Elements of a group that the first of `shards` ranks has."""
    return sum(parameter.part(shards) for parameter in group)


def of_trained(group: Iterable[Parameter]) -> tuple[Parameter, ...]:
    """Those that have a gradient."""
    return tuple(parameter for parameter in group if parameter.trained)


def together(group: Iterable[Parameter]) -> tuple[Parameter, ...]:
    """Those that all data ranks have, or divide, in one way."""
    return tuple(parameter for parameter in group if not parameter.is_apart)


def apart(group: Iterable[Parameter]) -> tuple[Parameter, ...]:
    """Those of experts that some of them share."""
    return tuple(parameter for parameter in group if parameter.is_apart)


def times(count: Any, parameter: Parameter) -> Parameter:
    """The parameters of so many layers."""
    return dataclasses.replace(parameter, copies=count * parameter.copies)


def parameters(
    config: ModelArchitectureConfig,
    frozen: Frozen | None = None,
    stage: Stage = WHOLE,
    adapters: Adapters | None = None,
) -> Parameters:
    """The parameters of a model, or of a stage of it, as the specs of its components state them, and which of them are
    frozen: with adapters, all but these."""
    if frozen is not None:
        return _with_frozen(config, frozen, stage, adapters)
    root = [_parameter(table) for table in tables(config, stage)]
    outside = places_outside(config, stage)
    root += [_parameter(weights) for place in outside for weights in place.spec.all_weights(config)]
    blocks, counts = {}, {Kind(layer): count for layer, count in stage.counts(config).items()}
    for kind, count in counts.items():
        block = []
        for place in places_of(kind.layer, config):
            found = [_parameter(weights) for weights in place.spec.all_weights(place.config)]
            if place.name.endswith("_norm"):
                root += [times(count, parameter) for parameter in found]
            else:
                block += found
        blocks[kind] = tuple(block)
    return Parameters(tuple(root), blocks, counts, Kind(stage.last_layer(config)), stage.n_blocks(config))


def _with_frozen(
    config: ModelArchitectureConfig, frozen: Frozen, stage: Stage, adapters: Adapters | None
) -> Parameters:
    """The same block by block, since a name may be frozen in one and not in another."""
    root: list[Parameter] = []
    in_block: dict[int, list[Parameter]] = {index: [] for index in stage.blocks or range(config.n_layer)}
    for found in named_weights(config, stage, adapters):
        if found.is_head and config.weight_tying and stage.is_first:
            continue
        in_root = found.block is None or found.place is None or found.place.name.endswith("_norm")
        group = root if in_root else in_block[found.block or 0]
        group += [_parameter(weights, frozen(name), (name,)) for weights in found.weights for name in weights.names]
    blocks, counts = {}, dict[Kind, int]()
    for index, block in in_block.items():
        kind = Kind(config.layers[index], tuple(not parameter.trained for parameter in block))
        blocks[kind], counts[kind] = tuple(block), counts.get(kind, 0) + 1
    return Parameters(tuple(root), blocks, counts, kind, len(in_block))


def _parameter(weights: Weights, frozen: bool = False, names: tuple[str, ...] | None = None) -> Parameter:
    first, *others = weights.shape
    width = product(others) if others else 1
    is_divided = weights.divided in ("rows", "columns")
    divided = "columns" if len(others) == 2 and is_divided else weights.divided  # of a stack, each matrix is
    copies = len(names or weights.names)
    return Parameter(first, width, copies, divided, not frozen, weights.are_matrices, weights.by_expert)
