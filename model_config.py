"""What a model is: its architecture keys, the presets, and the name it goes by."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError, did_you_mean
from common.keys import check_value, key

# What a gated FFN applies to its gate (Shazeer 2020, GLU Variants Improve Transformer).
GATED_FFN_ACTIVATION = {"swiglu": "silu", "geglu": "gelu"}

# The size of the state unless mamba_d_state gives it, as published: Gu and Dao 2023; Dao and Gu 2024.
MAMBA_D_STATE = {"mamba1": 16, "mamba2": 128}

SELECTIVE_CHUNK = 16  # tokens between the states that Mamba-1's scan keeps: few enough for a core's cache
FUSED_CHUNK = 64  # tokens of a chunk in the fused kernels of Mamba-2's scan

# The mixer of a layer, by its letter in layer_pattern.
MIXERS = {"A": "attention", "W": "sliding_attention", "M": "mamba2", "S": "mamba1"}
ATTENTION, STATE_SPACES = ("A", "W"), ("M", "S")
MOST_LAYERS = 100_000  # of a pattern, which has a letter for each

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
    "mamba1": {
        "layer_pattern": "S",
        "ffn_after": "attention",
        "position_encoding": "none",
        "normalization": "rmsnorm",
    },
    "mamba2": {
        "layer_pattern": "M",
        "ffn_after": "attention",
        "position_encoding": "none",
        "normalization": "rmsnorm",
    },
    "hybrid": {
        "hybrid_attention_ratio": 0.375,
        "position_encoding": "rope",
        "normalization": "rmsnorm",
        "ffn_type": "swiglu",
    },
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
        "team's, Mamba's, Mamba-2's, a hybrid of Mamba-2 and attention, or the plain defaults (custom)",
        choices=tuple(PRESETS),
        group="Architecture: sizes",
    )
    n_layer: int = key(12, "blocks", at_least=1)
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
    layer_pattern: str | None = key(
        None,
        "the mixer of each layer: A attention, W attention within attention_window, M Mamba-2, S Mamba-1; a shorter "
        "pattern is repeated; None: by hybrid_attention_ratio, or A",
        group="Architecture: mixers",
    )
    hybrid_attention_ratio: float | None = key(
        None, "share of attention layers among Mamba-2 layers; docs/hybrid_mamba.md says where they stand", at_least=0
    )
    ffn_after: str = key("all", "which layers have an FFN", choices=("all", "attention", "mamba"))
    attention_window: int | None = key(None, "tokens that a query of a W layer meets, its own included", at_least=1)
    mamba_d_state: int | None = key(
        None, "numbers of state a channel keeps; None: 128 in Mamba-2, 16 in Mamba-1", at_least=1
    )
    mamba_expand: int = key(2, "channels of a Mamba layer over n_embd", at_least=1)
    mamba_d_conv: int = key(4, "tokens that the convolution before the scan sees, the current one included", at_least=1)
    mamba_head_dim: int = key(64, "of Mamba-2: channels that share their decay", at_least=1)
    mamba_n_groups: int = key(1, "of Mamba-2: groups of heads that share what they write and read by", at_least=1)
    mamba_chunk_size: int = key(
        64, "of Mamba-2: tokens whose products are made at once; changes speed and FLOPs, not the function", at_least=1
    )
    mamba_backend: str = key(
        "auto",
        "what computes Mamba-2's scan in training: chunked (products of matrices, in PyTorch), fla (the extra "
        "kernels: fused, for a GPU, in chunks of 64), or auto (fla on a GPU in 16 bits, where it runs and agrees)",
    )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Key and value heads, as a number also before `resolve_architecture`."""
        return self.num_key_value_heads or self.n_head

    def layers_with(self, letters: str | Sequence[str]) -> int:
        """Layers whose mixer has one of the letters of MIXERS."""
        if self.layer_pattern is None:
            return self.n_layer if "A" in letters else 0
        return sum(self.pattern.count(letter) for letter in letters)

    @property
    def pattern(self) -> str:
        """A letter for each layer."""
        return self.layer_pattern or "A" * self.n_layer

    @property
    def last_mixer(self) -> str:
        """The letter of the last layer."""
        return (self.layer_pattern or "A")[-1]

    def has_ffn(self, letter: str) -> bool:
        """Whether layers with this mixer have an FFN."""
        return self.ffn_after == "all" or (letter in ATTENTION) == (self.ffn_after == "attention")

    @property
    def ffn_layers(self) -> int:
        return self.layers_with([letter for letter in MIXERS if self.has_ffn(letter)])

    @property
    def mamba_width(self) -> int:
        """Channels of a Mamba layer."""
        return self.mamba_expand * self.n_embd

    @property
    def mamba_heads(self) -> int:
        """Heads of a Mamba-2 layer."""
        return self.mamba_width // self.mamba_head_dim

    @property
    def mamba_dt_rank(self) -> int:
        """Width that the steps of Mamba-1's channels come out of (Gu and Dao 2023, section 3.6)."""
        return -(-self.n_embd // 16)

    def mamba_state_size(self, mixer: str) -> int:
        """Numbers of state a channel of `mixer` keeps, mamba1 or mamba2."""
        return self.mamba_d_state or MAMBA_D_STATE[mixer]

    @property
    def name(self) -> str:
        """E.g. `12L-12H-768D-GQA4-RoPE-RMS-SwiGLU-PreNorm`."""
        parts = [f"{self.n_layer}L", *self._mixer_labels(), f"{self.n_embd}D"]
        if self.layers_with(ATTENTION) and self.kv_heads < self.n_head:
            parts.append("MQA" if self.kv_heads == 1 else f"GQA{self.kv_heads}")
        parts += [_label(self.position_encoding), _label(self.normalization)]
        if self.ffn_layers:
            ffn = self.activation if self.ffn_type == "standard" else self.ffn_type
            parts.append(_label(ffn or "gelu"))
        parts.append("PreNorm" if self.norm_position == "pre" else "PostNorm")
        return "-".join(parts)

    def _mixer_labels(self) -> list[str]:
        """`12H` of a transformer, `9A15M-16H` of a hybrid, `Mamba2`."""
        counts = {letter: self.layers_with(letter) for letter in MIXERS}
        heads = [f"{self.n_head}H"] if self.layers_with(ATTENTION) else []
        if counts["A"] == self.n_layer:
            return heads
        if self.n_layer in counts.values() and not heads:
            return ["Mamba2" if counts["M"] else "Mamba1"]
        return ["".join(f"{count}{letter}" for letter, count in counts.items() if count), *heads]


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
    if given.get("layer_pattern") is not None:
        superseded.add("hybrid_attention_ratio")
    if given.get("hybrid_attention_ratio") is not None:
        superseded.add("layer_pattern")
    preset_type = values.get("ffn_type", "standard")
    ffn_type = given.get("ffn_type", preset_type)
    if (ffn_type in GATED_FFN_ACTIVATION) != (preset_type in GATED_FFN_ACTIVATION):
        superseded |= {"activation", "ffn_expansion_ratio", "ffn_multiple_of"}
    return {name: value for name, value in values.items() if name not in superseded}


def resolve_architecture(given: Mapping[str, Any]) -> ModelArchitectureConfig:
    """The complete architecture from the keys that the user gave: defaults, then the preset, then `given`.

    Every derived key becomes a number, except a `vocab_size` of None (the dataset decides it);
    `ffn_expansion_ratio` and `ffn_multiple_of` have then done their work and are None beside a definite `d_ff`, and so
    is `hybrid_attention_ratio` beside a `layer_pattern` of all layers (None: every mixer is attention). What no layer
    has, keys and values or an FFN, has no size either: None.
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
    _check_positions(given, config)
    check_architecture(config)
    _check_idle_keys(given, config)
    return config


def _with_derived_values(config: ModelArchitectureConfig) -> ModelArchitectureConfig:
    config = _with_pattern(config)
    gated = config.ffn_type in GATED_FFN_ACTIVATION
    if config.d_ff is not None and config.ffn_expansion_ratio is not None:
        raise UserError(
            f"d_ff={config.d_ff} and ffn_expansion_ratio={config.ffn_expansion_ratio} say the same thing twice; "
            "set one of them to None"
        )
    d_ff = config.d_ff
    if not config.ffn_layers:
        d_ff = None
    elif d_ff is None:
        multiple_of = config.ffn_multiple_of or (64 if gated else 1)
        ratio = config.ffn_expansion_ratio or (8 / 3 if gated else 4)
        # The small subtraction keeps 7/3 x 108 at 252 although 7/3 is not a binary fraction.
        d_ff = max(1, math.ceil(ratio * config.n_embd / multiple_of - 1e-9)) * multiple_of
    elif config.ffn_multiple_of is not None and d_ff % config.ffn_multiple_of:
        raise UserError(f"d_ff={d_ff} is not a multiple of ffn_multiple_of={config.ffn_multiple_of}")
    return dataclasses.replace(
        config,
        num_key_value_heads=config.kv_heads if config.layers_with(ATTENTION) else None,
        d_ff=d_ff,
        ffn_expansion_ratio=None,
        ffn_multiple_of=None,
        activation=config.activation or (GATED_FFN_ACTIVATION.get(config.ffn_type, "gelu") if d_ff else None),
    )


def _with_pattern(config: ModelArchitectureConfig) -> ModelArchitectureConfig:
    pattern, ratio, n_layer = config.layer_pattern, config.hybrid_attention_ratio, config.n_layer
    if n_layer > MOST_LAYERS and not (pattern is None and ratio is None):
        raise UserError(
            f"n_layer={n_layer}: layer_pattern and hybrid_attention_ratio take at most {MOST_LAYERS} layers"
        )
    if ratio is not None:
        if pattern is not None:
            raise UserError(
                f"layer_pattern={pattern!r} and hybrid_attention_ratio={ratio} say the same thing twice; "
                "set one of them to None"
            )
        if ratio > 1:
            raise UserError(f"hybrid_attention_ratio={ratio} is a share of the layers: take 0 to 1")
        pattern = hybrid_pattern(n_layer, ratio)
        if ratio > 0 and "A" not in pattern:
            raise UserError(
                f"hybrid_attention_ratio={ratio} of n_layer={n_layer} is no attention layer: take a larger one of "
                "them, or hybrid_attention_ratio=0 with position_encoding='none'"
            )
    elif pattern is not None:
        wrong = sorted(set(pattern) - set(MIXERS))
        if wrong:
            meant = ", ".join(f"{letter} {mixer}" for letter, mixer in MIXERS.items())
            raise UserError(f"layer_pattern={pattern!r} must be made of the letters {meant}")
        if n_layer % len(pattern):
            raise UserError(f"layer_pattern has {len(pattern)} letters, which do not divide n_layer={n_layer}")
        pattern *= n_layer // len(pattern)
    if pattern is not None and set(pattern) == {"A"}:
        pattern = None
    return dataclasses.replace(config, layer_pattern=pattern, hybrid_attention_ratio=None)


def hybrid_pattern(n_layer: int, attention_ratio: float) -> str:
    """Where attention stands among Mamba-2 layers: two ninths of it early, from the second layer on, for patterns of
    the text; four ninths as the last layers, for the output; the rest evenly between, for what lies far apart.

    >>> hybrid_pattern(24, 0.375)
    'MAAMMMAMMMMAMMMMAMMMAAAA'
    """
    count = round(attention_ratio * n_layer)
    if count in (0, n_layer):
        return "A" * count or "M" * n_layer
    last = max(1, round(count * 4 / 9))
    early = min(count - last, round(count * 2 / 9))
    between = count - last - early
    spacing = (n_layer - last - early) / (between + 1)
    positions = {*range(1, early + 1), *range(n_layer - last, n_layer)}
    positions |= {round(early + spacing * (number + 1)) for number in range(between)}
    return "".join("A" if layer in positions else "M" for layer in range(n_layer))


def _check_positions(given: Mapping[str, Any], config: ModelArchitectureConfig) -> None:
    """Raises UserError for a position encoding that acts in attention, which no layer has: what says so, and whose
    encoding it is, may be the preset and not the user."""
    if config.layers_with(ATTENTION) or config.position_encoding not in ("rope", "alibi"):
        return
    preset = f"arch_preset={config.arch_preset!r}"
    says = [f"{name}={given[name]!r}" for name in _PATTERN_KEYS if given.get(name) is not None]
    of_preset = "" if "position_encoding" in given else f" of {preset}"
    raise UserError(
        f"{(says or [preset])[0]} leaves no layer with attention, in which position_encoding="
        f"{config.position_encoding!r}{of_preset} acts: take position_encoding='none'"
    )


def check_architecture(config: ModelArchitectureConfig) -> None:
    """Raises UserError, with the reason, for sizes and combinations that cannot work together."""
    if config.layers_with(ATTENTION):
        _check_attention(config)
    if config.layers_with("M"):
        check_mamba(config)
    natural = GATED_FFN_ACTIVATION.get(config.ffn_type)
    if config.ffn_layers and natural is not None and config.activation != natural:
        raise UserError(
            f"ffn_type={config.ffn_type!r} has its own activation ({natural}): "
            f"drop activation={config.activation!r}, or take ffn_type='standard'"
        )
    if config.rope_scaling is not None:
        _check_rope_scaling(config)


def _check_attention(config: ModelArchitectureConfig) -> None:
    if config.n_embd % config.n_head:
        raise UserError(f"n_embd={config.n_embd} is not divisible by n_head={config.n_head}")
    if config.n_head % config.kv_heads:
        raise UserError(f"n_head={config.n_head} is not divisible by num_key_value_heads={config.kv_heads}")
    if config.position_encoding == "rope" and config.head_dim % 2:
        raise UserError(
            f"RoPE rotates pairs: the head dimension n_embd / n_head = {config.head_dim} must be even; "
            "change n_head or n_embd, or take another position_encoding"
        )
    if config.layers_with("W") and config.attention_window is None:
        raise UserError("layer_pattern has W layers, whose attention_window is not given")


_PATTERN_KEYS = ("layer_pattern", "hybrid_attention_ratio")
_ATTENTION_KEYS = ("n_head", "num_key_value_heads", "attention_backend", "rope_theta", "rope_scaling")
_FFN_KEYS = ("d_ff", "ffn_expansion_ratio", "ffn_multiple_of", "ffn_type", "activation")
_MAMBA2_KEYS = ("mamba_head_dim", "mamba_n_groups", "mamba_chunk_size", "mamba_backend")
_MAMBA_KEYS = ("mamba_d_state", "mamba_expand", "mamba_d_conv")


def _check_idle_keys(given: Mapping[str, Any], config: ModelArchitectureConfig) -> None:
    """Raises UserError for a key that says something about what no layer has."""
    keys_of = {
        "attention": (_ATTENTION_KEYS, config.layers_with(ATTENTION)),
        "attention within a window": (("attention_window",), config.layers_with("W")),
        "an FFN": (_FFN_KEYS, config.ffn_layers),
        "a state space": (_MAMBA_KEYS, config.layers_with(STATE_SPACES)),
        "Mamba-2": (_MAMBA2_KEYS, config.layers_with("M")),
    }
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    allowed = {name: (default, PRESETS[config.arch_preset].get(name)) for name, default in defaults.items()}
    for what, (names, layers) in keys_of.items():
        for name in names:
            value = given.get(name)
            if not layers and value is not None and value not in allowed[name]:
                raise UserError(f"{name}={value!r} is given, but no layer has {what}: drop it, or change layer_pattern")


def check_mamba(config: ModelArchitectureConfig) -> None:
    """Raises UserError for what no Mamba-2 layer can be made of. A Mamba-1 layer takes any."""
    if config.mamba_width % config.mamba_head_dim:
        raise UserError(
            f"mamba_expand x n_embd = {config.mamba_expand} x {config.n_embd} = {config.mamba_width} channels are not "
            f"divisible by mamba_head_dim={config.mamba_head_dim}"
        )
    if config.mamba_heads % config.mamba_n_groups:
        raise UserError(
            f"the {config.mamba_heads} heads of a Mamba-2 layer (mamba_expand x n_embd / mamba_head_dim) are not "
            f"divisible by mamba_n_groups={config.mamba_n_groups}"
        )
    if config.mamba_backend == "fla" and config.mamba_chunk_size != FUSED_CHUNK:
        raise UserError(
            f"mamba_backend='fla' has chunks of {FUSED_CHUNK} tokens: drop mamba_chunk_size={config.mamba_chunk_size}, "
            "or take mamba_backend='chunked'"
        )


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
