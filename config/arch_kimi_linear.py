# Kimi Linear's architecture: Kimi delta attention, in every fourth layer latent attention without positions; an FFN in
# the first layer, then 64 experts, of which a token meets 6, and a shared one.
# Parameters that a token meets:
#   9 x (4 x 640 x 1,152 + 2 x 128 x (640 + 1,152) + 9 x 640 + 4 x 3 x 1,152) = 30.8M of Kimi delta attention
#   + 3 x (640 x 960 + 640 x 288 + 256 x 1,280 + 640^2) = 4.6M of latent attention
#   + 3 x 640 x 1,792 + 11 x (64 x 640 + 7 x 3 x 640 x 136) = 24.0M + 2 x 50,304 x 640 = 64.4M = 123.9M
# All: with the other 58 of 64 experts, 11 x 58 x 3 x 640 x 136 = 166.6M more = 290.5M

arch_preset = "kimi_linear"
n_layer = 12
n_head = 10
n_embd = 640
kv_lora_rank = 256
qk_nope_head_dim = 64  # a head's queries and keys are 64 + 32 wide
qk_rope_head_dim = 32
v_head_dim = 64
linear_num_value_heads = 9  # of 128 numbers, as the preset has them
d_ff = 1792
n_experts = 64
n_experts_per_token = 6
expert_d_ff = 136

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
