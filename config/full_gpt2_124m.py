# GPT-2 (small) as published (Radford et al. 2019): its exact shape, vocabulary and parameter count.
# Matrices of a block: 4 x 768^2 + 2 x 768 x 3,072 = 7,077,888; of 12: 84,934,656; tied embedding: 50,257 x 768 =
#   38,597,376
# Parameters: 38,597,376 embedding + 786,432 position + 28,348,416 attention + 56,669,184 ffn + 38,400 norms =
#   124,439,808
# FLOPs per token: 854,438,400 (training, full attention, with logits)
# FLOPs of the run: 2,488,565,760 tokens x 854,438,400 = 2.1263e+18

arch_preset = "gpt2"
n_layer = 12
n_head = 12  # of 64
n_embd = 768

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50257

# 40 x 12 x 1,024 = 491,520 tokens a step
gradient_accumulation_steps = 40
batch_size = 12
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 124,439,808 / 491,520 = 5,063 steps
max_iters = 5063
warmup_iters = 101
learning_rate = 0.0006  # Brown et al. 2020, table 2.1, for a model of about this size
min_lr = 6e-05

eval_interval = 1000
eval_iters = 100
log_interval = 10
