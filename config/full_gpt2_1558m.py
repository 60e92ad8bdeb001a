# GPT-2 XL as published (Radford et al. 2019): its exact shape, vocabulary and parameter count.
# Matrices of a block: 4 x 1,600^2 + 2 x 1,600 x 6,400 = 30,720,000; of 48: 1,474,560,000; tied embedding: 50,257 x
#   1,600 = 80,411,200
# Parameters: 80,411,200 embedding + 1,638,400 position + 491,827,200 attention + 983,424,000 ffn + 310,400 norms =
#   1,557,611,200
# FLOPs per token: 10,273,545,600 (training, full attention, with logits)
# FLOPs of the run: 31,152,046,080 tokens x 10,273,545,600 = 3.2004e+20

arch_preset = "gpt2"
n_layer = 48
n_head = 25  # of 64
n_embd = 1600

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50257

# 120 x 4 x 1,024 = 491,520 tokens a step
gradient_accumulation_steps = 120
batch_size = 4
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 1,557,611,200 / 491,520 = 63,379 steps
max_iters = 63379
warmup_iters = 1267
learning_rate = 0.0002  # Brown et al. 2020, table 2.1, for a model of about this size
min_lr = 2e-05

eval_interval = 1000
eval_iters = 100
eval_batch_size = 4
log_interval = 10
