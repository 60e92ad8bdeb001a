# 3L-4H-64D-RoPE-RMS-SwiGLU-PreNorm: a budget of 7.54e+11 FLOPs, 211,392 parameters.
# 515,072 tokens x 1,462,272 FLOPs (training, full attention, with logits) = 7.5318e+11,
#   99.89 % of the budget

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
max_iters = 503

learning_rate = 0.00667
min_lr = 0.000667  # a tenth
lr_schedule = "cosine"
warmup_iters = 125

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 101
log_interval = 5
keep_best = False

predicted_flops = 515072 * 1462272
predicted_seconds = 30.1754
