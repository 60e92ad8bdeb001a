# OLMoE's architecture: 64 small experts, of which a token meets 8, and norms of all heads' queries and keys together.
# Parameters that a token meets: 12 x (4 x 640^2 + 64 x 640 + 8 x 3 x 640 x 216) = 60.0M in blocks
#   + 2 x 50,304 x 640 = 64.4M = 124.4M
# All: with the other 56 of 64 experts, 12 x 56 x 3 x 640 x 216 = 278.7M more = 403.1M

arch_preset = "olmoe"
n_layer = 12
n_head = 10
n_embd = 640
expert_d_ff = 216

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
