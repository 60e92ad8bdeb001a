"""The model that is built is the one that was asked for, and it does what its keys say."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from common.keys import keys_of
from components import registry
from components.ffns.gated.spec import GATES
from components.mixers.attention.module import Attention, SlidingAttention, UnplacedAttention
from components.mixers.gated_delta.module import GatedDelta
from components.mixers.kimi_delta.module import KimiDelta
from components.mixers.latent_attention.module import LatentAttention
from components.mixers.mamba1.module import Mamba1
from components.mixers.mamba2.kernels import ssd_fla
from components.mixers.mamba2.module import Mamba2
from components.mixers.mamba2.scan import ssd_chunked
from components.mixers.short_convolution.module import ShortConvolution
from components.norms.module import ZeroCentredRMSNorm
from components.registry import PRESETS
from configurator import load, with_vocabulary
from model_builder import LanguageModel, build_model
from model_components import component, registered
from model_config import architecture_keys, resolve_architecture
from training.plan import plan_run

TINY = {
    "arch_preset": "custom",
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "d_ff": 24,
    "block_size": 12,
    "vocab_size": 53,
}
LINEAR_SCALING = {"rope_type": "linear", "factor": 4.0}


def tiny(**keys) -> LanguageModel:
    return build_model(resolve_architecture(TINY | keys), seed=0)


def with_large_weights(model: LanguageModel, std: float = 0.3) -> LanguageModel:
    """Far from the start, where every nonlinearity is felt."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn(parameter.shape)
    return model


def random_tokens(batch: int = 2, length: int = 12, vocab_size: int = TINY["vocab_size"]) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(2))


def loss_and_gradients(model: LanguageModel, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(tokens[:, :-1], tokens[:, 1:]).mean
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


# Every preset x every override, by train.py's own way from arguments to a module

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: x * (x > 0),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu_squared": lambda x: x**2 * (x > 0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
}


def observed_keys(model: LanguageModel) -> dict:
    """The architecture keys, read off the module and its behaviour and never off its configuration."""
    mixers, rules = _observed_mixers(model), _observed_delta_rules(model) | _observed_convolutions(model)
    sizes = _observed_sizes(model) | _observed_norms(model) | _observed_ffn(model)
    blocks = {"parallel_residual": _is_parallel(model)} | _observed_factors(model)
    return sizes | mixers | blocks | _observed_attention(model) | _observed_latent_attention(model) | rules


def _observed_sizes(model: LanguageModel) -> dict:
    ffn = next(block.ffn for block in reversed(model.blocks) if hasattr(block, "ffn"))
    linears = [m for m in ffn.modules() if isinstance(m, torch.nn.Linear)]
    dropouts = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    block_size = next(n for n in itertools.count(1) if not _takes(model, n + 1))
    return {
        "n_layer": len(model.blocks),
        "n_embd": model.embedding.embedding_dim,
        "vocab_size": model(random_tokens(1, 1)).shape[-1],
        "block_size": block_size,
        "bias": one_of({m.bias is not None for m in linears}),
        "weight_tying": model.head_weight is model.embedding.weight,
        "dropout": one_of(dropouts),
    }


def _takes(model: LanguageModel, length: int) -> bool:
    try:
        model(random_tokens(1, length))
    except ValueError:
        return False
    return True


def _observed_norms(model: LanguageModel) -> dict:
    norms = [norm for block in model.blocks for name, norm in block.named_children() if name.endswith("_norm")]
    layernorm = "layernorm_nobias" if getattr(norms[0], "bias", None) is None else "layernorm"
    named = {torch.nn.LayerNorm: layernorm, torch.nn.RMSNorm: "rmsnorm", ZeroCentredRMSNorm: "rmsnorm_zero_centred"}
    return {
        "normalization": named[one_of({type(n) for n in norms})],
        "norm_eps": one_of({n.eps for n in norms}),
        "norm_position": _observed_norm_position(model),
    }


def _observed_norm_position(model: LanguageModel) -> str:
    """By what is normed: what a mixer reads, what it adds to the stream, the stream that its block leaves; all so large
    that eps is nothing."""
    block, tensors = model.blocks[0], {}

    def is_normed(name: str) -> bool:
        return torch.allclose(tensors[name].square().mean(-1), torch.ones(()), atol=0.1)

    handles = [
        block.register_forward_pre_hook(lambda module, args: (1e4 * args[0],)),
        block.mixer.register_forward_hook(lambda module, args, output: _times(1e4, output)),
        block.register_forward_hook(lambda module, args, output: tensors.update(stream=output[0])),
        block.mixer.register_forward_pre_hook(lambda module, args: tensors.update(read=args[0])),
        block.dropout.register_forward_pre_hook(lambda module, args: tensors.setdefault("added", args[0])),
    ]
    with torch.no_grad():
        model.eval()(random_tokens(2, 8))
    for handle in handles:
        handle.remove()
    if is_normed("stream"):
        return "post"
    return {(True, False): "pre", (True, True): "sandwich", (False, True): "inside"}[
        is_normed("read"), is_normed("added")
    ]


