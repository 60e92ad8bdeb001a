"""What a model is: its architecture keys, the presets, and the name it goes by."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from config_keys import check_value, key
from errors import UserError, did_you_mean

# What a gated FFN applies to its gate (Shazeer 2020, GLU Variants Improve Transformer).
GATED_FFN_ACTIVATION = {"swiglu": "silu", "geglu": "gelu"}


# What each preset says beyond the defaults. Sizes and the vocabulary are the config file's business.
PRESETS: dict[str, dict[str, Any]] = {
    "legacy": {"activation": "gelu"},
    "gpt2": {"activation": "gelu_tanh", "bias": True},
    "llama": {
        "position_encoding": "rope",
        "normalization": "rmsnorm",
        "ffn_type": "swiglu",
        "ffn_expansion_ratio": 8 / 3,
        "ffn_multiple_of": 256,
        "weight_tying": False,
    },
    "llama3": {
        "position_encoding": "rope",
        "rope_theta": 500000.0,
        "normalization": "rmsnorm",
        "ffn_type": "swiglu",
        "ffn_expansion_ratio": 3.5,
        "weight_tying": False,
    },
    "team": {"position_encoding": "rope", "normalization": "rmsnorm", "ffn_type": "swiglu"},
    "custom": {},
}


@dataclasses.dataclass(frozen=True)
class ModelArchitectureConfig:
    """Everything that decides a model's parameters and its function. The defaults are nanoGPT's.

    A key that is None here is derived from the others by `resolve_architecture`.
    """

    arch_preset: str = key(
        "legacy",
        "what the other architecture keys are unless given: nanoGPT's (legacy), GPT-2's, Llama 2's, Llama 3's, the "
        "team's, or the plain defaults (custom)",
        choices=tuple(PRESETS),
        group="Architecture: sizes",
    )
    n_layer: int = key(12, "transformer blocks", at_least=1)
    n_head: int = key(12, "query heads of each attention", at_least=1)
    n_embd: int = key(768, "width of the residual stream", at_least=1)
    num_key_value_heads: int | None = key(
        None, "key and value heads: n_head is multi-head (None), 1 is multi-query, between is grouped-query", at_least=1
    )
    d_ff: int | None = key(None, "hidden width of the FFN; None: from ffn_expansion_ratio", at_least=1)
    ffn_expansion_ratio: float | None = key(
        None, "d_ff over n_embd; None: 4 for the standard FFN, 8/3 for a gated one", above=0, below=1000
    )
    ffn_multiple_of: int | None = key(
        None, "d_ff is rounded up to a multiple of this; None: 1 for the standard FFN, 64 for a gated one", at_least=1
    )
    block_size: int = key(1024, "context length in tokens", at_least=1)
    vocab_size: int | None = key(
        None, "rows of the embedding; None: the dataset's (with the legacy preset, 50257 becomes 50304)", at_least=1
    )
    normalization: str = key("layernorm", "layernorm, layernorm_nobias or rmsnorm", group="Architecture: components")
    norm_eps: float = key(1e-5, "added to the variance in every norm", above=0)
    norm_position: str = key(
        "pre",
        "pre: x + f(norm(x)), with a final norm; post: norm(x + f(x)), as the first transformer",
        choices=("pre", "post"),
    )
    activation: str | None = key(
        None,
        "of the standard FFN: gelu (exact; the default), gelu_tanh, silu, relu, relu_squared, leaky_relu; "
        "a gated FFN has its own",
    )
    ffn_type: str = key("standard", "standard, swiglu or geglu")
    position_encoding: str = key("learned_absolute", "learned_absolute, rope, alibi or none")
    rope_theta: float = key(10000.0, "base of the rotary frequencies", above=0)
    rope_scaling: dict | None = key(
        None, "as in Hugging Face: {'rope_type': 'linear', 'factor': ...} or {'rope_type': 'llama3', ...}"
    )
    attention_backend: str = key("sdpa", "sdpa (PyTorch's fused kernels) or manual (the readable reference)")
    bias: bool = key(False, "biases in all linear layers")
    weight_tying: bool = key(True, "the LM head is the token embedding")
    dropout: float = key(0.0, "after embedding, attention weights, attention and FFN", at_least=0, below=1)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Key and value heads, as a number also before `resolve_architecture`."""
        return self.num_key_value_heads or self.n_head

    @property
    def name(self) -> str:
        """E.g. `12L-12H-768D-GQA4-RoPE-RMS-SwiGLU-PreNorm`."""
        parts = [f"{self.n_layer}L", f"{self.n_head}H", f"{self.n_embd}D"]
        if self.kv_heads < self.n_head:
            parts.append("MQA" if self.kv_heads == 1 else f"GQA{self.kv_heads}")
        ffn = self.activation if self.ffn_type == "standard" else self.ffn_type
        parts += [_label(self.position_encoding), _label(self.normalization), _label(ffn or "gelu")]
        parts.append("PreNorm" if self.norm_position == "pre" else "PostNorm")
        return "-".join(parts)


_LABELS = {
    "learned_absolute": "AbsPos",
    "rope": "RoPE",
    "alibi": "ALiBi",
    "none": "NoPos",
    "layernorm": "LN",
    "layernorm_nobias": "LNnoBias",
    "rmsnorm": "RMS",
    "gelu": "GELU",
    "gelu_tanh": "GELUtanh",
    "silu": "SiLU",
    "relu": "ReLU",
    "relu_squared": "ReLU2",
    "leaky_relu": "LeakyReLU",
    "swiglu": "SwiGLU",
    "geglu": "GEGLU",
}


