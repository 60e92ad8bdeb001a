"""The presets of transformers: what each says beyond the defaults. Those of mixers with a state stand in their rooms.
Sizes and the vocabulary are the config file's business."""

from components.registry import REFUSED, register_preset

register_preset("legacy", {"activation": "gelu"}, "nanoGPT (Karpathy 2022)")
register_preset(
    "gpt2",
    {"activation": "gelu_tanh", "bias": True},
    "Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
)

_LLAMA = {"position_encoding": "rope", "normalization": "rmsnorm", "ffn_type": "swiglu"}
register_preset(
    "llama",
    {**_LLAMA, "ffn_expansion_ratio": 8 / 3, "ffn_multiple_of": 256, "weight_tying": False},
    "Touvron et al. 2023, LLaMA",
)
register_preset(
    "llama3",
    {**_LLAMA, "rope_theta": 500000.0, "ffn_expansion_ratio": 3.5, "weight_tying": False},
    "Grattafiori et al. 2024, The Llama 3 Herd of Models",
)
register_preset("team", _LLAMA, "LLaMA's components, with this repository's sizes of FFNs")
register_preset("custom", {}, "the defaults alone")

_MISTRAL = {"layer_pattern": "W", "attention_window": 4096, "ffn_expansion_ratio": 3.5, "weight_tying": False}
register_preset("mistral", {**_LLAMA, **_MISTRAL}, "Jiang et al. 2023, Mistral 7B")

_QWEN3 = {"rope_theta": 1e6, "norm_eps": 1e-6, "qk_norm": True, "ffn_expansion_ratio": 3.0}
register_preset(
    "qwen3", {**_LLAMA, **_QWEN3}, "Qwen Team 2025, Qwen3 Technical Report; the small ones, whose head is tied"
)

_PHI3 = {"layer_pattern": "W", "attention_window": 2047, "ffn_expansion_ratio": 8 / 3, "weight_tying": False}
register_preset(
    "phi3", {**_LLAMA, **_PHI3}, "Abdin et al. 2024, Phi-3 Technical Report: Phi-3-mini with its first context of 4096"
)

_SMOLLM3 = {"layer_pattern": "AAAU", "rope_theta": 5e6, "norm_eps": 1e-6, "ffn_expansion_ratio": 5.375}
register_preset("smollm3", {**_LLAMA, **_SMOLLM3}, "Hugging Face 2025, SmolLM3")

_NEOX = {"activation": "gelu", "bias": True, "weight_tying": False}
_NEOX_BLOCKS = {"position_encoding": "rope", "partial_rotary_factor": 0.25, "parallel_residual": True}
register_preset("neox", {**_NEOX, **_NEOX_BLOCKS}, "Black et al. 2022, GPT-NeoX-20B; Biderman et al. 2023, Pythia")

_GEMMA = {
    **{"position_encoding": "rope", "ffn_type": "geglu_tanh", "embedding_multiplier": None},
    **{"normalization": "rmsnorm_zero_centred", "norm_eps": 1e-6, "norm_position": "sandwich"},
}
_GEMMA2 = {"layer_pattern": "WA", "attention_window": 4096, "ffn_expansion_ratio": 4.0}
_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention_backend": "manual"}
register_preset("gemma2", {**_GEMMA, **_GEMMA2, **_CAPS}, "Gemma Team 2024, Gemma 2")
_GEMMA3 = {"layer_pattern": "WWWWWA", "attention_window": 512, "ffn_expansion_ratio": 6.0, "qk_norm": True}
register_preset(
    "gemma3",
    {**_GEMMA, **_GEMMA3, "rope_theta": 1e6, "layer_values": {"W": {"rope_theta": 1e4}}},
    "Gemma Team 2025, Gemma 3",
)

_OLMO2 = {"norm_position": "inside", "norm_eps": 1e-6, "qk_norm": "width", "rope_theta": 5e5}
register_preset(
    "olmo2",
    {**_LLAMA, **_OLMO2, "ffn_expansion_ratio": 2.6875, "weight_tying": False},
    "OLMo Team 2024, 2 OLMo 2 Furious",
)