def _times(factor: float, output):
    """What a mixer adds to the stream, which may be all that it returns, times this."""
    return (factor * output[0], *output[1:]) if isinstance(output, tuple) else factor * output


def _observed_factors(model: LanguageModel) -> dict:
    """Of the stream at its start and of what the head reads, by what they are made of; of what is added, and of bounded
    logits, by a one and by large ones."""
    width, seen, tokens = model.embedding.embedding_dim, {}, random_tokens(2, 8)
    first = model.blocks[0].register_forward_pre_hook(lambda module, args: seen.update(start=args[0]))
    last = model.blocks[-1].register_forward_hook(lambda module, args, output: seen.update(end=output[0]))
    with torch.no_grad():
        hidden = model.eval().hidden(tokens)
        embedded = seen["start"] - model.position.embed(torch.zeros_like(seen["start"]))
        embedding = (embedded / model.embedding(tokens)).median().item()
        scaling = (model.final_norm(seen["end"]) / hidden).median().item()
        added = model.blocks[0]._joined(torch.zeros(1, width), torch.eye(width)[:1], torch.nn.Identity())
        residual = added.max().item()
        cap = model.logits(torch.full((1, width), 1e9)).abs().max().item()
    first.remove()
    last.remove()
    return {
        "embedding_multiplier": None if math.isclose(embedding, width**0.5, rel_tol=1e-4) else round(embedding, 3),
        "residual_multiplier": round(residual, 3),
        "logits_scaling": round(scaling, 3),
        "final_logit_softcapping": round(cap, 3) if cap < 1e4 else None,
    }


def _observed_cap(attend) -> float | None:
    """The second of two tokens meets a score of nothing and one that is as large as it can be."""
    q = torch.tensor([0.0, 1e6], dtype=torch.float64).view(1, 1, 2, 1)
    weight = attend(q, q, torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 2, 1), None, 0.0)[0, 0, 1, 0].item()
    return None if weight == 0 else round(math.log(1 / weight - 1), 3)


def _observed_ffn(model: LanguageModel) -> dict:
    ffn = next(block.ffn for block in reversed(model.blocks) if hasattr(block, "ffn"))
    x = torch.linspace(-4, 4, 101)
    same = [name for name, formula in ACTIVATIONS.items() if torch.allclose(ffn.activation(x), formula(x), atol=1e-6)]
    activation = one_of(set(same))
    gated = {activation: ffn_type for ffn_type, activation in GATES.items()} | {"quick_gelu": "swiglu_clamped"}
    found = {
        "d_ff": ffn.down_proj.in_features,
        "activation": activation,
        "ffn_type": gated[activation] if hasattr(ffn, "gate_proj") else "standard",
    }
    if found["ffn_type"] == "swiglu_clamped":
        found["swiglu_limit"] = round(ffn.gated(torch.tensor(1e6), torch.tensor(0.0)).item(), 3)
    return found


def _is_parallel(model: LanguageModel) -> bool:
    """Whether the FFN's input is the same without the mixer's output."""
    block = next(block for block in model.blocks if hasattr(block, "ffn"))
    read: list[torch.Tensor] = []
    handle = block.ffn.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    mixer = block.mixer.register_forward_hook(lambda module, args, output: _times(len(read), output))
    with torch.no_grad():
        for _ in range(2):
            model.eval()(random_tokens(2, 8))
    handle.remove()
    mixer.remove()
    return torch.equal(*read)


LETTERS = {Attention: "A", SlidingAttention: "W", UnplacedAttention: "U", Mamba2: "M", Mamba1: "S"}
LETTERS |= {LatentAttention: "C", GatedDelta: "D", KimiDelta: "K", ShortConvolution: "V"}


