"""How the ranks of a run divide a model: the shapes of its parameters, and what each rank has of them. No torch.

Ranks form a block of `replicas` x `shards` x `tensor` (training/parallel.py). Tensor parallelism divides matrices by
rows or by columns, evenly; FSDP and ZeRO-1 divide rows, of vectors elements, and pad to a multiple of the ranks.
"""

import dataclasses

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
    """As `training.parallel.device_mesh` makes it, for ranks that `training.plan.check_ranks` has passed."""
    data = world_size // run.tensor_parallel
    replicas = run.fsdp_replicas if run.use_fsdp else data
    return Mesh(replicas, data // replicas, run.tensor_parallel)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A matrix (rows, width), or a vector of `rows` elements."""

    rows: int
    width: int = 1
    divided: str = ""  # by tensor parallelism: rows, columns, sequence (a norm: whole, but it sees a part), or nothing

    @property
    def size(self) -> int:
        return self.rows * self.width

    def of_tensor_rank(self, ranks: int) -> "Parameter":
        """What one of `ranks` that share every layer has."""
        rows = self.rows // ranks if self.divided == "rows" else self.rows
        width = self.width // ranks if self.divided == "columns" else self.width
        return Parameter(rows, width, self.divided)

    def part(self, shards: int) -> int:
        """Elements that the first of `shards` ranks has; the last ones may have fewer, and their place is padded."""
        return -(-self.rows // shards) * self.width


@dataclasses.dataclass(frozen=True)
class Parameters:
    """`block` are those of one of the blocks, `root` those outside. A component that is not of this repository is
    taken for one vector: what it pads is then not known."""

    block: tuple[Parameter, ...]
    root: tuple[Parameter, ...]
    layers: int

    @property
    def all(self) -> tuple[Parameter, ...]:
        return self.root + self.layers * self.block

    @property
    def size(self) -> int:
        return sum(parameter.size for parameter in self.all)

    def of_tensor_rank(self, ranks: int) -> "Parameters":
        block, root = ([p.of_tensor_rank(ranks) for p in group] for group in (self.block, self.root))
        return Parameters(tuple(block), tuple(root), self.layers)


def parameters(config: ModelArchitectureConfig) -> Parameters:
    """Those of model_components.py, and of others by their cost. Raises UserError for an unknown component."""
    cost = model_cost(config).parameters
    norm = _norm(config)
    block = [*norm, *norm, *_mixer(config), *_ffn(config)]
    others = cost["attention"] + cost["ffn"] - config.n_layer * sum(p.size for p in block[2 * len(norm) :])
    table = Parameter(config.vocab_size or 0, config.n_embd, "rows")
    root = [table, *_vector(cost["position"])]
    if config.position_encoding == "learned_absolute":
        root = [table, Parameter(config.block_size, config.n_embd)]
    root += norm if config.norm_position == "pre" else []
    root += [] if config.weight_tying else [table]
    return Parameters((*block, *_vector(others // config.n_layer)), tuple(root), config.n_layer)


def _vector(size: int) -> list[Parameter]:
    return [Parameter(size)] if size else []


def _norm(config: ModelArchitectureConfig) -> list[Parameter]:
    """Weight, and perhaps bias."""
    size = component_cost("normalization", config.normalization, config, config.block_size).parameters
    vector = Parameter(config.n_embd, divided="sequence")
    return (size // config.n_embd) * [vector] + _vector(size % config.n_embd)


def _linear(rows: int, width: int, divided: str, bias: bool) -> list[Parameter]:
    """A bias is divided with the rows; columns share it."""
    return [Parameter(rows, width, divided)] + bias * [Parameter(rows, 1, divided if divided == "rows" else "")]


def _mixer(config: ModelArchitectureConfig) -> list[Parameter]:
    width, kv_width = config.n_head * config.head_dim, config.kv_heads * config.head_dim
    queries, keys = (_linear(rows, config.n_embd, "rows", config.bias) for rows in (width, kv_width))
    return [*queries, *keys, *keys, *_linear(config.n_embd, width, "columns", config.bias)]


def _ffn(config: ModelArchitectureConfig) -> list[Parameter]:
    """Of a component of another name nothing is known but its size."""
    inputs = {"standard": 1, "swiglu": 2, "geglu": 2}.get(config.ffn_type, 0)
    if config.d_ff is None or not inputs:
        return []
    up = _linear(config.d_ff, config.n_embd, "rows", config.bias)
    return [*(inputs * up), *_linear(config.n_embd, config.d_ff, "columns", config.bias)]
