"""What each component costs: its parameters and its forward FLOPs per token. The only place where this is written.

Conventions (docs/configuration.md has the keys): a multiply-add is 2 FLOPs; matrix products count, as do the attention
scores and their product with the values; norms, activations, rotary embedding and look-ups do not. Attention is
counted in full here (S x S); `model_cost` halves the scores for the causal convention.

Every formula is plain arithmetic on the keys of a ModelArchitectureConfig, in integers.
"""

import dataclasses
from collections.abc import Callable

from errors import UserError, did_you_mean
from model_config import ModelArchitectureConfig


@dataclasses.dataclass(frozen=True)
class ComponentCost:
    """Parameters of one instance, and its forward FLOPs per token: `matmul` grows with the width alone,
    `scores` with the sequence length too (halved in the causal convention)."""

    parameters: int = 0
    matmul: int = 0
    scores: int = 0


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
    )


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
def nothing_counted(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    return ComponentCost()


@register_cost("mixer", "attention")
def attention(config: ModelArchitectureConfig, sequence_length: int) -> ComponentCost:
    """Multi-head, grouped-query and multi-query attention: the query heads decide the scores."""
    width, kv_width = config.n_head * config.head_dim, config.kv_heads * config.head_dim
    return total(
        linear(config.n_embd, width, config.bias),  # queries
        linear(config.n_embd, kv_width, config.bias),  # keys
        linear(config.n_embd, kv_width, config.bias),  # values
        ComponentCost(scores=2 * 2 * sequence_length * width),  # Q K^T and its product with V
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
