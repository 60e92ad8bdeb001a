"""What published architectures cost that train.py cannot build: experts, latent attention, other biases and heads.

As component_costs.py and model_cost.py, for the models that interop/model_files.py reads. No torch.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from flops_parameter_counting.costs.component_costs import ComponentCost, component_cost, linear, total
from flops_parameter_counting.costs.model_cost import model_cost
from model_config import ATTENTION, STATE_SPACES, ModelArchitectureConfig
from model_config import MIXERS as LETTERS


@dataclasses.dataclass(frozen=True)
class PublishedArchitecture(ModelArchitectureConfig):
    """An architecture as a config.json describes it. The keys beyond ModelArchitectureConfig's:"""

    layers: tuple[tuple[str, str | None], ...] = ()  # the mixer and the FFN of each layer
    biased_projections: str = "none"  # of attention: none, qkv, or all four
    head_size: int | None = None  # where it is not n_embd / n_head
    qk_norm: bool = False  # of queries and keys, before RoPE
    window: int | None = None  # keys that a query of a sliding_attention layer meets at most

    q_lora_rank: int | None = None  # latent attention
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0

    n_experts: int = 0
    n_experts_per_token: int = 0
    n_shared_experts: int = 0
    expert_d_ff: int = 0

    conv_bias: bool = True  # state spaces
    ssm_bias: bool = False  # of their projections
    dt_rank: int | None = None  # where it is not Mamba's own

    @property
    def head_dim(self) -> int:
        return self.head_size or self.n_embd // self.n_head

    @property
    def mamba_dt_rank(self) -> int:
        return self.dt_rank or super().mamba_dt_rank


# ---------------------------------------------------------------------------------------------------------------------
# Costs, as in component_costs.py, where they move when modules of theirs are registered. A mixer or an FFN gives
# several parts: parameters, and forward FLOPs per token in the full convention.

Parts = dict[str, ComponentCost]


def keys_met(config: ModelArchitectureConfig, mixer: str, sequence_length: int) -> int:
    """Keys that a query meets in the full convention: all, or what the window holds."""
    if mixer != "sliding_attention":
        return sequence_length
    window = config.window if isinstance(config, PublishedArchitecture) else config.attention_window
    return min(sequence_length, window or sequence_length)


def attention(config: PublishedArchitecture, length: int) -> Parts:
    """`length`: the keys that a query meets."""
    all_biased = dataclasses.replace(config, bias=config.biased_projections == "all")
    biases = config.n_head + 2 * config.kv_heads if config.biased_projections == "qkv" else 0
    return {
        "attention": total(
            component_cost("mixer", "attention", all_biased, length),
            ComponentCost(parameters=biases * config.head_dim),
        ),
        "norms": ComponentCost(parameters=2 * config.head_dim * config.qk_norm),
    }


def latent_attention(config: PublishedArchitecture, length: int) -> Parts:
    """DeepSeek-AI 2024, DeepSeek-V2, section 2.1: keys and values come out of one latent vector a token; the rotary
    part of the key is shared by all heads. Queries may come out of a latent vector of their own."""
    bias = config.biased_projections == "all"
    query_width = config.n_head * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    value_width = config.n_head * config.v_head_dim
    if config.q_lora_rank is None:
        queries = linear(config.n_embd, query_width, bias=False)
    else:
        queries = total(linear(config.n_embd, config.q_lora_rank, bias), linear(config.q_lora_rank, query_width, False))
    return {
        "attention": total(
            queries,
            linear(config.n_embd, config.kv_lora_rank + config.qk_rope_head_dim, bias),
            linear(config.kv_lora_rank, config.n_head * config.qk_nope_head_dim + value_width, bias=False),
            ComponentCost(scores=2 * length * (query_width + value_width)),
            linear(value_width, config.n_embd, bias),
        ),
        "norms": ComponentCost(parameters=(config.q_lora_rank or 0) + config.kv_lora_rank),
    }


def _state_space(mixer: str, config: PublishedArchitecture, length: int) -> Parts:
    """As ours, with biases of its own."""
    of_projections = dataclasses.replace(config, bias=config.ssm_bias)
    absent = 0 if config.conv_bias else _convolved(mixer, config)
    return {
        "mamba": total(component_cost("mixer", mixer, of_projections, length), ComponentCost(parameters=-absent)),
    }


def _convolved(mixer: str, config: ModelArchitectureConfig) -> int:
    """Channels that a state-space layer's convolution sees: the input, of Mamba-2 also B and C."""
    of_b_and_c = 2 * config.mamba_n_groups * config.mamba_state_size(mixer) if mixer == "mamba2" else 0
    return config.mamba_width + of_b_and_c


def dense_ffn(config: PublishedArchitecture, length: int) -> Parts:
    return {"ffn": component_cost("ffn_type", config.ffn_type, config, length)}


