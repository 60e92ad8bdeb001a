# Mamba-2 and nothing else (Dao and Gu 2024): no attention, no FFN, no positions; RMSNorm, a tied head.
# A layer: 768 x (2 x 1,536 + 2 x 128 + 24 heads) into it + 1,536 x 768 out of it + 10,568 besides = 3.76M
# Parameters: 23 x 3.765M = 86.6M in the layers + 38.6M tied = 125.2M

arch_preset = "mamba2"
n_layer = 23
n_embd = 768

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 40 micro-batches x 12 sequences x 1,024 tokens = 491,520 tokens a step
gradient_accumulation_steps = 40
batch_size = 12
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 125,236,600 x 20 / 491,520 = 5,096 steps;
# 5,050, as the other architectures near 124M
max_iters = 5050
warmup_iters = 250
learning_rate = 6e-4
min_lr = 6e-5

eval_interval = 250
eval_iters = 100
log_interval = 10
