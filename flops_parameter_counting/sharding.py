"""How the ranks of a run divide a model: the shapes of its parameters, and what each rank has of them. No torch.

Ranks form a block of `replicas` x `shards` x `tensor` (training/parallel.py). Tensor parallelism divides matrices by
rows or by columns, evenly; FSDP and ZeRO-1 divide rows, of vectors elements, and pad to a multiple of the ranks.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from errors import UserError
from flops_parameter_counting.component_costs import component_cost
from flops_parameter_counting.model_cost import model_cost
from model_config import ModelArchitectureConfig
from run_config import RunConfig


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The ranks of a run, by what they divide. Without FSDP every data rank is a replica."""

    replicas: int
    shards: int
    tensor: int

    @property
    def size(self) -> int:
        return self.data * self.tensor

    @property
    def data(self) -> int:
        """Parts that a step's micro-batches are shared among."""
        return self.replicas * self.shards


def mesh_of(run: RunConfig, world_size: int) -> Mesh:
    """As `training.parallel.device_mesh` makes it, for ranks that `check_mesh` has passed."""
    data = world_size // run.tensor_parallel
    replicas = run.fsdp_replicas if run.use_fsdp else data
    return Mesh(replicas, data // replicas, run.tensor_parallel)


def check_mesh(model: ModelArchitectureConfig, run: RunConfig, world_size: int) -> None:
    """Raises UserError when so many ranks cannot share the model as the run's keys say."""
    if world_size % (run.tensor_parallel * run.fsdp_replicas):
        raise UserError(
            f"{world_size} ranks are no multiple of tensor_parallel x fsdp_replicas = {run.tensor_parallel} x "
            f"{run.fsdp_replicas}"
        )
    if run.tensor_parallel > 1:
        _check_tensor_parallel(model, run.tensor_parallel)


def _check_tensor_parallel(model: ModelArchitectureConfig, ranks: int) -> None:
    """What tensor-parallel ranks divide must divide evenly: a head, a column or a row belongs to one of them."""
    shared = {
        "n_head": model.n_head,
        "num_key_value_heads": model.kv_heads,
        "d_ff": model.d_ff,
        "vocab_size": model.vocab_size,
        "block_size": model.block_size,
    }
    for name, size in shared.items():
        if (size or 0) % ranks:
            raise UserError(f"tensor_parallel={ranks} does not divide {name}={size}: change one of them")
    if model.position_encoding == "alibi":
        raise UserError("tensor_parallel does not share ALiBi's slopes among ranks: take another position_encoding")
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
    divided: str = ""  # by tensor parallelism: rows, columns, sequence (a norm: whole, but it sees a part), or nothing

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

    def part(self, shards: int) -> int:
        """Elements that the first of `shards` ranks has; the last ones may have fewer, and their place is padded."""
        return self.size if shards == 1 else self.copies * -(-self.rows // shards) * self.width


@dataclasses.dataclass(frozen=True)
class Parameters:
    """As FSDP groups them: `blocks` are those of all mixers and FFNs, a group for each of `layers` blocks; `root` are
    the others, norms included."""

    blocks: tuple[Parameter, ...]
    root: tuple[Parameter, ...]
    layers: int

    @property
    def all(self) -> tuple[Parameter, ...]:
        return self.root + self.blocks

    @property
    def size(self) -> int:
        return elements(self.all)

    def of_tensor_rank(self, ranks: int) -> "Parameters":
        blocks, root = ([p.of_tensor_rank(ranks) for p in group] for group in (self.blocks, self.root))
        return Parameters(tuple(blocks), tuple(root), self.layers)


def elements(group: Iterable[Parameter], shards: int = 1) -> int:
    """That the first of `shards` ranks has of a group."""
    return sum(parameter.part(shards) for parameter in group)


def parameters(config: ModelArchitectureConfig, by_part: dict[str, int] | None = None) -> Parameters:
    """Those of model_components.py. A component of another name is taken, by its cost, for one vector: what it pads is
    then not known. `by_part` are model_cost's, which need not be counted again. Raises UserError for an unknown
    component."""
    cost = by_part or model_cost(config).parameters
    blocks = [*_mixer(config), *_ffn(config)]
    table = Parameter(config.vocab_size or 0, config.n_embd, divided="rows")
    position = Parameter(cost["position"])
    if config.position_encoding == "learned_absolute":
        position = Parameter(config.block_size, config.n_embd)
    root = [table, position, *_norms(config), dataclasses.replace(table, copies=1 - config.weight_tying)]
    others = Parameter(cost["attention"] + cost["ffn"] - elements(blocks))
    return Parameters(_not_empty([*blocks, others]), _not_empty(root), config.n_layer)


def parameters_of_parts(parts: dict[str, int], layers: int) -> Parameters:
    """Those of an architecture of which nothing is known but their number by part, as of one vector each."""
    outside = ("embedding", "position", "norms", "lm_head")
    root = [Parameter(size) for part, size in parts.items() if part in outside]
    return Parameters(_not_empty([Parameter(sum(parts.values()) - elements(root))]), _not_empty(root), layers)


def _not_empty(group: list[Parameter]) -> tuple[Parameter, ...]:
    return tuple(parameter for parameter in group if np.any(parameter.size))


def _norms(config: ModelArchitectureConfig) -> list[Parameter]:
    """Each a weight and perhaps a bias; two in a block, and a last one before the head of pre-norm."""
    size = component_cost("normalization", config.normalization, config, config.block_size).parameters
    norms = 2 * config.n_layer + (config.norm_position == "pre")
    vectors = Parameter(config.n_embd, copies=norms * (size // config.n_embd), divided="sequence")
    return [vectors, Parameter(size % config.n_embd, copies=norms)]


def _linear(rows: int, width: int, copies: int, divided: str, bias: bool) -> list[Parameter]:
    """A bias is divided with the rows; columns share it."""
    of_bias = Parameter(rows, copies=copies, divided=divided if divided == "rows" else "")
    return [Parameter(rows, width, copies, divided), *(bias * [of_bias])]


def _mixer(config: ModelArchitectureConfig) -> list[Parameter]:
    """Queries; keys and values; output."""
    width, kv_width, layers = config.n_head * config.head_dim, config.kv_heads * config.head_dim, config.n_layer
    return [
        *_linear(width, config.n_embd, layers, "rows", config.bias),
        *_linear(kv_width, config.n_embd, 2 * layers, "rows", config.bias),
        *_linear(config.n_embd, width, layers, "columns", config.bias),
    ]


def _ffn(config: ModelArchitectureConfig) -> list[Parameter]:
    """Of a component of another name nothing is known but its size."""
    inputs = {"standard": 1, "swiglu": 2, "geglu": 2}.get(config.ffn_type, 0)
    if config.d_ff is None or not inputs:
        return []
    up = _linear(config.d_ff, config.n_embd, inputs * config.n_layer, "rows", config.bias)
    return [*up, *_linear(config.n_embd, config.d_ff, config.n_layer, "columns", config.bias)]
