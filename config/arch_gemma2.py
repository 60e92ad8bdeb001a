# Gemma 2's architecture: a window in every other layer, four norms a block that multiply by 1 + weight, bounded scores
# and logits, which the backend manual computes, and embeddings times the root of their width.
# Parameters: 15 x (2 x 640^2 + 2 x 640 x 320 + 3 x 640 x 2,560) = 92.2M in blocks + 50,304 x 640 = 32.2M = 124.4M

arch_preset = "gemma2"
n_layer = 15
n_head = 10
num_key_value_heads = 5
n_embd = 640

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
