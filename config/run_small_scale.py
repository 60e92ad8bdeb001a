# A run of hybrid_1.3b.py's model on 1 to 8 devices: 10,000 steps of 256 sequences, 3.7 tokens a parameter.
# Layers: MAAMMMAMMMMAMMMMAMMMAAAA (A attention, M Mamba-2)
# Parameters: 103,022,592 embedding + 113,246,208 attention + 387,708,480 mamba + 830,472,192 ffn + 100,352 norms =
#   1,434,549,824
# FLOPs per token: 9,177,606,144 (training, full attention, with logits)
# FLOPs of the run: 5,242,880,000 tokens x 9,177,606,144 = 4.8117e+19

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 24
n_head = 16  # of 128
num_key_value_heads = 8
n_embd = 2048
d_ff = 5632

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304

# 64 x 4 x 2,048 = 524,288 tokens a step
gradient_accumulation_steps = 64
batch_size = 4
block_size = 2048
activation_checkpointing = True

max_iters = 10000  # 10,000 steps
warmup_iters = 500
learning_rate = 0.0002
min_lr = 2e-05

eval_interval = 1000
eval_iters = 20
eval_batch_size = 4
log_interval = 10
