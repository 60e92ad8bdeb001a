"""Relatives of Llama with experts. Their classes have the matrices of a layer's experts in one tensor, gate and up
together; their files, but for gpt-oss's, each matrix by itself."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from components.ffns.gated.spec import GATES
from components.mixers.attention.spec import biases
from interop.attention_models import LLAMA, LLAMA_ATTENTION, their_windows, with_norms_of_heads, write_relative
from interop.family import Place, places, their_activation
from interop.file_names import InFiles
from model_config import ModelArchitectureConfig

# ---------------------------------------------------------------------------------------------------------------------
# Tensors


def _gate_above_up(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
    """(E, 2 F, D), or a bias (E, 2 F) -> the gates of all (E, F, D), then all that they multiply."""
    return torch.cat(tensor.chunk(2, dim=1))


def _gate_beside_up(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
    return torch.cat(tensor.chunk(2), dim=1)


def _gates_first(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
    """gpt-oss's (E, D, 2 F), or a bias (E, 2 F), in which they alternate."""
    tensor = tensor.mT if tensor.ndim == 3 else tensor
    return torch.cat((tensor[:, 0::2], tensor[:, 1::2]))


def _alternating(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
    tensor = torch.stack(tensor.chunk(2), dim=2).flatten(1, 2)  # (E, 2 F, D), or (E, 2 F)
    return tensor.mT if tensor.ndim == 3 else tensor


def _turned(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
    return tensor.mT


def _gate_and_up(kind: str) -> tuple[str, str]:
    return f"ffn.gate_proj.{kind}", f"ffn.up_proj.{kind}"


def stacked(module: str) -> dict[str, Place]:
    """The matrices of all experts, in a module of this name."""
    return {
        f"{module}.experts.gate_up_proj": Place(_gate_and_up("weight"), _gate_above_up, _gate_beside_up),
        **places({f"{module}.experts.down_proj": "ffn.down_proj.weight"}),
    }


STACKED = stacked("mlp")
_GPT_OSS_STACKED = {
    "mlp.experts.gate_up_proj": Place(_gate_and_up("weight"), _gates_first, _alternating),
    "mlp.experts.gate_up_proj_bias": Place(_gate_and_up("bias"), _gates_first, _alternating),
    "mlp.experts.down_proj": Place(("ffn.down_proj.weight",), _turned, _turned),
    **places({"mlp.experts.down_proj_bias": "ffn.down_proj.bias", "mlp.router": "ffn.router"}),
}
ROUTER = places({"mlp.gate": "ffn.router"})


# ---------------------------------------------------------------------------------------------------------------------
# Configurations


def _of_experts(config: ModelArchitectureConfig) -> dict[str, Any]:
    return write_relative(config) | {"hidden_act": their_activation(GATES.get(config.expert_type, "silu"))}


def _write_mixtral(config: ModelArchitectureConfig) -> dict[str, Any]:
    return _of_experts(config) | {"sliding_window": config.attention_window}


def _write_olmoe(config: ModelArchitectureConfig) -> dict[str, Any]:
    written = {key: value for key, value in _of_experts(config).items() if key != "head_dim"}
    return written | {"norm_topk_prob": config.norm_topk_prob, "attention_bias": all(biases(config))}


def _write_qwen3_moe(config: ModelArchitectureConfig) -> dict[str, Any]:
    dense = [index for index, layer in enumerate(config.layers) if layer.ffn == config.ffn_type]
    return _of_experts(config) | {
        **their_windows(config),
        "use_sliding_window": "W" in config.pattern,
        "intermediate_size": config.d_ff or config.expert_d_ff,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "norm_topk_prob": config.norm_topk_prob,
        "attention_bias": all(biases(config)),
    }


def _write_gpt_oss(config: ModelArchitectureConfig) -> dict[str, Any]:
    return write_relative(config) | {
        **their_windows(config),
        "hidden_act": "silu",
        "attention_bias": all(biases(config)),
        "swiglu_limit": config.swiglu_limit,
    }


MIXTRAL = dataclasses.replace(
    LLAMA,
    model_class="MixtralForCausalLM",
    write=_write_mixtral,
    mixers={"A": LLAMA_ATTENTION, "W": LLAMA_ATTENTION},
    experts=ROUTER | STACKED,
    in_files=InFiles("block_sparse_moe", "w1", "w3", "w2"),
    buffers=(),
)
QWEN3_MOE = dataclasses.replace(
    MIXTRAL,
    model_class="Qwen3MoeForCausalLM",
    write=_write_qwen3_moe,
    mixers=with_norms_of_heads("AW"),
    in_files=InFiles(),
)
OLMOE = dataclasses.replace(
    QWEN3_MOE, model_class="OlmoeForCausalLM", write=_write_olmoe, mixers=with_norms_of_heads("A")
)
_WITH_SINKS = LLAMA_ATTENTION | places({"self_attn.sinks": "mixer.sinks.weight"})
GPT_OSS = dataclasses.replace(
    MIXTRAL,
    model_class="GptOssForCausalLM",
    write=_write_gpt_oss,
    mixers=dict.fromkeys("AW", _WITH_SINKS),
    experts=_GPT_OSS_STACKED,
    in_files=None,
)
