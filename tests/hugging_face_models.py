"""Small models of every family of Hugging Face's that is read and written, in the forms that their classes have."""

from transformers import (
    BambaConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    KimiLinearConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronHConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
)

GPT2 = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "n_positions": 40,
    "vocab_size": 101,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 88,
    "max_position_embeddings": 64,
    "vocab_size": 101,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # so short that all three bands of frequencies occur
}
MAMBA = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 101}
MAMBA2 = {**MAMBA, "num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 8, "chunk_size": 8}
WHOLE_HEADS = {"partial_rotary_factor": 1.0, "rope_type": "default", "rope_theta": 500.0}
BAMBA = {
    **LLAMA,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "attn_layer_indices": [1],
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "rope_parameters": WHOLE_HEADS,
    "pad_token_id": None,  # the gradient of its embedding is cut off there
}
PHI3 = {**LLAMA, "num_key_value_heads": 2, "pad_token_id": None}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.5], "long_factor": [1.0, 3.0, 7.5]
}  # fmt: skip
SMOLLM3 = {**LLAMA, "num_hidden_layers": 4, "num_key_value_heads": 2, "pad_token_id": None}
NEOX = {**LLAMA}
GEMMA = {**LLAMA, "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 5, "pad_token_id": None}
DEEPSEEK = {**LLAMA, "num_key_value_heads": 4, "first_k_dense_replace": 2, "kv_lora_rank": 12,
            "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 14, "pad_token_id": None}  # fmt: skip
GPT_OSS_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16,
                "beta_fast": 4.0, "truncate": False}  # fmt: skip
DEEPSEEK_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16,
                 "beta_fast": 4.0}  # fmt: skip
EXPERTS = {**LLAMA, "intermediate_size": 24, "num_key_value_heads": 2, "num_experts_per_tok": 2, "pad_token_id": None}
EXPERTS_OF_DEEPSEEK = {**DEEPSEEK, "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 3,
                       "moe_intermediate_size": 12, "n_group": 4, "topk_group": 2}  # fmt: skip
# The norm of a head's output enlarges the rounding of both where that is small, unless eps is larger than it: with 1e-6
# either is 1e-4 from what float64 gives.
OF_SMALL_OUTPUTS = {"rms_norm_eps": 0.1}
QWEN3_NEXT = {
    **EXPERTS, **OF_SMALL_OUTPUTS, "num_hidden_layers": 3, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10,
}  # fmt: skip
KIMI_LINEAR = {
    **DEEPSEEK, **OF_SMALL_OUTPUTS, "num_hidden_layers": 3, "num_local_experts": 8, "num_experts_per_tok": 3,
    "moe_intermediate_size": 12, "linear_num_heads": 3, "linear_head_dim": 6, "bos_token_id": None,
    "eos_token_id": None, "first_k_dense_replace": 1,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
GRANITE_HYBRID = {
    **LLAMA, "num_hidden_layers": 3, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
    "intermediate_size": 24, "shared_intermediate_size": 48, "layer_types": ["mamba", "attention", "mamba"],
    "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 8, "attention_multiplier": 0.3,
}  # fmt: skip
# With steps as they are: transformers would enlarge those of a prompt that are less than time_step_min, and not those
# of decoding. The floor, at which they begin, has them large enough to matter.
NEMOTRON_H = {
    **{key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}, "num_key_value_heads": 2,
    "head_dim": 6, "layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp"], "mamba_num_heads": 6,
    "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 8, "time_step_min": 1e-30,
    "time_step_floor": 0.2, "pad_token_id": None,
}  # fmt: skip
WINDOWS_WITHOUT_POSITIONS = {"use_sliding_window": True, "sliding_window": 5, "num_key_value_heads": 2,
                             "num_hidden_layers": 4}  # fmt: skip
