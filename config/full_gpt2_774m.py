# GPT-2 large as published (Radford et al. 2019): its exact shape, vocabulary and parameter count.
# Matrices of a block: 4 x 1,280^2 + 2 x 1,280 x 5,120 = 19,660,800; of 36: 707,788,800; tied embedding: 50,257 x 1,280
#   = 64,328,960
# Parameters: 64,328,960 embedding + 1,310,720 position + 236,113,920 attention + 472,089,600 ffn + 186,880 norms =
#   774,030,080
# FLOPs per token: 5,198,937,600 (training, full attention, with logits)
# FLOPs of the run: 15,480,422,400 tokens x 5,198,937,600 = 8.0482e+19

arch_preset = "gpt2"
n_layer = 36
n_head = 20  # of 64
n_embd = 1280

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50257

# 80 x 6 x 1,024 = 491,520 tokens a step
gradient_accumulation_steps = 80
batch_size = 6
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 774,030,080 / 491,520 = 31,495 steps
max_iters = 31495
warmup_iters = 629
learning_rate = 0.00025  # Brown et al. 2020, table 2.1, for a model of about this size
min_lr = 2.5e-05

eval_interval = 1000
eval_iters = 100
eval_batch_size = 6
log_interval = 10
