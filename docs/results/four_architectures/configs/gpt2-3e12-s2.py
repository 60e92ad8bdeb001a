# 2L-4H-64D-AbsPos-LN-GELUtanh-PreNorm: a budget of 3e+12 FLOPs, 132,864 parameters.
# 2,774,016 tokens x 1,081,344 FLOPs (training, full attention, with logits) = 2.9997e+12,
#   99.99 % of the budget

arch_preset = "gpt2"
n_layer = 2
n_head = 4
num_key_value_heads = 4
n_embd = 64
d_ff = 256
weight_tying = True
vocab_size = 256
block_size = 256

dataset = "python_stdlib"
seed = 2
device = "cpu"

# 1 x 4 x 256 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 4
max_iters = 2709

learning_rate = 0.004
min_lr = 0.0004  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 128 x 4 = 512 windows: the same for every run
eval_iters = 128
eval_interval = 542
log_interval = 27
keep_best = False

predicted_flops = 2774016 * 1081344
predicted_seconds = 111.502
