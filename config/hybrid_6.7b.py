# A hybrid of Mamba-2 and attention of the 6.7B class: 32 layers x 4,096, 32 heads, SwiGLU, RoPE, tied embeddings. Its
#   published total is 5.96 billion, without a width of the FFN; this one comes within 2 %.
# Layers: MAAAMMMMAMMMMAMMMAMMMMAMMMMAAAAA (A attention, M Mamba-2)
# Parameters: 206,045,184 embedding + 503,316,480 attention + 2,045,739,520 mamba + 3,221,225,472 ffn + 266,240 norms =
#   5,976,592,896
# FLOPs per token: 41,003,311,104 (training, full attention, with logits)
# FLOPs of the run: 119,531,372,544 tokens x 41,003,311,104 = 4.9012e+21

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 32
n_head = 32  # of 128
num_key_value_heads = 8
n_embd = 4096
d_ff = 8192

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 256 x 1 x 8,192 = 2,097,152 tokens a step
gradient_accumulation_steps = 256
batch_size = 1
block_size = 8192
activation_checkpointing = True

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 5,976,592,896 / 2,097,152 = 56,997 steps
max_iters = 56997
warmup_iters = 2000
learning_rate = 0.00012  # Brown et al. 2020, table 2.1, for a model of about this size
min_lr = 1.2e-05

eval_interval = 1000
eval_iters = 20
eval_batch_size = 1
log_interval = 10
