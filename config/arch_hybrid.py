# Mamba-2 in 8 layers and attention in 4 (docs/using/hybrids.md says where), each with its FFN: RoPE, RMSNorm, SwiGLU.
# A mixer: 3.765M of Mamba-2; 2 x 768^2 + 2 x 768 x 256 = 1.573M of attention; an FFN: 3 x 768 x 1,792 = 4.129M
# Parameters: 8 x 3.765M + 4 x 1.573M + 12 x 4.129M = 86.0M in the blocks + 38.6M tied = 124.6M

arch_preset = "hybrid"  # attention in round(0.375 x 12) = 4 of the layers
n_layer = 12
n_head = 12
num_key_value_heads = 4
n_embd = 768
d_ff = 1792

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 40 micro-batches x 12 sequences x 1,024 tokens = 491,520 tokens a step
gradient_accumulation_steps = 40
batch_size = 12
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 124,605,760 x 20 / 491,520 = 5,070 steps;
# 5,050, as the other architectures near 124M
max_iters = 5050
warmup_iters = 250
learning_rate = 6e-4
min_lr = 6e-5

eval_interval = 250
eval_iters = 100
log_interval = 10
