# GPT-2 medium as published (Radford et al. 2019): its exact shape, vocabulary and parameter count.
# Matrices of a block: 4 x 1,024^2 + 2 x 1,024 x 4,096 = 12,582,912; of 24: 301,989,888; tied embedding: 50,257 x 1,024
#   = 51,463,168
# Parameters: 51,463,168 embedding + 1,048,576 position + 100,761,600 attention + 201,449,472 ffn + 100,352 norms =
#   354,823,168
# FLOPs per token: 2,422,708,224 (training, full attention, with logits)
# FLOPs of the run: 7,096,565,760 tokens x 2,422,708,224 = 1.7193e+19

arch_preset = "gpt2"
n_layer = 24
n_head = 16  # of 64
n_embd = 1024

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50257

# 40 x 12 x 1,024 = 491,520 tokens a step
gradient_accumulation_steps = 40
batch_size = 12
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 354,823,168 / 491,520 = 14,438 steps
max_iters = 14438
warmup_iters = 288
learning_rate = 0.0003  # Brown et al. 2020, table 2.1, for a model of about this size
min_lr = 3e-05

eval_interval = 1000
eval_iters = 100
log_interval = 10