def _observed_mixers(model: LanguageModel) -> dict:
    """Letter by letter; and of Mamba-2 its sizes, by the shapes of its weights where they tell."""
    letters = "".join(LETTERS[type(block.mixer)] for block in model.blocks)
    with_ffn = {letter for letter, block in zip(letters, model.blocks, strict=True) if hasattr(block, "ffn")}
    after = {("A", "W", "U", "C"): "attention", ("M", "S", "D", "K", "V"): "mamba"}
    found = {"layer_pattern": None if set(letters) == {"A"} else letters}
    if set(letters) == {"A"} and not all(hasattr(block, "ffn") for block in model.blocks):
        return found | {"ffn_pattern": "".join("F" if hasattr(block, "ffn") else "-" for block in model.blocks)}
    if with_ffn != set(letters):
        found["ffn_after"] = one_of({after[kind] for kind in after for letter in with_ffn if letter in kind})
    for mixer in (block.mixer for block in model.blocks if isinstance(block.mixer, Mamba1 | Mamba2)):
        found |= {"mamba_conv_bias": mixer.x_conv.bias is not None, "mamba_bias": mixer.x_proj.bias is not None}
        if isinstance(mixer, Mamba1):
            found |= {"mamba_dt_rank": mixer.dt_proj.weight.shape[1]}
    for mixer in (block.mixer for block in model.blocks if isinstance(block.mixer, Mamba2)):
        channels, d_conv = mixer.x_conv.weight.shape
        written = mixer.B_proj.out_features
        heads = len(mixer.A_log)
        groups = channels // mixer.norm.span
        found |= {"mamba_d_conv": d_conv, "mamba_head_dim": channels // heads, "mamba_n_groups": groups}
        expand, is_no_multiple = divmod(channels, model.embedding.embedding_dim)
        found |= {"mamba_n_heads": heads} if is_no_multiple else {"mamba_n_heads": None, "mamba_expand": expand}
        found |= {"mamba_chunk_size": mixer.chunk_size}
        found |= {"mamba_backend": {ssd_chunked: "auto", ssd_fla: "fla"}[mixer.scan]}
        mixer.scan = ssd_chunked  # which computes without a GPU, too
        found |= {"mamba_d_state": None if written // groups == 128 else written // groups}
    return found


def _observed_delta_rules(model: LanguageModel) -> dict:
    """By the state of a cache, and what the rule is called with."""
    found = {}
    for mixer in (block.mixer for block in model.blocks if isinstance(block.mixer, GatedDelta | KimiDelta)):
        _, heads, keys, values = mixer.empty_cache(1).state.shape
        found |= {"linear_num_value_heads": heads, "linear_key_head_dim": keys, "linear_value_head_dim": values}
        found |= {"linear_conv_kernel_dim": mixer.k_conv.weight.shape[1], "linear_chunk_size": mixer.chunk_size}
        if isinstance(mixer, GatedDelta):
            found["linear_num_key_heads"] = mixer.k_proj.out_features // keys
    return found


def _observed_convolutions(model: LanguageModel) -> dict:
    found = {}
    for mixer in (block.mixer for block in model.blocks if isinstance(block.mixer, ShortConvolution)):
        found |= {"short_conv_kernel_dim": mixer.conv.weight.shape[1], "short_conv_bias": mixer.conv.bias is not None}
    return found


def _observed_latent_attention(model: LanguageModel) -> dict:
    """What the backend is called with, what comes out of it, and what is turned."""
    found, width = {}, model.embedding.embedding_dim
    for mixer in (block.mixer for block in model.blocks if isinstance(block.mixer, LatentAttention)):
        seen = []
        attend = mixer.attend
        mixer.attend = lambda q, k, v, *more: seen.append((q.shape, k.shape, v.shape)) or attend(q, k, v, *more)  # noqa: B023
        with torch.no_grad():
            mixer(torch.randn(1, 2, width))
        ((q, k, v),) = seen
        assert q == k
        read = next(m for name, m in mixer.named_modules() if name in ("q_b_proj", "q_proj")).in_features
        found["q_lora_rank"] = None if read == width else read
        latents = mixer.empty_cache(1, 1).latents.shape[-1]
        found["kv_lora_rank"] = mixer.kv_b_proj.in_features
        found["qk_rope_head_dim"] = latents - found["kv_lora_rank"]
        found |= {"qk_nope_head_dim": q[-1] - found["qk_rope_head_dim"], "v_head_dim": v[-1]}
    return found


def _observed_attention(model: LanguageModel) -> dict:
    """What the attention backend of every block is called with."""
    calls, names, windows = set(), set(), set()
    attending = [block for block in model.blocks if isinstance(block.mixer, Attention)]
    cap = one_of({_observed_cap(block.mixer.attend) for block in attending})
    for block in attending:
        attend = block.mixer.attend
        names.add(attend.__name__)

        def recording(q, k, v, score_bias, dropout, window, attend=attend):
            has_sinks = score_bias is not None and score_bias.shape[-1] > k.shape[2]
            has_bias = score_bias is not None and bool(score_bias[..., : k.shape[2]].any())
            calls.add((*q.shape[1::2], k.shape[1], v.shape[1], has_bias, has_sinks, dropout))
            windows.add(window)
            return attend(q, k, v, score_bias, dropout, window)

        block.mixer.attend = recording
    with torch.no_grad():
        model.train()(random_tokens(1, 2))
    heads, head_dim, key_heads, value_heads, has_score_bias, has_sinks, dropout = one_of(calls)
    assert key_heads == value_heads
    assert dropout == model.dropout.p
    attention = attending[0].mixer
    observed = {"attention_multiplier": attention.multiplier, "attn_logit_softcapping": cap}
    gates = None if attention.gate_proj is None else attention.gate_proj.out_features
    observed |= {"attention_output_gate": {None: None, heads: "head", heads * head_dim: "element"}[gates]}
    observed |= {"attention_sinks": has_sinks, "value_residual": _hands_on_values(model)}
    observed |= {"n_head": heads, "num_key_value_heads": key_heads, "attention_backend": one_of(names)}
    observed["attention_window"] = one_of(windows - {None} or {None})
    biases = {(False, False): "none", (True, False): "qkv", (True, True): "all"}
    observed["attention_bias"] = biases[attention.q_proj.bias is not None, attention.o_proj.bias is not None]
    observed |= {"head_dim": head_dim, "qk_norm": _observed_norms_of_heads(attention, head_dim)}
    if "rotation" in attention.shared:
        rotation = attention.shared["rotation"](3, torch.device("cpu"))
        return observed | {"position_encoding": "rope"} | _observed_rotation(rotation, head_dim)
    if has_score_bias:
        return observed | {"position_encoding": "alibi"}
    return observed | {"position_encoding": "learned_absolute" if list(model.position.parameters()) else "none"}


def _hands_on_values(model: LanguageModel) -> bool:
    """Whether one block, and no other, leaves values for later ones."""
    given: list[str] = []
    handles = [
        block.register_forward_hook(lambda module, args, output: given.extend(output[3])) for block in model.blocks
    ]
    with torch.no_grad():
        model(random_tokens(1, 2))
    for handle in handles:
        handle.remove()
    return given == ["value_residual"]


def _observed_norms_of_heads(attention: Attention, head_dim: int) -> bool | str:
    if not hasattr(attention, "q_norm"):
        return False
    return True if attention.q_norm.weight.numel() == head_dim else "width"


def _observed_rotation(rotation: tuple[torch.Tensor, torch.Tensor], head_dim: int) -> dict:
    """From the angles at position 1: 1 / factor for the first pair, theta^(-2 / width) of that for the next."""
    cos, sin = rotation
    first, second = torch.atan2(sin[1], cos[1])[:2].double().tolist()
    width = 2 * cos.shape[1]
    factor, theta = round(1 / first, 3), (first / second) ** (width / 2)
    return {
        "partial_rotary_factor": width / head_dim,
        "rope_theta": float(f"{theta:.4g}"),
        "rope_scaling": None if factor == 1 else {"rope_type": "linear", "factor": factor},
    }


def one_of(values: set):
    assert len(values) == 1, values
    return next(iter(values))


# Two layers of any preset that has Mamba's: one of each kind, the first with its FFN.
MIXED = {"layer_pattern": "AM", "mamba_head_dim": 16}
MIXED_PRESETS = dict.fromkeys(("mamba1", "mamba2", "hybrid", "granite_hybrid"), MIXED)
MIXED_PRESETS["nemotron_h"] = MIXED | {"mamba_n_groups": 1}
MIXED_PRESETS["gemma3"] = {"layer_pattern": "A"}  # without the values of its W layers
for _preset in ("deepseek_dense", "deepseek_v3", "qwen3_next", "kimi_linear"):
    MIXED_PRESETS[_preset] = {"layer_pattern": "A"}  # whose keys these are, for the most part
LATENT = {"layer_pattern": "AC", "mamba_head_dim": 64}
DELTA = {"layer_pattern": "AD", "linear_num_value_heads": 4, "linear_num_key_heads": 2, "mamba_head_dim": 64}
DELTA |= {"linear_key_head_dim": 8, "linear_value_head_dim": 12}
CONVOLUTION = {"layer_pattern": "AV", "mamba_head_dim": 64}
MIXED_PRESETS["neox"] = {"head_dim": 16}  # of which a quarter is two pairs

# Every architecture key: a value that no preset has at these sizes, and what must be given with it.
OVERRIDES = {
    "n_layer": (4, {}),
    "n_head": (2, {}),
    "n_embd": (48, {}),
    "num_key_value_heads": (2, {}),
    "head_dim": (24, {}),
    "attention_bias": (("none", "qkv", "all"), {}),
    "qk_norm": ((True, "width"), {}),
    "d_ff": (100, {}),
    "ffn_expansion_ratio": (16.0, {"d_ff": None}),
    "ffn_multiple_of": (72, {"d_ff": None}),
    "block_size": (9, {}),
    "vocab_size": (65, {}),
    "normalization": (("layernorm", "layernorm_nobias", "rmsnorm", "rmsnorm_zero_centred"), {}),
    "norm_eps": (1e-3, {}),
    "norm_position": (("pre", "post", "sandwich", "inside"), {}),
    "embedding_multiplier": ((None, 0.25), {}),
    "residual_multiplier": (0.25, {"norm_position": "pre"}),
    "logits_scaling": (0.25, {}),
    "final_logit_softcapping": ((None, 2.0), {}),
    "attention_multiplier": (0.25, {}),
    "attn_logit_softcapping": ((None, 2.0), {"attention_backend": "manual"}),
    "activation": (tuple(ACTIVATIONS), {"ffn_type": "standard"}),
    "ffn_type": (("standard", "swiglu", "swiglu_clamped", "geglu", "geglu_tanh"), {}),
    "swiglu_limit": (30.0, {"ffn_type": "swiglu_clamped"}),
    "position_encoding": (("learned_absolute", "rope", "alibi", "none"), {}),
    "rope_theta": (1230.0, {"position_encoding": "rope"}),
    "rope_scaling": (LINEAR_SCALING, {"position_encoding": "rope"}),
    "partial_rotary_factor": (0.75, {"position_encoding": "rope", "head_dim": 16}),
    "parallel_residual": ((True, False), {}),
    "attention_sinks": (True, {"attention_backend": "manual"}),
    "attention_output_gate": (("head", "element"), {}),
    "value_residual": (True, {}),
    "attention_backend": ("manual", {}),
    "bias": ((True, False), {}),
    "weight_tying": ((True, False), {}),
    "dropout": (0.25, {}),
    "layer_pattern": ("WM", {"attention_window": 5, "mamba_head_dim": 16}),
    "hybrid_attention_ratio": (0.5, {"layer_pattern": None, "mamba_head_dim": 16}),
    "ffn_after": ("mamba", MIXED),
    "ffn_pattern": ("-F", {"layer_pattern": "A", "mamba_head_dim": 64}),
    "mamba_conv_bias": (False, MIXED),
    "mamba_bias": ((True, False), MIXED),
    "mamba_dt_rank": (3, {"layer_pattern": "AS", "mamba_head_dim": 64}),
    "attention_window": (5, {"layer_pattern": "WM", "mamba_head_dim": 16}),
    "q_lora_rank": ((None, 24), LATENT),
    "kv_lora_rank": (20, LATENT),
    "qk_nope_head_dim": (12, LATENT),
    "qk_rope_head_dim": (16, LATENT),
    "v_head_dim": (10, LATENT),
    "linear_num_value_heads": (6, DELTA),
    "linear_num_key_heads": (4, DELTA),
    "linear_key_head_dim": (5, DELTA),
    "linear_value_head_dim": (7, DELTA),
    "linear_conv_kernel_dim": (3, DELTA),
    "linear_chunk_size": (16, DELTA),
    "short_conv_kernel_dim": (4, CONVOLUTION),
    "short_conv_bias": (True, CONVOLUTION),
    "mamba_d_state": (24, MIXED),
    "mamba_expand": (3, MIXED),
    "mamba_d_conv": (2, MIXED),
    "mamba_head_dim": (8, MIXED),
    "mamba_n_groups": (2, MIXED),
    "mamba_n_heads": (5, MIXED),  # whose channels are no multiple of n_embd
    "mamba_chunk_size": (5, MIXED),
    "mamba_backend": ("fla", MIXED),
}
CASES = [
    (preset, key, value)
    for preset in PRESETS
    for key, (values, _) in OVERRIDES.items()
    for value in (values if isinstance(values, tuple) else (values,))
]


def test_every_architecture_key_is_overridden():
    of_no_module = {
        key
        for kind in ("mixer", "ffn_type")
        for name, spec in registry.specs(kind).items()
        if not registry.has_module(kind, name)
        for key in keys_of(type(spec))
    }
    specs = [registry.spec(kind, name) for kind, names in registered().items() for name in names]
    built = {key for spec in specs for key in keys_of(type(spec))}
    keys = architecture_keys().keys() - (of_no_module - built)
    of_experts = keys_of(type(registry.spec("ffn_type", "experts"))).keys() - {"ffn_type", "swiglu_limit"}
    # Which others try: tests/test_model_config.py, and tests/test_experts.py
    assert set(OVERRIDES) == keys - {"arch_preset", "layer_values"} - of_experts


@pytest.mark.parametrize(("preset", "key", "value"), CASES)
def test_an_override_reaches_the_module(preset, key, value):
    given = {k: v for k, v in TINY.items() if k != "d_ff"} | MIXED_PRESETS.get(preset, {}) | OVERRIDES[key][1]
    if "E" in PRESETS[preset].get("ffn_pattern", ""):  # experts: tests/test_experts.py
        given |= {"ffn_pattern": None if key == "ffn_after" else "F"}
    given |= {"arch_preset": preset, key: value}
    configuration = load([f"--{k}={v}" for k, v in given.items()])
    plan = plan_run(configuration, None)
    run = configuration.run
    model = build_model(configuration.model, "cpu", run.seed, run.activation_checkpointing)

    assert sum(parameter.numel() for parameter in model.parameters()) == plan.cost.n_params
    observed = observed_keys(model)
    if key == "ffn_expansion_ratio":
        assert observed["d_ff"] == 16 * 32  # a multiple of 256 as well
    elif key == "ffn_multiple_of":
        assert observed["d_ff"] % 72 == 0
    elif key == "hybrid_attention_ratio":
        assert observed["layer_pattern"] == "MA"
    else:
        assert observed[key] == value
    attends = next(layer for layer in configuration.model.layers if layer.mixer_spec.has_heads)
    in_force = configuration.model.of(attends).as_dict()
    if in_force["attention_bias"] is None:  # as bias
        in_force["attention_bias"] = "all" if in_force["bias"] else "none"
    if in_force["mamba_bias"] is None:
        in_force["mamba_bias"] = in_force["bias"]
    assert observed == {k: in_force[k] for k in observed}


def test_the_datasets_vocabulary_reaches_the_module():
    configuration = with_vocabulary(load(["--n_layer=1", "--n_embd=24", "--block_size=8"]), 97)
    assert plan_run(configuration, None).cost.parameters["embedding"] == 97 * 24
    assert build_model(configuration.model).embedding.num_embeddings == 97


# nanoGPT's own configurations, in its format

TRAIN_GPT2 = """
wandb_log = False
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 600000
lr_decay_iters = 600000
weight_decay = 1e-1
"""
TRAIN_SHAKESPEARE_CHAR = """
out_dir = 'out-shakespeare-char'
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
"""


@pytest.mark.parametrize(
    ("config", "vocab_size", "printed"),
    [(TRAIN_GPT2, 50257, "123.59M"), (TRAIN_SHAKESPEARE_CHAR, 65, "10.65M")],
    ids=["train_gpt2", "train_shakespeare_char"],
)
def test_nanogpts_configs_give_nanogpts_parameter_counts(config, vocab_size, printed, tmp_path):
    """`printed` is what nanoGPT prints at its start: all parameters but the positions'."""
    file = tmp_path / "train_nanogpt.py"
    file.write_text(config)
    configuration = with_vocabulary(load([str(file)]), vocab_size)
    model = configuration.model
    rows = -(-vocab_size // 64) * 64 if vocab_size == 50257 else vocab_size  # nanoGPT pads GPT-2's vocabulary
    width, layers = model.n_embd, model.n_layer
    without_positions = rows * width + layers * (12 * width**2 + 2 * width) + width
    cost = plan_run(configuration, None).cost
    assert cost.n_params - cost.parameters["position"] == without_positions
    assert f"{without_positions / 1e6:.2f}M" == printed
    with torch.device("meta"):
        built = LanguageModel(model)
    assert sum(p.numel() for p in built.parameters()) == without_positions + model.block_size * width


# Every combination


FFNS = [{"activation": name} for name in registered()["activation"] if name in ACTIVATIONS]
FFNS += [{"ffn_type": name} for name in registered()["ffn_type"] if name not in ("standard", "experts")]
FFNS += [{"ffn_type": "experts", "d_ff": None, "expert_d_ff": 24}]


OTHER_CHOICES = (
    ("layernorm", "layernorm_nobias", "rmsnorm"),
    ("pre", "post"),
    (4, 2, 1),  # heads of keys and values
    (True, False),  # biases
    (True, False),  # a tied head
)


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["a third", "all"])
@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: next(iter(ffn.values())))
@pytest.mark.parametrize("position", registered()["position_encoding"])
def test_every_combination_trains_and_the_backends_agree(position, ffn, all_of_them):
    """In float32, with all values of the order of one: 1e-5 absolute and relative is about a hundred roundings.

    A third of them, for each position and FFN another one, lets any five choices meet somewhere.
    """
    place, tokens = FFNS.index(ffn) + registered()["position_encoding"].index(position), random_tokens()
    for numbered in itertools.product(*map(enumerate, OTHER_CHOICES)):
        numbers, (normalization, norm_position, kv_heads, bias, tying) = zip(*numbered, strict=True)
        if (place + sum(numbers)) % 3 and not all_of_them:
            continue
        keys = {
            "n_layer": 1,
            "position_encoding": position,
            "normalization": normalization,
            "norm_position": norm_position,
            "num_key_value_heads": kv_heads,
            "bias": bias,
            "weight_tying": tying,
            **ffn,
        }
        model = with_large_weights(tiny(**keys, attention_backend="sdpa"))
        loss, gradients = loss_and_gradients(model, tokens)
        model.blocks[0].mixer.attend = component("attention_backend", "manual")
        expected_loss, expected = loss_and_gradients(model, tokens)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            assert torch.isfinite(gradient).all(), (keys, name)
            assert torch.allclose(gradient, expected[name], rtol=1e-5, atol=1e-5), (keys, name)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("position", registered()["position_encoding"])
def test_a_later_token_never_changes_earlier_logits(position, backend, kv_heads):
    model = tiny(position_encoding=position, attention_backend=backend, num_key_value_heads=kv_heads)
    with_large_weights(model).eval()
    tokens = random_tokens()
    with torch.no_grad():
        logits = model(tokens)
        for changed in range(tokens.shape[1]):
            other = tokens.clone()
            other[:, changed] = (other[:, changed] + 1) % TINY["vocab_size"]
            difference = (model(other) - logits).abs().amax(dim=(0, 2))  # (T,)
            assert (difference[:changed] == 0).all()
            assert (difference[changed:] > 1e-6).all()  # every later one hears of it


@pytest.mark.parametrize("position", ["learned_absolute", "rope", "alibi", "none"])
def test_only_a_model_without_positions_takes_its_past_as_a_bag(position):
    model = with_large_weights(tiny(position_encoding=position, n_layer=1)).eval()
    tokens = random_tokens()
    reversed_past = torch.cat((tokens[:, :-1].flip(1), tokens[:, -1:]), dim=1)
    with torch.no_grad():
        same = torch.allclose(model.next_token_logits(tokens), model.next_token_logits(reversed_past), atol=1e-4)
    assert same == (position == "none")


# forward


def test_with_targets_forward_gives_the_mean_cross_entropy_of_its_logits():
    model, tokens = with_large_weights(tiny()), random_tokens()
    logits = model(tokens[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model(tokens[:, :-1], tokens[:, 1:]).mean, expected)
    torch.testing.assert_close(model.next_token_logits(tokens[:, :-1]), logits[:, -1])


def test_a_sequence_beyond_the_block_size_is_refused():
    with pytest.raises(ValueError, match="13 tokens are more than the block size 12"):
        tiny()(random_tokens(1, 13))


def test_a_shorter_sequence_gives_the_same_logits():
    for position in registered()["position_encoding"]:
        model, tokens = with_large_weights(tiny(position_encoding=position)).eval(), random_tokens()
        with torch.no_grad():
            torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5])


