"""What each component costs: its parameters and its forward FLOPs per token. The only place where this is written.

Conventions (docs/configuration.md has the keys): a multiply-add is 2 FLOPs; matrix products count, as do the attention
scores and their product with the values, convolutions, and what enters and leaves a state; norms, activations, rotary
embedding, decays and look-ups do not. Attention is counted in full here (S x S).

Every formula is plain arithmetic on the keys of a ModelArchitectureConfig, in integers.
"""

import dataclasses
from collections.abc import Callable

from common.errors import UserError, did_you_mean
from model_config import ModelArchitectureConfig


@dataclasses.dataclass(frozen=True)
class ComponentCost:
    """Parameters of one instance, and its forward FLOPs per token: `matmul` of the projections, which grow with the
    width alone, `scores` of attention, which grow with the sequence length too, and `masked` of them that the causal
    convention leaves out; and of a state-space layer its `convolution`, and its `scan`, which grows with the state and
    the chunk."""

    parameters: int = 0
    matmul: int = 0
    scores: int = 0
    masked: int = 0
    convolution: int = 0
    scan: int = 0


CostFunction = Callable[[ModelArchitectureConfig, int], ComponentCost]  # (config, sequence length)

_COSTS: dict[str, dict[str, CostFunction]] = {}


def register_cost(kind: str, *names: str) -> Callable[[CostFunction], CostFunction]:
    """Decorate the cost function of the components `names` of one kind (the configuration key that chooses it)."""

    def store(function: CostFunction) -> CostFunction:
        for name in names:
            if name in _COSTS.setdefault(kind, {}):
                raise UserError(f"{kind} {name!r} is registered already: choose another name")
            _COSTS[kind][name] = function
        return function

    return store


def known(kind: str) -> list[str]:
    """The names registered under a kind."""
    return list(_COSTS[kind])