def experts(config: PublishedArchitecture, length: int) -> Parts:
    """DeepSeek-AI 2024, DeepSeek-V2, section 2.2: gated experts of which a token meets a few, and shared ones."""
    expert, shared = _expert(config), config.n_shared_experts
    return {
        "router": linear(config.n_embd, config.n_experts, bias=False),
        "experts": ComponentCost(config.n_experts * expert.parameters, config.n_experts_per_token * expert.matmul),
        "shared_experts": ComponentCost(shared * expert.parameters, shared * expert.matmul),
    }


def _expert(config: PublishedArchitecture) -> ComponentCost:
    of_expert = dataclasses.replace(config, d_ff=config.expert_d_ff, bias=False)
    return component_cost("ffn_type", config.ffn_type, of_expert, 1)


MIXERS: dict[str, Callable[[PublishedArchitecture, int], Parts]] = {
    "attention": attention,
    "sliding_attention": attention,
    "latent_attention": latent_attention,
    "mamba1": functools.partial(_state_space, "mamba1"),
    "mamba2": functools.partial(_state_space, "mamba2"),
}
FFNS: dict[str, Callable[[PublishedArchitecture, int], Parts]] = {"dense": dense_ffn, "experts": experts}


# What one layer remembers of a sequence while it is continued, in elements by part; `length`: the keys met.


def _attention_cache(config: ModelArchitectureConfig, length: int) -> dict[str, int]:
    return {"keys_and_values": 2 * length * config.kv_heads * config.head_dim}


def _window_cache(config: ModelArchitectureConfig, length: int) -> dict[str, int]:
    """What the next query meets besides its own key and value: of the published ones with the place of these."""
    if config.attention_window is not None and not isinstance(config, PublishedArchitecture):
        length = min(length, config.attention_window - 1)
    return _attention_cache(config, length)


def _latent_cache(config: PublishedArchitecture, length: int) -> dict[str, int]:
    return {"latent_keys_and_values": length * (config.kv_lora_rank + config.qk_rope_head_dim)}


def _state_space_cache(mixer: str, config: ModelArchitectureConfig, length: int) -> dict[str, int]:
    """The state, and the tokens that the convolution sees again: of the published ones with the current one's place."""
    again = config.mamba_d_conv - (not isinstance(config, PublishedArchitecture))
    return {
        "state": config.mamba_width * config.mamba_state_size(mixer),
        "convolution": _convolved(mixer, config) * again,
    }


_CACHES: dict[str, Callable[[Any, int], dict[str, int]]] = {
    "attention": _attention_cache,
    "sliding_attention": _window_cache,
    "latent_attention": _latent_cache,
    "mamba1": functools.partial(_state_space_cache, "mamba1"),
    "mamba2": functools.partial(_state_space_cache, "mamba2"),
}


def cache_elements(config: ModelArchitectureConfig, length: int) -> dict[str, int]:
    """Elements that a sequence of `length` tokens keeps for the tokens after it, by part, in all layers."""
    elements = Counter[str]()
    for mixer, layers in _mixers(config).items():
        for part, count in _CACHES[mixer](config, keys_met(config, mixer, length)).items():
            elements[part] += layers * count
    return dict(elements)


def _mixers(config: ModelArchitectureConfig) -> Counter[str]:
    """Layers with each mixer."""
    if isinstance(config, PublishedArchitecture):
        return Counter(mixer for mixer, _ in config.layers)
    return Counter({mixer: layers for letter, mixer in LETTERS.items() if (layers := config.layers_with(letter))})


def has_state_spaces(config: ModelArchitectureConfig) -> bool:
    return bool({LETTERS[letter] for letter in STATE_SPACES} & set(_mixers(config)))


def palm_scores(config: ModelArchitectureConfig, length: int) -> int:
    """PaLM's 12 L H Q T, training FLOPs per token (Chowdhery et al. 2022, appendix B): L layers with attention, H
    heads of Q, T tokens. Where queries and values differ in width, Q is their mean."""
    if not isinstance(config, PublishedArchitecture):
        return 12 * config.layers_with(ATTENTION) * config.n_embd * length
    widths = {"latent_attention": config.head_dim + config.v_head_dim, "mamba1": 0, "mamba2": 0}
    return sum(6 * config.n_head * widths.get(mixer, 2 * config.head_dim) * length for mixer, _ in config.layers)


def decoding_difference(config: ModelArchitectureConfig, length: int) -> int:
    """FLOPs that decoding the last of `length` tokens adds to a token's share of a forward pass, or saves.

    Latent attention decodes on the latent vectors themselves, with the matrices that expand them multiplied into
    queries and outputs (DeepSeek-V2, section 2.1.2). Mamba-2 decodes by its recurrence, without products of a chunk.
    """
    layers, found = _mixers(config), 0
    if isinstance(config, PublishedArchitecture):
        expanded = config.head_dim + config.v_head_dim
        latent = 2 * config.kv_lora_rank + config.qk_rope_head_dim
        found = layers["latent_attention"] * 2 * length * config.n_head * (latent - expanded)
    if layers["mamba2"]:
        chunk = min(config.mamba_chunk_size, length)
        of_a_chunk = config.mamba_n_groups * config.mamba_state_size("mamba2") + config.mamba_width
        found -= layers["mamba2"] * 2 * chunk * of_a_chunk
    return found