# Dropout


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
def test_dropout_acts_in_training_only(backend):
    tokens = random_tokens()
    model, plain = (with_large_weights(tiny(dropout=p, attention_backend=backend)) for p in (0.5, 0.0))
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens), plain(tokens))
        model.train()
        torch.manual_seed(3)
        first, second = model(tokens), model(tokens)
        torch.manual_seed(3)
        assert torch.equal(model(tokens), first)
    assert not torch.equal(first, second)


def test_dropout_is_in_four_places(monkeypatch):
    """After the embedding, and in each block on attention weights, attention and FFN."""
    places = []
    dropout = F.dropout

    def recording(x, p=0.5, training=True, inplace=False):
        places.append((tuple(x.shape), p, training))
        return dropout(x, p, training, inplace)

    monkeypatch.setattr(F, "dropout", recording)
    tiny(dropout=0.25, attention_backend="manual")(random_tokens())
    stream, weights = ((2, 12, 32), 0.25, True), ((2, 4, 12, 12), 0.25, True)
    assert places == [stream] + 2 * [weights, stream, stream]


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
def test_attention_dropout_drops_weights_and_rescales_the_rest(backend):
    """With one-hot values the output shows the weights: 0, or the undropped one over 1 - p."""
    torch.manual_seed(0)
    length, p = 16, 0.25
    q, k = torch.randn(2, 8, length, length), torch.randn(2, 8, length, length)
    v = torch.eye(length).expand(2, 8, length, length)
    attend = component("attention_backend", backend)
    weights, dropped = attend(q, k, v, None, 0.0), attend(q, k, v, None, p)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / (1 - p))
    past = weights > 0  # 2 x 8 x 136 weights
    share, n = kept[past].float().mean().item(), int(past.sum())
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)