OLD_BAMBA_ROPE = {"rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None}  # of transformers 4
MODELS = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2, another FFN": GPT2Config(**GPT2, n_inner=50, activation_function="relu", layer_norm_epsilon=1e-3),
    "gpt2, untied": GPT2Config(**GPT2, tie_word_embeddings=False),
    "llama 2": LlamaConfig(**LLAMA),
    "llama 3": LlamaConfig(
        **LLAMA, num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}
    ),
    "llama 3.1": LlamaConfig(**LLAMA, num_key_value_heads=2, rope_parameters=LLAMA3_ROPE, rms_norm_eps=1e-5),
    "llama, linear rope scaling": LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "llama, multi-query, tied": LlamaConfig(**LLAMA, num_key_value_heads=1, tie_word_embeddings=True),
    "llama, biases, gelu gate": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "llama, heads of another width": LlamaConfig(**LLAMA, num_key_value_heads=2, head_dim=6),
    "llama, biases of attention": LlamaConfig(**LLAMA, num_key_value_heads=2, attention_bias=True),
    "llama, biases of the FFN": LlamaConfig(**LLAMA, mlp_bias=True),
    "mistral": MistralConfig(**LLAMA | {"num_key_value_heads": 2}, sliding_window=5),
    "mistral, no window": MistralConfig(**LLAMA, num_key_value_heads=4, sliding_window=None, head_dim=6),
    "qwen 2": Qwen2Config(**LLAMA | {"num_key_value_heads": 2}, tie_word_embeddings=True),
    "qwen 2, windows from the second layer on": Qwen2Config(
        **LLAMA, num_key_value_heads=4, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen 3": Qwen3Config(**LLAMA | {"num_key_value_heads": 2}, head_dim=6, rms_norm_eps=0.1),
    "qwen 3, a window first, biases": Qwen3Config(
        **LLAMA, num_key_value_heads=1, head_dim=8, attention_bias=True, use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention"], rope_parameters=LLAMA3_ROPE
    ),
    "llama, yarn": LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                  "original_max_position_embeddings": 16, "beta_fast": 2.0}
    ),
    "llama, dynamic": LlamaConfig(**LLAMA, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
    "phi 3": Phi3Config(
        **PHI3, sliding_window=5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    "phi 3, longrope, short": Phi3Config(
        **PHI3, rope_parameters=LONGROPE | {"partial_rotary_factor": 0.75}, original_max_position_embeddings=32
    ),
    "phi 3, longrope, long": Phi3Config(
        **PHI3, rope_parameters=LONGROPE | {"partial_rotary_factor": 0.75}, original_max_position_embeddings=16
    ),
    "smollm 3": SmolLM3Config(**SMOLLM3, rope_parameters=LLAMA3_ROPE),
    "smollm 3, windows": SmolLM3Config(
        **SMOLLM3, use_sliding_window=True, sliding_window=5, no_rope_layers=[1, 0, 1, 1], attention_bias=True,
        layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    ),
    "neox": GPTNeoXConfig(**NEOX),
    "neox, in turn": GPTNeoXConfig(
        **NEOX, use_parallel_residual=False, attention_bias=False, hidden_act="relu", tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 1.0}
    ),
    "gemma 2": Gemma2Config(**GEMMA, query_pre_attn_scalar=5, attn_logit_softcapping=1.5, final_logit_softcapping=3.0),
    "gemma 2, no caps": Gemma2Config(
        **GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True,
        layer_types=["full_attention", "sliding_attention"], tie_word_embeddings=False
    ),
    "gemma 3": Gemma3TextConfig(
        **GEMMA, query_pre_attn_scalar=7, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
        },
    ),
    "gemma 3, windows only": Gemma3TextConfig(**GEMMA, final_logit_softcapping=1.5, hidden_activation="silu"),
    "olmo 2": Olmo2Config(**LLAMA, num_key_value_heads=2, pad_token_id=None),
    "olmo 2, biases": Olmo2Config(
        **LLAMA, attention_bias=True, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True, pad_token_id=None
    ),
    "olmo 3": Olmo3Config(
        **LLAMA | {"num_hidden_layers": 4}, sliding_window=5, pad_token_id=None,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                               "rope_theta": 1000.0},
        },
    ),
    "granite": GraniteConfig(
        **LLAMA, num_key_value_heads=2, embedding_multiplier=3.0, residual_multiplier=0.7, attention_multiplier=0.2,
        logits_scaling=1.7
    ),
    "deepseek v2": DeepseekV2Config(**DEEPSEEK, q_lora_rank=None, num_experts_per_tok=2),
    "deepseek v2, ranks of queries, biases": DeepseekV2Config(
        **DEEPSEEK, q_lora_rank=11, num_experts_per_tok=2, attention_bias=True, mlp_bias=True, hidden_act="gelu",
        rope_parameters=DEEPSEEK_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}
    ),
    "deepseek v2, yarn": DeepseekV2Config(
        **DEEPSEEK, q_lora_rank=None, num_experts_per_tok=2, rope_parameters=DEEPSEEK_YARN
    ),
    "deepseek v3": DeepseekV3Config(**DEEPSEEK, q_lora_rank=11),
    "deepseek v3, biases, dynamic": DeepseekV3Config(
        **DEEPSEEK, q_lora_rank=None, attention_bias=True, tie_word_embeddings=True, rms_norm_eps=0.1,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    ),
    "deepseek v3, yarn, a third scale": DeepseekV3Config(
        **DEEPSEEK, q_lora_rank=11, rope_parameters=DEEPSEEK_YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}
    ),
    "mamba": MambaConfig(**MAMBA),
    "mamba, other sizes": MambaConfig(
        **MAMBA, state_size=5, expand=3, conv_kernel=2, use_bias=True, tie_word_embeddings=False, layer_norm_epsilon=0.1
    ),
    "mixtral": MixtralConfig(**EXPERTS, num_local_experts=4),
    "mixtral, windows, gelu gates": MixtralConfig(
        **EXPERTS, num_local_experts=3, sliding_window=5, head_dim=6, hidden_act="gelu"
    ),
    "qwen 3 with experts": Qwen3MoeConfig(**EXPERTS, num_experts=4, moe_intermediate_size=12, head_dim=6),
    "qwen 3 with experts in some layers": Qwen3MoeConfig(
        **EXPERTS | {"num_hidden_layers": 4}, num_experts=4, moe_intermediate_size=12, norm_topk_prob=True,
        mlp_only_layers=[0], decoder_sparse_step=2, attention_bias=True
    ),
    "olmoe": OlmoeConfig(**EXPERTS, num_experts=4, eos_token_id=None),
    "olmoe, normalised": OlmoeConfig(
        **EXPERTS, num_experts=4, eos_token_id=None, norm_topk_prob=True, attention_bias=True
    ),
    "gpt-oss": GptOssConfig(**EXPERTS, num_local_experts=4, head_dim=8, sliding_window=5, layer_types=None),
    "gpt-oss, yarn within the text, a limit that clamps": GptOssConfig(
        **EXPERTS, num_local_experts=4, head_dim=8, sliding_window=5, swiglu_limit=0.3, rope_parameters=GPT_OSS_YARN
    ),
    "deepseek v2, experts": DeepseekV2Config(
        **EXPERTS_OF_DEEPSEEK, q_lora_rank=None, topk_method="group_limited_greedy", routed_scaling_factor=3.0
    ),
    "deepseek v2, experts alone, greedy": DeepseekV2Config(
        **EXPERTS_OF_DEEPSEEK | {"first_k_dense_replace": 0}, q_lora_rank=9, mlp_bias=True
    ),
    "deepseek v3, experts": DeepseekV3Config(**EXPERTS_OF_DEEPSEEK, q_lora_rank=9),
    "deepseek v3, experts, not normalised": DeepseekV3Config(
        **EXPERTS_OF_DEEPSEEK | {"n_group": 1, "topk_group": 1}, q_lora_rank=None, norm_topk_prob=False,
        routed_scaling_factor=0.7, n_shared_experts=2
    ),
    "mamba, another rank of steps": MambaConfig(**MAMBA, time_step_rank=7),
    "mamba, no bias of the convolution": MambaConfig(**MAMBA, use_conv_bias=False),
    "mamba 2": Mamba2Config(**MAMBA2),
    "mamba 2, no bias of the convolution": Mamba2Config(**MAMBA2, use_conv_bias=False, use_bias=True),
    "mamba 2, other sizes": Mamba2Config(
        **MAMBA | {"hidden_size": 48}, num_heads=9, head_dim=16, expand=3, n_groups=3, state_size=6, conv_kernel=3,
        chunk_size=5, use_bias=True, tie_word_embeddings=True, layer_norm_epsilon=0.1
    ),
    "qwen 3 next": Qwen3NextConfig(**QWEN3_NEXT),
    "qwen 3 next, experts in some layers, a wide shared one": Qwen3NextConfig(
        **QWEN3_NEXT | {"num_hidden_layers": 4, "layer_types": None, "shared_expert_intermediate_size": 24},
        mlp_only_layers=[0], norm_topk_prob=False, attention_bias=True, linear_conv_kernel_dim=3,
        rope_parameters={**GPT_OSS_YARN, "partial_rotary_factor": 0.5}
    ),
    "qwen 3 next, no experts, whole heads rotated": Qwen3NextConfig(
        **QWEN3_NEXT | {"linear_num_key_heads": 4}, decoder_sparse_step=5, tie_word_embeddings=True,
        partial_rotary_factor=1.0
    ),
    "qwen 3 next, attention alone": Qwen3NextConfig(
        **QWEN3_NEXT | {"layer_types": ["full_attention"] * 3, "rms_norm_eps": 1e-6}
    ),
    "kimi linear": KimiLinearConfig(**KIMI_LINEAR),
    "kimi linear, groups, ranks of queries, biases": KimiLinearConfig(
        **KIMI_LINEAR | {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, q_lora_rank=11,
        attention_bias=True, norm_topk_prob=False, routed_scaling_factor=0.7, n_shared_experts=2,
        linear_conv_kernel_dim=3, n_group=4, topk_group=2,
        mlp_layer_types=["sparse", "dense", "sparse"]
    ),
    "kimi linear, no experts": KimiLinearConfig(**KIMI_LINEAR | {"first_k_dense_replace": 3}),
    "kimi linear, latent attention alone": KimiLinearConfig(
        **KIMI_LINEAR | {"layer_types": ["full_attention"] * 3, "rms_norm_eps": 1e-6}
    ),
    "bamba": BambaConfig(**BAMBA),
    "bamba, other sizes": BambaConfig(
        **BAMBA | {"rope_parameters": {**LLAMA3_ROPE, "partial_rotary_factor": 1.0}, "attn_layer_indices": [0, 2]},
        tie_word_embeddings=True, rms_norm_eps=0.1, attention_bias=True, mlp_bias=True, mamba_proj_bias=True
    ),
    "bamba, half of each head rotated": BambaConfig(
        **BAMBA | {"rope_parameters": {**WHOLE_HEADS, "partial_rotary_factor": 0.5}}
    ),
    "bamba, biases of attention": BambaConfig(**BAMBA, attention_bias=True),
    "bamba, biases of the FFN, none of the convolution": BambaConfig(**BAMBA, mlp_bias=True, mamba_conv_bias=False),
    "bamba, biases of Mamba-2": BambaConfig(**BAMBA, mamba_proj_bias=True),
    "granite 4": GraniteMoeHybridConfig(
        **GRANITE_HYBRID, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=1.7
    ),
    "granite 4, rotary positions, no experts, tied": GraniteMoeHybridConfig(
        **GRANITE_HYBRID | {"num_local_experts": 0, "num_experts_per_tok": 0}, position_embedding_type="rope",
        rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True, attention_bias=True
    ),
    "granite 4, biases of the state spaces, one wide expert": GraniteMoeHybridConfig(
        **GRANITE_HYBRID | {"shared_intermediate_size": 24, "mamba_n_groups": 1, "mamba_expand": 3, "mamba_d_conv": 3},
        mamba_proj_bias=True, mamba_conv_bias=False, position_embedding_type="nope", rms_norm_eps=0.1
    ),
    "granite 4, attention alone": GraniteMoeHybridConfig(
        **GRANITE_HYBRID | {"layer_types": ["attention"] * 3}, position_embedding_type="rope"
    ),
    "nemotron-h": NemotronHConfig(**NEMOTRON_H),
    "nemotron-h, biases, another activation": NemotronHConfig(
        **NEMOTRON_H | {"layers_block_type": ["attention", "mlp", "mamba", "mamba", "mlp", "attention"], "n_groups": 3},
        mlp_hidden_act="silu", mlp_bias=True, use_bias=True, use_conv_bias=False, conv_kernel=3, layer_norm_epsilon=0.01
    ),
    "nemotron-h, no FFN": NemotronHConfig(**NEMOTRON_H | {"layers_block_type": ["mamba", "attention", "mamba"]}),
    "nemotron-h, attention alone": NemotronHConfig(
        **NEMOTRON_H | {"layers_block_type": ["attention", "mlp", "attention"]}
    ),
}  # fmt: skip
