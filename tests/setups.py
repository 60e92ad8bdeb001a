"""Keys that several tests give: strategies of training on several ranks, and small models for them."""

GPT2 = ["--arch_preset=gpt2"]  # biases, learned positions, a tied head
LLAMA = ["--arch_preset=llama3", "--num_key_value_heads=2"]  # RoPE, RMSNorm, SwiGLU, an untied head
POST_NORM = ["--norm_position=post", "--bias=True", "--position_encoding=none"]
ODD = ["--arch_preset=llama3", "--vocab_size=257", "--d_ff=67", "--n_head=3", "--n_embd=30", "--weight_tying=True"]
EXPERTS = [*LLAMA, *"--ffn_pattern=FE --n_experts=5 --expert_d_ff=12 --n_shared_experts=2 --expert_bias=True".split()]
EXPERTS += (
    "--router_scores=sigmoid --balance_bias=True --router_z_loss=0.01 --shared_expert_gate=True --bias=True".split()
)
LATENT = "--arch_preset=deepseek_dense --d_ff=96 --attention_bias=all".split()
LATENT += "--q_lora_rank=12 --kv_lora_rank=10 --qk_nope_head_dim=6 --qk_rope_head_dim=4 --v_head_dim=8".split()

MORE_EXPERTS = [*EXPERTS, "--n_experts=8"]  # which 2 or 4 ranks divide

DDP: list[str] = []
ZERO1 = ["--use_zero1=True"]
FSDP = ["--use_fsdp=True"]
ZERO2 = [*FSDP, "--fsdp_reshard_after_forward=False"]
HYBRID = [*FSDP, "--fsdp_replicas=2"]
OFFLOAD = [*FSDP, "--fsdp_cpu_offload=True"]
TENSOR = ["--tensor_parallel=2"]
SHARED_EXPERTS = ["--expert_parallel=2"]

# What attention may have besides, in layers of two kinds
OPTIONS = """
--arch_preset=llama3 --num_key_value_heads=2 --layer_pattern=AW --attention_window=5 --attention_backend=manual
--attention_sinks=True --attention_output_gate=element --value_residual=True
""".split()

MUON = "--optimizer=muon"  # its learning rate is the run's

CHECKPOINTING = "--activation_checkpointing=True"
BF16, F16 = "--dtype=bfloat16", "--dtype=float16"
