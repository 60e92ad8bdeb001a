# A hybrid of Mamba-2 and attention of the 13B class: 40 layers x 5,120, 40 heads, SwiGLU, RoPE, tied embeddings. Its
#   published total is 10.66 billion, without a width of the FFN; this one comes within 2 %.
# Layers: MAAAMMMMAMMMMAMMMMAMMMMAMMMMAMMMMAAAAAAA (A attention, M Mamba-2)
# Parameters: 257,556,480 embedding + 943,718,400 attention + 3,986,988,000 mamba + 5,505,024,000 ffn + 414,720 norms =
#   10,693,701,600
# FLOPs per token: 72,199,034,880 (training, full attention, with logits)
# FLOPs of the run: 213,873,852,416 tokens x 72,199,034,880 = 1.5441e+22

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 40
n_head = 40  # of 128
num_key_value_heads = 8
n_embd = 5120
d_ff = 8960

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 256 x 1 x 8,192 = 2,097,152 tokens a step
gradient_accumulation_steps = 256
batch_size = 1
block_size = 8192
activation_checkpointing = True

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 10,693,701,600 / 2,097,152 = 101,983 steps
max_iters = 101983
warmup_iters = 2000
learning_rate = 0.0001  # Brown et al. 2020, table 2.1, for a model of about this size
min_lr = 1e-05

eval_interval = 1000
eval_iters = 20
eval_batch_size = 1
log_interval = 10
