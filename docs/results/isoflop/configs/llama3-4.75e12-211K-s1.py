# 3L-4H-64D-RoPE-RMS-SwiGLU-PreNorm: a budget of 4.75e+12 FLOPs, 211,392 parameters.
# 3,248,128 tokens x 1,462,272 FLOPs (training, full attention, with logits) = 4.7496e+12,
#   99.99 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 4
num_key_value_heads = 4
n_embd = 64
d_ff = 224
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 3172

learning_rate = 0.00547
min_lr = 0.000547  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 635
log_interval = 31
keep_best = False

predicted_flops = 3248128 * 1462272
predicted_seconds = 190.291
