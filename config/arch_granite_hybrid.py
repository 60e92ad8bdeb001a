# Granite 4's architecture: Mamba-2, in one of ten layers attention without positions, and in all layers 32 small
# experts, of which a token meets 6, and two shared ones; with multipliers of embeddings, residuals, scores and logits.
# Parameters that a token meets: 9 x 3.765M of Mamba-2 + 2 x 768^2 + 2 x 768 x 256 = 1.6M of attention
#   + 10 x (32 x 768 + 8 x 3 x 768 x 272) = 50.4M of experts + 50,304 x 768 = 38.6M tied = 124.5M
# All: with the other 26 of 32 experts, 10 x 26 x 3 x 768 x 272 = 162.9M more = 287.4M

arch_preset = "granite_hybrid"
n_layer = 10
n_head = 6  # of 128, of which the preset has the multiplier of scores, 1/128
num_key_value_heads = 2
n_embd = 768
n_experts = 32
n_experts_per_token = 6
expert_d_ff = 272
logits_scaling = 3.0  # n_embd / 256, as the preset's 16 is 4,096 / 256

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