# Activation checkpointing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"position_encoding": "rope", "num_key_value_heads": 2},
        {"position_encoding": "alibi"},
        {
            "attention_backend": "manual",
            "attention_sinks": True,
            "attention_output_gate": "head",
            "value_residual": True,
        },
    ],
)
def test_checkpointing_changes_no_bit(keys, dropout, dtype):
    config = resolve_architecture(TINY | keys | {"dropout": dropout})
    results = []
    for checkpointing in (False, True):
        model = with_large_weights(build_model(config, seed=0, activation_checkpointing=checkpointing))
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(random_tokens(), random_tokens()).mean
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()], kept_elements(model)))
    (loss, gradients, kept), (other_loss, other_gradients, other_kept) = results
    assert torch.equal(loss, other_loss)
    assert all(map(torch.equal, gradients, other_gradients))
    assert other_kept < kept / 2


def kept_elements(model: LanguageModel) -> int:
    """Elements that autograd keeps of one forward pass for the backward pass."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(random_tokens())
    return total


# Initialisation


@pytest.mark.parametrize("ffn_type", ["standard", "swiglu"])
def test_initialisation_is_gpt2s(ffn_type):
    """Normal with standard deviation 0.02, and 0.02 / sqrt(2 n_layer) for the two projections into the residual
    stream; within five standard errors of the estimates."""
    model = tiny(n_layer=8, n_embd=128, d_ff=192, ffn_type=ffn_type, bias=True, weight_tying=False, block_size=100)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1 if "norm" in name and "weight" in name else 0)).all(), name
            continue
        std = 0.02 / math.sqrt(2 * 8) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        n = parameter.numel()
        assert abs(parameter.mean()) < 5 * std / math.sqrt(n), name
        assert abs(parameter.std() / std - 1) < 5 / math.sqrt(2 * n), name
        within = (parameter.abs() < std).float().mean()  # a normal's share within one standard deviation
        assert abs(within - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / n), name


def test_weights_depend_on_the_seed_alone():
    config = resolve_architecture(TINY)
    first = build_model(config, seed=7).state_dict()
    torch.rand(5)
    second, other = build_model(config, seed=7).state_dict(), build_model(config, seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    backends = build_model(config.replace(attention_backend="manual", dropout=0.1), seed=7).state_dict()
    assert all(torch.equal(first[name], backends[name]) for name in first)


def test_the_first_loss_is_that_of_a_guess():
    for preset in PRESETS:
        model = tiny(arch_preset=preset, d_ff=None, **MIXED_PRESETS.get(preset, {}))
        with torch.no_grad():
            loss = model(random_tokens(16), random_tokens(16).roll(1, 1)).mean
        assert loss.item() == pytest.approx(math.log(TINY["vocab_size"]), abs=0.05), preset


def test_a_tied_head_is_the_embedding():
    tied, untied = tiny(weight_tying=True), tiny(weight_tying=False)
    assert tied.head_weight is tied.embedding.weight
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"lm_head.weight"}
    untied.load_state_dict(tied.state_dict() | {"lm_head.weight": tied.embedding.weight})
    _, gradients = loss_and_gradients(tied, random_tokens())
    _, apart = loss_and_gradients(untied, random_tokens())
    both_uses = apart["embedding.weight"] + apart["lm_head.weight"]
    torch.testing.assert_close(gradients["embedding.weight"], both_uses)
