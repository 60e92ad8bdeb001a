# Nemotron-H's architecture: Mamba-2 in 14 layers and attention without positions in 3; FFNs of squared ReLU in all but
# the Mamba-2 layer before each attention. Its own 31 "layers" are these mixers and FFNs, one by one.
# A layer of Mamba-2: 512 x (2 x 1,024 + 2 x 8 x 128 + 16 heads) into it + 1,024 x 512 out of it + 16,432 besides
# Parameters: 14 x 2.646M of Mamba-2 + 3 x (2 x 512^2 + 2 x 512 x 128) = 2.0M of attention
#   + 14 x 2 x 512 x 2,304 = 33.0M + 2 x 50,304 x 512 = 51.5M = 123.6M

arch_preset = "nemotron_h"
n_layer = 17
n_head = 8
num_key_value_heads = 2
n_embd = 512
d_ff = 2304

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 40 micro-batches x 12 sequences x 1,024 tokens = 491,520 tokens a step
gradient_accumulation_steps = 40
batch_size = 12
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 123,568,800 x 20 / 491,520 = 5,028 steps;
# 5,050, as the other architectures near 124M
max_iters = 5050
warmup_iters = 250
learning_rate = 6e-4
min_lr = 6e-5

eval_interval = 250
eval_iters = 100
log_interval = 10
