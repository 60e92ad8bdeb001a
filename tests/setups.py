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
CONTEXT = ["--context_parallel=2"]
PIPELINE = ["--pipeline_parallel=2"]
FOUR_STAGES = ["--pipeline_parallel=4"]
GPIPE = "--pipeline_schedule=gpipe"

# What attention may have besides, in layers of two kinds
OPTIONS = """
--arch_preset=llama3 --num_key_value_heads=2 --layer_pattern=AW --attention_window=5 --attention_backend=manual
--attention_sinks=True --attention_output_gate=element --value_residual=True
""".split()

# Each mixer with a state beside attention; two ranks divide heads, groups and channels
_BESIDE_ATTENTION = "--arch_preset=hybrid --n_layer=2 --gradient_accumulation_steps=2".split()
MAMBA2 = [*_BESIDE_ATTENTION, *"--layer_pattern=AM --mamba_head_dim=8 --mamba_d_state=5 --mamba_chunk_size=8".split()]
MAMBA2_OF_GROUPS = [*MAMBA2, "--mamba_n_groups=2", "--mamba_bias=True"]
MAMBA1 = [*_BESIDE_ATTENTION, *"--layer_pattern=SA --mamba_d_state=5 --mamba_dt_rank=3 --mamba_bias=True".split()]
GATED_DELTA = [*_BESIDE_ATTENTION, *"--layer_pattern=DA --linear_num_value_heads=4 --linear_num_key_heads=2".split()]
KIMI_DELTA = [*_BESIDE_ATTENTION, *"--layer_pattern=KA --linear_num_value_heads=2 --linear_key_head_dim=6".split()]
CONVOLUTION = [*_BESIDE_ATTENTION, "--layer_pattern=VA", "--short_conv_bias=True"]
WITH_STATES = (MAMBA2, MAMBA2_OF_GROUPS, MAMBA1, GATED_DELTA, KIMI_DELTA, CONVOLUTION)
ALL_STATES = "--arch_preset=hybrid --n_layer=5 --layer_pattern=MSDKA --mamba_head_dim=8 --mamba_d_state=5".split()
ALL_STATES += "--linear_num_value_heads=2 --linear_key_head_dim=6".split()

LORA = ["--use_lora=True", "--lora_r=3", "--lora_alpha=30"]  # rows that no number of ranks divides
DORA = [*LORA, "--use_dora=True"]
MUON = "--optimizer=muon"  # its learning rate is the run's

CHECKPOINTING = "--activation_checkpointing=True"
BF16, F16 = "--dtype=bfloat16", "--dtype=float16"