def trainable(config: ModelArchitectureConfig) -> ModelArchitectureConfig | None:
    """The same architecture as one that train.py builds; None where it cannot."""
    if not isinstance(config, PublishedArchitecture):
        return config
    after = _ffn_after(config)
    if after is None:
        return None
    fields = [field.name for field in dataclasses.fields(ModelArchitectureConfig)]
    letters = {mixer: letter for letter, mixer in LETTERS.items()}
    plain = dataclasses.replace(
        ModelArchitectureConfig(**{name: getattr(config, name) for name in fields}),
        layer_pattern="".join(letters[mixer] for mixer, _ in config.layers),
        ffn_after=after,
    )
    attention, state_spaces = plain.layers_with("A"), plain.layers_with(STATE_SPACES)
    same_attention = (
        config.head_dim == plain.head_dim
        and config.biased_projections == ("all" if config.bias else "none")
        and not config.qk_norm
    )
    same_state_spaces = (
        config.conv_bias and config.ssm_bias == config.bias and config.mamba_dt_rank == plain.mamba_dt_rank
    )
    return plain if (same_attention or not attention) and (same_state_spaces or not state_spaces) else None


def _ffn_after(config: PublishedArchitecture) -> str | None:
    """What our key of this name says of its layers; None where it cannot."""
    if not set(config.layers) <= {
        (mixer, ffn) for mixer in ("attention", "mamba1", "mamba2") for ffn in ("dense", None)
    }:
        return None
    with_ffn = {(mixer == "attention", ffn == "dense") for mixer, ffn in config.layers}
    told = {"all": {(True, True), (False, True)}, "attention": {(True, True), (False, False)}}
    told["mamba"] = {(True, False), (False, True)}
    return next((after for after, pairs in told.items() if with_ffn <= pairs), None)


def activations_not_known(config: ModelArchitectureConfig, length: int) -> str | None:
    """Why memory.py's formulas do not hold for an architecture that train.py does not build; None where they do.

    Biases and other widths of heads keep nothing else than Llama's blocks do, and a window as long as the sequence
    hides nothing."""
    if trainable(config) is not None:
        return None
    assert isinstance(config, PublishedArchitecture)
    kinds = {kind for layer in config.layers for kind in layer if kind not in ("attention", "dense", None)}
    if config.window is not None and config.window >= length:
        kinds.discard("sliding_attention")
    if config.qk_norm:
        kinds.add("norms of queries and keys")
    if not kinds:
        return None
    listed = ", ".join(sorted(kind.replace("_", " ") for kind in kinds))
    return f"activations and logits are not counted here, of a model with {listed}"


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Parameters by part, those that a token meets, and forward FLOPs per token by part in the two conventions."""

    parameters: dict[str, int]
    active: dict[str, int]
    forward: dict[str, int]
    causal: dict[str, int]


def breakdown(config: ModelArchitectureConfig, length: int) -> Breakdown:
    """The cost of any model that `read_model` reads, over whole sequences of `length` tokens. Raises UserError."""
    if not isinstance(config, PublishedArchitecture):
        cost = model_cost(config, length)
        causal = cost.flops | {"attention_scores": cost.flops["attention_scores"] - cost.masked}
        return Breakdown(cost.parameters, cost.parameters, cost.flops, causal)
    outside = model_cost(dataclasses.replace(config, n_layer=0), length)
    parameters, forward = Counter(outside.parameters), Counter(outside.flops)
    masked, idle = Counter[str](), Counter[str]()
    for (mixer, ffn), layers in Counter(config.layers).items():
        keys = keys_met(config, mixer, length)
        parts = [*MIXERS[mixer](config, keys).items(), *(FFNS[ffn](config, length).items() if ffn else ())]
        for part, cost_of_part in parts:
            parameters[part] += layers * cost_of_part.parameters
            projections = {"attention": "attention_projections", "mamba": "mamba_projections"}
            forward[projections.get(part, part)] += layers * cost_of_part.matmul
            forward["convolution"] += layers * cost_of_part.convolution
            forward["scan"] += layers * cost_of_part.scan
            forward["attention_scores"] += layers * cost_of_part.scores
            # of `length` x `keys` pairs, a triangle of keys x keys / 2 lies in the future or before the sequence
            masked["attention_scores"] += layers * cost_of_part.scores * keys // (2 * length)
        norm = component_cost("normalization", config.normalization, config, length)
        parameters["norms"] += layers * (2 if ffn else 1) * norm.parameters
        if ffn == "experts":
            idle["experts"] += layers * (config.n_experts - config.n_experts_per_token) * _expert(config).parameters
    return Breakdown(
        parameters=dict(parameters),
        active={part: count - idle[part] for part, count in parameters.items()},
        forward=dict(forward),
        causal={part: flops - masked[part] for part, flops in forward.items()},
    )
