# Qwen 3's architecture: Llama's with norms of each head's queries and keys, a tied head and RoPE's base at a million.
# Parameters: 12 x (2 x 768^2 + 2 x 768 x 384 + 3 x 768 x 2,304) = 84.9M in blocks + 50,304 x 768 = 38.6M = 123.6M

arch_preset = "qwen3"
n_layer = 12
n_head = 12
num_key_value_heads = 6
n_embd = 768

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 40 micro-batches x 12 sequences x 1,024 tokens = 491,520 tokens a step
gradient_accumulation_steps = 40
batch_size = 12
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 124e6 x 20 / 491,520 = 5,046 steps
max_iters = 5050
warmup_iters = 250
learning_rate = 6e-4
min_lr = 6e-5

eval_interval = 250
eval_iters = 100
log_interval = 10
