# A hybrid of Mamba-2 and attention of the 2.7B class: 32 layers x 2,560, 20 heads, SwiGLU, RoPE, tied embeddings. Its
#   published total is 2.56 billion, without a width of the FFN; this one comes within 2 %. 8 key and value heads do
#   not divide 20 heads: 4.
# Layers: MAAAMMMMAMMMMAMMMAMMMMAMMMMAAAAA (A attention, M Mamba-2)
# Parameters: 128,778,240 embedding + 188,743,680 attention + 804,280,000 mamba + 1,447,034,880 ffn + 166,400 norms =
#   2,569,003,200
# FLOPs per token: 18,629,222,400 (training, full attention, with logits)
# FLOPs of the run: 51,379,175,424 tokens x 18,629,222,400 = 9.5715e+20

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 32
n_head = 20  # of 128
num_key_value_heads = 4
n_embd = 2560
d_ff = 5888

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 128 x 1 x 8,192 = 1,048,576 tokens a step
gradient_accumulation_steps = 128
batch_size = 1
block_size = 8192
activation_checkpointing = True

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 2,569,003,200 / 1,048,576 = 48,999 steps
max_iters = 48999
warmup_iters = 2000
learning_rate = 0.00016  # Brown et al. 2020, table 2.1, for a model of about this size
min_lr = 1.6e-05

eval_interval = 1000
eval_iters = 20
eval_batch_size = 1
log_interval = 10
