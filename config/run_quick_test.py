# A run of arch_hybrid.py's model on one device, to see that all works: 50 steps of 16 sequences.
# Layers: MAMMMMAMMMAA (A attention, M Mamba-2)
# Parameters: 38,633,472 embedding + 6,291,456 attention + 30,116,416 mamba + 49,545,216 ffn + 19,200 norms =
#   124,605,760
# FLOPs per token: 809,091,072 (training, full attention, with logits)
# FLOPs of the run: 819,200 tokens x 809,091,072 = 6.6281e+14

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 12
n_head = 12
num_key_value_heads = 4
n_embd = 768
d_ff = 1792

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304

# 4 x 4 x 1,024 = 16,384 tokens a step
gradient_accumulation_steps = 4
batch_size = 4
block_size = 1024

max_iters = 50  # 50 steps
warmup_iters = 5
learning_rate = 0.0006
min_lr = 6e-05

eval_interval = 25
eval_iters = 10
eval_batch_size = 4
log_interval = 5
