# 2L-1A1M-4H-64D-RoPE-RMS-SwiGLU-PreNorm: a budget of 3e+12 FLOPs, 141,510 parameters.
# 2,245,632 tokens x 1,335,552 FLOPs (training, full attention, with logits) = 2.9992e+12,
#   99.97 % of the budget

arch_preset = "hybrid"
n_layer = 2
n_head = 4
num_key_value_heads = 4
n_embd = 64
d_ff = 170
weight_tying = True
vocab_size = 256
block_size = 256

dataset = "python_stdlib"
seed = 3
device = "cpu"

# 1 x 4 x 256 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 4
max_iters = 2193

learning_rate = 0.008
min_lr = 0.0008  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 128 x 4 = 512 windows: the same for every run
eval_iters = 128
eval_interval = 439
log_interval = 21
keep_best = False

predicted_flops = 2245632 * 1335552
predicted_seconds = 130.028