def component_cost(kind: str, name: str, config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    """Raises UserError for a name that is not registered."""
    if name not in _COSTS[kind]:
        names = known(kind)
        raise UserError(f"{kind}={name!r} is none of: {', '.join(names)}{did_you_mean(name, names)}")
    return _COSTS[kind][name](config, sequence_length)


def linear(inputs: int, outputs: int, bias: bool) -> ComponentCost:
    """One `nn.Linear`."""
    return ComponentCost(parameters=inputs * outputs + bias * outputs, matmul=2 * inputs * outputs)


def total(*costs: ComponentCost) -> ComponentCost:
    return ComponentCost(
        parameters=sum(cost.parameters for cost in costs),
        matmul=sum(cost.matmul for cost in costs),
        scores=sum(cost.scores for cost in costs),
        masked=sum(cost.masked for cost in costs),
        convolution=sum(cost.convolution for cost in costs),
        scan=sum(cost.scan for cost in costs),
    )


def times(count: int, cost: ComponentCost) -> ComponentCost:
    """Of `count` instances."""
    return ComponentCost(**{field.name: count * getattr(cost, field.name) for field in dataclasses.fields(cost)})


@register_cost("normalization", "layernorm")
def layernorm(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    return ComponentCost(parameters=2 * config.n_embd)


@register_cost("normalization", "layernorm_nobias", "rmsnorm")
def norm_without_bias(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    return ComponentCost(parameters=config.n_embd)


@register_cost("position_encoding", "learned_absolute")
def learned_absolute(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    return ComponentCost(parameters=config.block_size * config.n_embd)


@register_cost("position_encoding", "rope", "alibi", "none")
@register_cost("activation", "gelu", "gelu_tanh", "silu", "relu", "relu_squared", "leaky_relu")
@register_cost("attention_backend", "sdpa", "manual")
@register_cost("mamba_backend", "auto", "chunked", "fla")
def nothing_counted(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    return ComponentCost()


@register_cost("mixer", "attention")
def attention(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    """Multi-head, grouped-query and multi-query attention: the query heads decide the scores."""
    return _attention(config, sequence_length, sequence_length)


@register_cost("mixer", "sliding_attention")
def sliding_attention(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    return _attention(config, sequence_length, min(sequence_length, config.attention_window or sequence_length))


def _attention(config: ModelArchitectureConfig, sequence_length: int, keys: int) -> ComponentCost:
    """Of at most `keys` keys a query. Of the sequence_length x keys pairs, a triangle of keys x keys / 2 lies in the
    future or before the sequence."""
    width, kv_width = config.n_head * config.head_dim, config.kv_heads * config.head_dim
    scores = 2 * 2 * keys * width  # Q K^T and its product with V
    return total(
        linear(config.n_embd, width, config.bias),  # queries
        linear(config.n_embd, kv_width, config.bias),  # keys
        linear(config.n_embd, kv_width, config.bias),  # values
        ComponentCost(scores=scores, masked=scores * keys // (2 * sequence_length)),
        linear(width, config.n_embd, config.bias),  # output
    )


def _convolution(channels: int, config: ModelArchitectureConfig) -> ComponentCost:
    """Depthwise and causal, with a bias: d_conv multiply-adds a channel."""
    width = config.mamba_d_conv
    return ComponentCost(parameters=channels * (width + 1), convolution=2 * width * channels)


@register_cost("mixer", "mamba1")
def mamba1(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    """Gu and Dao 2023, section 3. Of the scan, for every element of the state (channels x d_state): a multiply-add
    that adds the outer product of input and B, and one of the product with C. The decay is elementwise."""
    width, d_state, rank = config.mamba_width, config.mamba_state_size("mamba1"), config.mamba_dt_rank
    return total(
        linear(config.n_embd, 2 * width, config.bias),  # the gate and the input
        _convolution(width, config),
        linear(width, rank + 2 * d_state, bias=False),  # the steps' origin, B, C
        linear(rank, width, bias=True),  # the steps
        ComponentCost(parameters=width * d_state + width, scan=2 * 2 * width * d_state),  # A, D
        linear(width, config.n_embd, config.bias),  # output
    )


@register_cost("mixer", "mamba2")
def mamba2(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    """Dao and Gu 2024, sections 6 and 7. Of the scan, the products that are made: those within a chunk in full
    (Q x Q), those of a last chunk that is not full as if they were of a full one per token."""
    width, d_state, heads = config.mamba_width, config.mamba_state_size("mamba2"), config.mamba_heads
    written_or_read = config.mamba_n_groups * d_state  # B or C
    chunk = min(config.mamba_chunk_size, sequence_length)
    return total(
        linear(config.n_embd, 2 * width + 2 * written_or_read + heads, config.bias),  # gate, input, B, C, steps
        _convolution(width + 2 * written_or_read, config),
        ComponentCost(scan=2 * chunk * written_or_read),  # C B^T of every group
        ComponentCost(scan=2 * chunk * width),  # its product with the input
        ComponentCost(scan=2 * 2 * width * d_state),  # into the state and out of it
        ComponentCost(parameters=3 * heads + width),  # A, D, the steps' bias; the norm of the gated output
        linear(width, config.n_embd, config.bias),  # output
    )


def _d_ff(config: ModelArchitectureConfig) -> int:
    if config.d_ff is None:
        raise ValueError("the architecture is not resolved: call model_config.resolve_architecture")
    return config.d_ff


@register_cost("ffn_type", "standard")
def standard_ffn(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    up = linear(config.n_embd, _d_ff(config), config.bias)
    return total(up, linear(_d_ff(config), config.n_embd, config.bias))


@register_cost("ffn_type", "swiglu", "geglu")
def gated_ffn(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    gate_and_up = linear(config.n_embd, 2 * _d_ff(config), config.bias)
    return total(gate_and_up, linear(_d_ff(config), config.n_embd, config.bias))
