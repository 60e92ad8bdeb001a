"""How the ranks of a run divide a model: the shapes of its parameters, and what each rank has of them. No torch.

Ranks form a block of `replicas` x `shards` x `tensor` (parallel/strategy.py). Tensor parallelism divides matrices by
rows or by columns, evenly; FSDP and ZeRO-1 divide rows, of vectors elements, and pad to a multiple of the ranks.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from common.errors import UserError
from flops_parameter_counting.costs.component_costs import component_cost
from flops_parameter_counting.costs.model_cost import model_cost
from model_config import MIXERS, STATE_SPACES, ModelArchitectureConfig
from runs.config import RunConfig


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
    """As `parallel.strategy.device_mesh` makes it, for ranks that `check_mesh` has passed."""
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
    if np.any(model.layers_with(STATE_SPACES)):
        raise UserError(
            "tensor_parallel shares attention and FFNs among ranks, not the scan of a Mamba layer: take use_fsdp, "
            "which divides any layer"
        )
    if np.any(model.ffn_layers != model.n_layer):
        raise UserError("tensor_parallel needs an FFN in every layer: take ffn_after='all', or use_fsdp")
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
    the others, norms included. `kinds` are those of one block of each mixer that there is, by its letter, and `counts`
    say how many blocks have it; `last` is the last one's letter."""

    blocks: tuple[Parameter, ...]
    root: tuple[Parameter, ...]
    layers: int
    kinds: dict[str, tuple[Parameter, ...]]
    counts: dict[str, int]
    last: str

    @property
    def all(self) -> tuple[Parameter, ...]:
        return self.root + self.blocks

    @property
    def size(self) -> int:
        return elements(self.all)

    def largest_block(self, shards: int) -> int:
        """Elements of a block, padded for `shards` ranks."""
        return functools.reduce(larger, (self.block(letter, shards) for letter in self.kinds))

    def block(self, letter: str, shards: int) -> int:
        """Elements of a block with this mixer, padded for `shards` ranks."""
        return shards * elements(self.kinds[letter], shards)

    def of_tensor_rank(self, ranks: int) -> "Parameters":
        def parts(group: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
            return tuple(parameter.of_tensor_rank(ranks) for parameter in group)

        kinds = {letter: parts(kind) for letter, kind in self.kinds.items()}
        return dataclasses.replace(self, blocks=parts(self.blocks), root=parts(self.root), kinds=kinds)


def gathered_bytes(letter: str, e: int) -> int:
    """Of an element of a block's weights as FSDP gathers them to compute in a dtype of `e` bytes: those of a block with
    a Mamba layer in float32, because decays and steps do not bear to be rounded."""
    return 4 if letter in STATE_SPACES else e


def elements(group: Iterable[Parameter], shards: int = 1) -> int:
    """That the first of `shards` ranks has of a group."""
    return sum(parameter.part(shards) for parameter in group)


def larger(a: Any, b: Any) -> Any:
    """Of two integers, or elementwise where there are arrays."""
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def smaller(a: Any, b: Any) -> Any:
    """As `larger`."""
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)


