# A hybrid of Mamba-2 and attention of the 1.3B class: 24 layers x 2,048, 16 heads, SwiGLU, RoPE, tied embeddings. Its
#   published total is 1.44 billion, without a width of the FFN; this one comes within 2 %.
# Layers: MAAMMMAMMMMAMMMMAMMMAAAA (A attention, M Mamba-2)
# Parameters: 103,022,592 embedding + 113,246,208 attention + 387,708,480 mamba + 830,472,192 ffn + 100,352 norms =
#   1,434,549,824
# FLOPs per token: 10,536,560,640 (training, full attention, with logits)
# FLOPs of the run: 28,690,087,936 tokens x 10,536,560,640 = 3.0229e+20

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 24
n_head = 16  # of 128
num_key_value_heads = 8
n_embd = 2048
d_ff = 5632

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 128 x 1 x 8,192 = 1,048,576 tokens a step
gradient_accumulation_steps = 128
batch_size = 1
block_size = 8192
activation_checkpointing = True

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 1,434,549,824 / 1,048,576 = 27,361 steps
max_iters = 27361
warmup_iters = 1368
learning_rate = 0.0002  # Brown et al. 2020, table 2.1, for a model of about this size
min_lr = 2e-05

eval_interval = 1000
eval_iters = 20
eval_batch_size = 1
log_interval = 10