_MIXTRAL = {"rope_theta": 1e6, "ffn_pattern": "E", "expert_expansion_ratio": 3.5, "weight_tying": False}
register_preset("mixtral", {**_LLAMA, **_MIXTRAL, "balance_loss": 0.02}, "Jiang et al. 2024, Mixtral of Experts")

_QWEN3_EXPERTS = {"ffn_pattern": "E", "n_experts": 128, "n_experts_per_token": 8, "expert_expansion_ratio": 0.375}
_QWEN3_MOE = {key: value for key, value in _QWEN3.items() if key != "ffn_expansion_ratio"}
register_preset(
    "qwen3_moe",
    {**_LLAMA, **_QWEN3_MOE, **_QWEN3_EXPERTS, "balance_loss": 0.001, "weight_tying": False},
    "Qwen Team 2025, Qwen3 Technical Report: Qwen3-30B-A3B",
)

_OLMOE_EXPERTS = {"ffn_pattern": "E", "n_experts": 64, "n_experts_per_token": 8, "expert_expansion_ratio": 0.5}
_OLMOE = {"qk_norm": "width", "norm_topk_prob": False, "balance_loss": 0.01, "router_z_loss": 0.001}
register_preset(
    "olmoe", {**_LLAMA, **_OLMOE_EXPERTS, **_OLMOE, "weight_tying": False}, "Muennighoff et al. 2024, OLMoE"
)

_GPT_OSS = {"layer_pattern": "WA", "attention_window": 128, "rope_theta": 150000.0, "attention_bias": "all"}
_SINKS = {"attention_sinks": True, "attention_backend": "manual", "head_dim": 64, "weight_tying": False}
_CLAMPED = {"expert_type": "swiglu_clamped", "expert_bias": True, "expert_expansion_ratio": 1.0}
_GPT_OSS_EXPERTS = {"ffn_pattern": "E", "n_experts": 32, "n_experts_per_token": 4, **_CLAMPED}
register_preset(
    "gpt_oss",
    {**_LLAMA, **_GPT_OSS, **_SINKS, **_GPT_OSS_EXPERTS},
    "OpenAI 2025, gpt-oss-120b & gpt-oss-20b Model Card: the smaller one, with its first context of 4096",
)
_DEEPSEEK = {"layer_pattern": "C", "norm_eps": 1e-6, "ffn_expansion_ratio": 8 / 3, "ffn_multiple_of": 256}
register_preset(
    "deepseek_dense",
    {**_LLAMA, **_DEEPSEEK, "weight_tying": False},
    "The latent attention of DeepSeek-AI 2024, DeepSeek-V2, with DeepSeek LLM's dense FFNs in every layer",
)

_V3_LAYERS = {"layer_pattern": "C", "ffn_pattern": "FFF,E", "norm_eps": 1e-6, "q_lora_rank": 1536}
_V3_SIZES = {"ffn_expansion_ratio": 18432 / 7168, "expert_expansion_ratio": 2048 / 7168}
_V3_EXPERTS = {"n_experts": 256, "n_experts_per_token": 8, "n_shared_experts": 1, "n_group": 8, "topk_group": 4}
_V3_ROUTER = {"router_scores": "sigmoid", "routed_scaling_factor": 2.5, "balance_bias": True, "balance_rate": 0.001}
_V3_BALANCE = {"balance_loss": 1e-4, "balance_over": "sequence", "weight_tying": False}
register_preset(
    "deepseek_v3",
    {**_LLAMA, **_V3_LAYERS, **_V3_SIZES, **_V3_EXPERTS, **_V3_ROUTER, **_V3_BALANCE},
    "DeepSeek-AI 2024, DeepSeek-V3 Technical Report: its experts, and FFNs in its first three layers",
)

REFUSED["falcon_h1"] = (
    "in its layers attention and Mamba-2 read the stream side by side, each with multipliers of its own, and a layer "
    "here has one mixer"
)