def parameters(config: ModelArchitectureConfig, by_part: dict[str, int] | None = None) -> Parameters:
    """Those of model_components.py. A component of another name is taken, by its cost, for one vector: what it pads is
    then not known. `by_part` are model_cost's, which need not be counted again. Raises UserError for an unknown
    component."""
    cost = by_part or model_cost(config).parameters
    layers = {letter: config.layers_with(letter) for letter in MIXERS}
    of_one = {letter: _block(config, letter) for letter, count in layers.items() if np.any(count)}
    blocks = [_times(layers[letter], one) for letter, block in of_one.items() for one in block]
    table = Parameter(config.vocab_size or 0, config.n_embd, divided="rows")
    position = Parameter(cost["position"])
    if config.position_encoding == "learned_absolute":
        position = Parameter(config.block_size, config.n_embd)
    root = [table, position, *_norms(config), dataclasses.replace(table, copies=1 - config.weight_tying)]
    others = cost["attention"] + cost["mamba"] + cost["ffn"] - elements(blocks)
    of_each = Parameter(others // config.n_layer)
    kinds = {
        letter: _not_empty([*(_times(layers[letter] > 0, one) for one in block), of_each])
        for letter, block in of_one.items()
    }
    return Parameters(
        _not_empty([*blocks, Parameter(others)]),
        _not_empty(root),
        config.n_layer,
        kinds,
        {letter: layers[letter] for letter in kinds},
        config.last_mixer,
    )


def parameters_of_parts(parts: dict[str, int], layers: int) -> Parameters:
    """Those of an architecture of which nothing is known but their number by part, as of one vector each, the same in
    every layer."""
    outside = ("embedding", "position", "norms", "lm_head")
    root = [Parameter(size) for part, size in parts.items() if part in outside]
    blocks = sum(parts.values()) - elements(root)
    kinds: dict[str, tuple[Parameter, ...]] = {"A": (Parameter(blocks // layers),)}
    return Parameters(_not_empty([Parameter(blocks)]), _not_empty(root), layers, kinds, {"A": layers}, "A")


def _times(layers: int, parameter: Parameter) -> Parameter:
    """Of so many blocks."""
    return dataclasses.replace(parameter, copies=layers * parameter.copies)


def _not_empty(group: list[Parameter]) -> tuple[Parameter, ...]:
    return tuple(parameter for parameter in group if np.any(parameter.size))


def _norms(config: ModelArchitectureConfig) -> list[Parameter]:
    """Each a weight and perhaps a bias; one before (or after) each mixer and FFN, and a last one before the head of
    pre-norm."""
    size = component_cost("normalization", config.normalization, config, config.block_size).parameters
    norms = config.n_layer + config.ffn_layers + (config.norm_position == "pre")
    vectors = Parameter(config.n_embd, copies=norms * (size // config.n_embd), divided="sequence")
    return [vectors, Parameter(size % config.n_embd, copies=norms)]


# ---------------------------------------------------------------------------------------------------------------------
# Of one block


def _block(config: ModelArchitectureConfig, letter: str) -> list[Parameter]:
    return [*_MIXERS[MIXERS[letter]](config), *(_ffn(config) if config.has_ffn(letter) else ())]


def _linear(rows: int, width: int, copies: int, divided: str, bias: bool) -> list[Parameter]:
    """A bias is divided with the rows; columns share it."""
    of_bias = Parameter(rows, copies=copies, divided=divided if divided == "rows" else "")
    return [Parameter(rows, width, copies, divided), *(bias * [of_bias])]


def _attention(config: ModelArchitectureConfig) -> list[Parameter]:
    """Queries; keys and values; output."""
    width, kv_width = config.n_head * config.head_dim, config.kv_heads * config.head_dim
    return [
        *_linear(width, config.n_embd, 1, "rows", config.bias),
        *_linear(kv_width, config.n_embd, 2, "rows", config.bias),
        *_linear(config.n_embd, width, 1, "columns", config.bias),
    ]


def _mamba1(config: ModelArchitectureConfig) -> list[Parameter]:
    """Gate and input; convolution; the selection of steps, B and C; the steps; A and D; output."""
    width, d_state, rank = config.mamba_width, config.mamba_state_size("mamba1"), config.mamba_dt_rank
    return [
        *_linear(width, config.n_embd, 2, "", config.bias),
        *_linear(width, config.mamba_d_conv, 1, "", bias=True),
        Parameter(rank + 2 * d_state, width),
        *_linear(width, rank, 1, "", bias=True),
        Parameter(width * d_state),
        Parameter(width),
        *_linear(config.n_embd, width, 1, "", config.bias),
    ]


def _mamba2(config: ModelArchitectureConfig) -> list[Parameter]:
    """Gate and input; B and C; the steps; their convolutions; A, D and the steps' bias; norm; output."""
    width, heads = config.mamba_width, config.mamba_heads
    written_or_read = config.mamba_n_groups * config.mamba_state_size("mamba2")
    return [
        *_linear(width, config.n_embd, 2, "", config.bias),
        *_linear(written_or_read, config.n_embd, 2, "", config.bias),
        *_linear(heads, config.n_embd, 1, "", config.bias),
        *_linear(width, config.mamba_d_conv, 1, "", bias=True),
        *_linear(written_or_read, config.mamba_d_conv, 2, "", bias=True),
        Parameter(heads, copies=3),
        Parameter(width),
        *_linear(config.n_embd, width, 1, "", config.bias),
    ]


_MIXERS: dict[str, Callable[[ModelArchitectureConfig], list[Parameter]]] = {
    "attention": _attention,
    "sliding_attention": _attention,
    "mamba1": _mamba1,
    "mamba2": _mamba2,
}


def _ffn(config: ModelArchitectureConfig) -> list[Parameter]:
    """Of a component of another name nothing is known but its size."""
    inputs = {"standard": 1, "swiglu": 2, "geglu": 2}.get(config.ffn_type, 0)
    if config.d_ff is None or not inputs:
        return []
    up = _linear(config.d_ff, config.n_embd, inputs, "rows", config.bias)
    return [*up, *_linear(config.n_embd, config.d_ff, 1, "columns", config.bias)]