def _label(component: str) -> str:
    return _LABELS.get(component, component)


def preset_values(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the preset sets, less what gives way to the keys that the user gave in another form."""
    values = dict(PRESETS[preset])
    if preset == "legacy" and not given.get("bias", False):
        values["normalization"] = "layernorm_nobias"  # nanoGPT's `bias` speaks of its norms too
    superseded: set[str] = set()
    if given.get("d_ff") is not None:
        superseded |= {"ffn_expansion_ratio", "ffn_multiple_of"}
    preset_type = values.get("ffn_type", "standard")
    ffn_type = given.get("ffn_type", preset_type)
    if (ffn_type in GATED_FFN_ACTIVATION) != (preset_type in GATED_FFN_ACTIVATION):
        superseded |= {"activation", "ffn_expansion_ratio", "ffn_multiple_of"}
    return {name: value for name, value in values.items() if name not in superseded}


def resolve_architecture(given: Mapping[str, Any]) -> ModelArchitectureConfig:
    """The complete architecture from the keys that the user gave: defaults, then the preset, then `given`.

    Every derived key becomes a number, except a `vocab_size` of None (the dataset decides it);
    `ffn_expansion_ratio` and `ffn_multiple_of` have then done their work and are None beside a definite `d_ff`.
    Raises UserError for a wrong type, an impossible value, or a combination that cannot work. Names of
    components are checked where their costs are looked up, because a config file may register its own.
    """
    fields = {field.name for field in dataclasses.fields(ModelArchitectureConfig)}
    for name in given:
        if name not in fields:
            raise UserError(f"unknown architecture key {name!r}{did_you_mean(name, fields)}")
    given = {name: check_value(ModelArchitectureConfig, name, value) for name, value in given.items()}
    values = preset_values(given.get("arch_preset", "legacy"), given) | given
    config = _with_derived_values(ModelArchitectureConfig(**values))
    check_architecture(config)
    return config


def _with_derived_values(config: ModelArchitectureConfig) -> ModelArchitectureConfig:
    gated = config.ffn_type in GATED_FFN_ACTIVATION
    if config.d_ff is not None and config.ffn_expansion_ratio is not None:
        raise UserError(
            f"d_ff={config.d_ff} and ffn_expansion_ratio={config.ffn_expansion_ratio} say the same thing twice; "
            "set one of them to None"
        )
    d_ff = config.d_ff
    if d_ff is None:
        multiple_of = config.ffn_multiple_of or (64 if gated else 1)
        ratio = config.ffn_expansion_ratio or (8 / 3 if gated else 4)
        # The small subtraction keeps 7/3 x 108 at 252 although 7/3 is not a binary fraction.
        d_ff = max(1, math.ceil(ratio * config.n_embd / multiple_of - 1e-9)) * multiple_of
    elif config.ffn_multiple_of is not None and d_ff % config.ffn_multiple_of:
        raise UserError(f"d_ff={d_ff} is not a multiple of ffn_multiple_of={config.ffn_multiple_of}")
    return dataclasses.replace(
        config,
        num_key_value_heads=config.kv_heads,
        d_ff=d_ff,
        ffn_expansion_ratio=None,
        ffn_multiple_of=None,
        activation=config.activation or GATED_FFN_ACTIVATION.get(config.ffn_type, "gelu"),
    )


def check_architecture(config: ModelArchitectureConfig) -> None:
    """Raises UserError, with the reason, for sizes and combinations that cannot work together."""
    if config.n_embd % config.n_head:
        raise UserError(f"n_embd={config.n_embd} is not divisible by n_head={config.n_head}")
    if config.n_head % config.kv_heads:
        raise UserError(f"n_head={config.n_head} is not divisible by num_key_value_heads={config.kv_heads}")
    if config.position_encoding == "rope" and config.head_dim % 2:
        raise UserError(
            f"RoPE rotates pairs: the head dimension n_embd / n_head = {config.head_dim} must be even; "
            "change n_head or n_embd, or take another position_encoding"
        )
    natural = GATED_FFN_ACTIVATION.get(config.ffn_type)
    if natural is not None and config.activation != natural:
        raise UserError(
            f"ffn_type={config.ffn_type!r} has its own activation ({natural}): "
            f"drop activation={config.activation!r}, or take ffn_type='standard'"
        )
    if config.rope_scaling is not None:
        _check_rope_scaling(config)


_ROPE_SCALING_KEYS = {
    "linear": {"rope_type", "factor"},
    "llama3": {
        "rope_type",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}


def _check_rope_scaling(config: ModelArchitectureConfig) -> None:
    scaling = config.rope_scaling or {}
    if config.position_encoding != "rope":
        raise UserError(f"rope_scaling is given, but position_encoding={config.position_encoding!r}")
    kind = scaling.get("rope_type")
    if not isinstance(kind, str) or kind not in _ROPE_SCALING_KEYS:
        raise UserError(f"rope_scaling: rope_type={kind!r} is none of: {', '.join(_ROPE_SCALING_KEYS)}")
    wanted = _ROPE_SCALING_KEYS[kind]
    if set(scaling) != wanted:
        raise UserError(f"rope_scaling of type {kind!r} takes exactly the keys {', '.join(sorted(wanted))}")
    for name in wanted - {"rope_type"}:
        if type(scaling[name]) not in (int, float) or not 0 < scaling[name] < math.inf:
            raise UserError(f"rope_scaling: {name}={scaling[name]!r} must be a number above 0")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise UserError("rope_scaling: high_freq_factor must be above low_freq_factor")
