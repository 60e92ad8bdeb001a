# DeepSeek-V3's architecture: latent attention; an FFN in the first layer, then 64 experts in 8 groups, of which a token
# meets 6 of the best 4 groups, and a shared one. A bias of each expert keeps them equally busy.
# Parameters that a token meets: 12 x (640 x 384 + 384 x 960 + 640 x 288 + 256 x 1,280 + 640^2) = 18.4M of attention
#   + 3 x 640 x 1,792 + 11 x (64 x 640 + 7 x 3 x 640 x 256) = 41.7M + 2 x 50,304 x 640 = 64.4M = 124.6M
# All: with the other 58 of 64 experts, 11 x 58 x 3 x 640 x 256 = 313.6M more = 438.2M

arch_preset = "deepseek_v3"
n_layer = 12
n_head = 10
n_embd = 640
q_lora_rank = 384
kv_lora_rank = 256
qk_nope_head_dim = 64  # a head's queries and keys are 64 + 32 wide
qk_rope_head_dim = 32
v_head_dim = 64
ffn_pattern = "F,E"
d_ff = 1792
n_experts = 64
n_experts_per_token = 6
expert_d_ff = 256

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 40 micro-batches x 12 sequences x 1,024 tokens = 491,520 tokens a step
gradient_accumulation_steps = 40
batch_size = 12
block_size = 1024

# 20 tokens a parameter that a token meets: 124e6 x 20 / 491,520 = 5,046 steps
max_iters = 5050
warmup_iters = 250
learning_rate = 6e-4
min_lr = 6e-5

eval_interval = 250
eval_iters = 100
log_interval = 10
