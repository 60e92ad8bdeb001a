# Mixtral's architecture: Llama's with 8 experts in place of each FFN, of which a token meets 2.
# Parameters that a token meets: 12 x (2 x 640^2 + 2 x 640 x 320 + 8 x 640 + 2 x 3 x 640 x 968) = 59.4M in blocks
#   + 2 x 50,304 x 640 = 64.4M = 123.8M
# All: with the other 6 of 8 experts, 12 x 6 x 3 x 640 x 968 = 133.8M more = 257.6M

arch_preset = "mixtral"
n_layer = 12
n_head = 10
num_key_value_heads = 5
n_embd = 640
expert_d_ff = 968

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
