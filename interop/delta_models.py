"""Qwen3-Next (Qwen Team 2025): the gated delta rule and attention with a gate, and experts in every layer; and Kimi
Linear (Kimi Team 2025): Kimi delta attention and latent attention without positions, and DeepSeek-V3's experts.

Qwen3-Next holds the projections of a layer as the rows of a few matrices, in which what belongs to one head, or to one
head of keys, lies together.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from components.mixers.attention.spec import biases
from components.registry import spec
from interop.attention_models import LLAMA, with_norms_of_heads, write_relative
from interop.expert_models import ROUTER, STACKED
from interop.family import Place, places, their_rotary
from interop.file_names import InFiles
from interop.keys.base import FULL, LINEAR
from interop.keys.deepseek import LATENT
from interop.keys.delta import KIMI_FFNS
from interop.latent_models import BIASED_EXPERTS, HALVES
from interop.state_space_models import convolutions
from model_config import ModelArchitectureConfig

Sizes = Callable[[ModelArchitectureConfig], tuple[int, ...]]


def _of_each_head(modules: tuple[str, ...], count: Callable[[ModelArchitectureConfig], int], rows: Sizes) -> Place:
    """Theirs: of every head, of which there are so many, this many rows of each module, one module after another."""

    def theirs_to_ours(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
        heads, sizes = count(config), rows(config)
        if len(tensor) != heads * sum(sizes):
            return tensor  # and is refused by its rows
        parts = tensor.unflatten(0, (heads, sum(sizes))).split(sizes, dim=1)
        return torch.cat([part.flatten(0, 1) for part in parts])

    def ours_to_theirs(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
        heads, sizes = count(config), rows(config)
        parts = tensor.split([heads * size for size in sizes])
        return torch.cat([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 1)

    return Place(modules, theirs_to_ours, ours_to_theirs)


# ---------------------------------------------------------------------------------------------------------------------
# Qwen3-Next


def _write_qwen3_next(config: ModelArchitectureConfig) -> dict[str, Any]:
    dense = [index for index, layer in enumerate(config.layers) if layer.ffn == config.ffn_type]
    return write_relative(config) | {
        "hidden_act": "silu",
        "rope_parameters": {"partial_rotary_factor": 1.0, **their_rotary(config)},
        "attention_bias": all(biases(config)),
        "layer_types": [LINEAR if letter == "D" else FULL for letter in config.pattern],
        "mlp_only_layers": dense,
        **(_write_gated_delta(config) if "D" in config.pattern else {}),
        **(_write_experts(config) if len(dense) < config.n_layer else {}),
    }


def _write_gated_delta(config: ModelArchitectureConfig) -> dict[str, Any]:
    mixer = spec("mixer", "gated_delta")
    return {
        "linear_num_key_heads": mixer.key_heads(config),
        "linear_num_value_heads": mixer.heads(config),
        "linear_key_head_dim": mixer.key_dim(config),
        "linear_value_head_dim": mixer.value_dim(config),
        "linear_conv_kernel_dim": config.linear_conv_kernel_dim,
    }


def _write_experts(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.d_ff or config.expert_d_ff,
        "num_experts": config.n_experts,
        "num_experts_per_tok": config.n_experts_per_token,
        "moe_intermediate_size": config.expert_d_ff,
        "shared_expert_intermediate_size": config.n_shared_experts * config.expert_d_ff,
        "norm_topk_prob": config.norm_topk_prob,
    }


def _key_heads(config: ModelArchitectureConfig) -> int:
    return spec("mixer", "gated_delta").key_heads(config)


def _of_delta(config: ModelArchitectureConfig) -> tuple[int, ...]:
    """Rows of a key head: its query, its key, and the values and gates of the value heads that it serves."""
    mixer = spec("mixer", "gated_delta")
    served = mixer.value_width(config) // mixer.key_heads(config)
    return mixer.key_dim(config), mixer.key_dim(config), served, served


def _of_rates(config: ModelArchitectureConfig) -> tuple[int, ...]:
    served = spec("mixer", "gated_delta").heads(config) // _key_heads(config)
    return served, served


_GATED_ATTENTION = with_norms_of_heads("A")["A"] | {
    "self_attn.q_proj": _of_each_head(
        ("mixer.q_proj", "mixer.gate_proj"),
        lambda config: config.n_head,
        lambda config: (config.head_dim, config.head_dim),
    )
}
_GATED_DELTA = {
    "linear_attn.in_proj_qkvz": _of_each_head(
        ("mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.z_proj"), _key_heads, _of_delta
    ),
    "linear_attn.in_proj_ba": _of_each_head(("mixer.b_proj", "mixer.a_proj"), _key_heads, _of_rates),
    "linear_attn.conv1d": convolutions("mixer.q_conv", "mixer.k_conv", "mixer.v_conv"),
    **places({f"linear_attn.{name}": f"mixer.{name}" for name in ("dt_bias", "A_log", "norm")}),
    **places({"linear_attn.out_proj": "mixer.o_proj"}),
}
_GATED_SHARED_EXPERT = places(
    {
        **{f"mlp.shared_expert.{name}_proj": f"ffn.shared_{name}_proj" for name in ("gate", "up", "down")},
        "mlp.shared_expert_gate": "ffn.shared_expert_gate",
    }
)
QWEN3_NEXT = dataclasses.replace(
    LLAMA,
    model_class="Qwen3NextForCausalLM",
    write=_write_qwen3_next,
    mixers={"A": _GATED_ATTENTION, "D": _GATED_DELTA},
    experts=ROUTER | STACKED | _GATED_SHARED_EXPERT,
    buffers=(),
    left_out=("mtp.",),  # what predicts further tokens
    in_files=InFiles(),
)


# ---------------------------------------------------------------------------------------------------------------------
# Kimi Linear


def _write_kimi_linear(config: ModelArchitectureConfig) -> dict[str, Any]:
    """By the names that its files have."""
    mixer, has_experts = spec("mixer", "kimi_delta"), [layer.ffn == "experts" for layer in config.layers]
    kinds = {letter: theirs for theirs, letter in KIMI_FFNS.items()}
    delta = {
        "linear_num_heads": mixer.heads(config),
        "linear_head_dim": mixer.key_dim(config),
        "linear_conv_kernel_dim": config.linear_conv_kernel_dim,
    }
    return {
        **{name: config[name] for name in LATENT},
        "num_key_value_heads": config.n_head,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": all(biases(config)),
        "layer_types": [LINEAR if letter == "K" else FULL for letter in config.pattern],
        "mlp_layer_types": [kinds["E" if one else "F"] for one in has_experts],
        **(delta if "K" in config.pattern else {}),
        **(_write_biased_experts(config) if any(has_experts) else {}),
    }


def _write_biased_experts(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.d_ff or config.expert_d_ff,
        "num_experts": config.n_experts,
        "num_experts_per_token": config.n_experts_per_token,
        "num_shared_experts": config.n_shared_experts,
        "moe_intermediate_size": config.expert_d_ff,
        "routed_scaling_factor": config.routed_scaling_factor,
        "moe_renormalize": config.norm_topk_prob,
        "num_expert_group": config.n_group,
        "topk_group": config.topk_group,
    }


@dataclasses.dataclass(frozen=True)
class _KimiFiles(InFiles):
    """Its files have a module of the experts that is called otherwise than an FFN, three convolutions for one, and what
    decays come from beside the other projections."""

    gate: str = "w1"
    up: str = "w3"
    down: str = "w2"

    def stacked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            name = name.replace(".block_sparse_moe.", ".mlp.")
            found[re.sub(rf"\.self_attn\.({_OF_DECAYS})\b", r".self_attn.forget_gate.\1", name)] = tensor
        for name in [name for name in found if name.endswith(".q_conv1d.weight")]:
            three = [name.replace(".q_conv1d.", f".{one}_conv1d.") for one in "qkv"]
            if found.keys() >= set(three):
                found[name.replace(".q_conv1d.", ".conv1d.")] = torch.cat([found.pop(one) for one in three])
        return super().stacked(found)

    def apart(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in super().apart(tensors).items():
            name = re.sub(r"\.mlp\.(experts|gate|shared_experts)\.", r".block_sparse_moe.\1.", name)
            name = name.replace(".self_attn.forget_gate.", ".self_attn.")
            parts = zip("qkv", tensor.chunk(3), strict=True) if name.endswith(".self_attn.conv1d.weight") else ()
            found |= {name.replace(".conv1d.", f".{one}_conv1d."): part.contiguous() for one, part in parts}
            if not name.endswith(".self_attn.conv1d.weight"):
                found[name] = tensor
        return found


_OF_DECAYS = "f_a_proj|f_b_proj|dt_bias|A_log"
_KIMI_DELTA = {
    **places({f"self_attn.{name}_proj": f"mixer.{name}_proj" for name in ("q", "k", "v", "b", "g_a", "g_b", "o")}),
    **places({f"self_attn.forget_gate.{name}": f"mixer.{name}" for name in ("f_a_proj", "f_b_proj", "dt_bias")}),
    "self_attn.forget_gate.A_log": Place(
        ("mixer.A_log",),
        to_ours=lambda tensor, config: tensor.flatten(),
        to_theirs=lambda tensor, config: tensor.view(1, 1, -1, 1),
    ),
    "self_attn.conv1d": convolutions("mixer.q_conv", "mixer.k_conv", "mixer.v_conv"),
    **places({"self_attn.o_norm": "mixer.norm"}),
}
KIMI_LINEAR = dataclasses.replace(
    LLAMA,
    model_class="KimiLinearForCausalLM",
    write=_write_kimi_linear,
    mixers={"K": _KIMI_DELTA, **HALVES},
    experts=BIASED_EXPERTS,
    buffers=(),
    in_files=_KimiFiles(),
)
