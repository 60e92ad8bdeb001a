# Qwen3-Next's architecture: the gated delta rule, in every fourth layer attention with a gate, and in all layers 64
# small experts, of which a token meets 6, and a shared one with a gate.
# Parameters that a token meets: 9 x (640 x (2 x 640 + 3 x 1,280 + 20) + 4 x 2,560) = 29.7M of the delta rule
#   + 3 x 640 x (3 x 1,280 + 2 x 256) = 8.4M of attention + 12 x (64 x 640 + 640 + 7 x 3 x 640 x 128) = 21.1M
#   + 2 x 50,304 x 640 = 64.4M = 123.6M
# All: with the other 58 of 64 experts, 12 x 58 x 3 x 640 x 128 = 171.0M more = 294.7M

arch_preset = "qwen3_next"
n_layer = 12
n_head = 10
num_key_value_heads = 2
head_dim = 128
n_embd = 640
linear_num_key_heads = 5  # of 128 numbers, as the preset has them
linear_num_value_heads = 10
n_experts = 64
n_experts_per_token = 6
expert_d_ff = 128

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
