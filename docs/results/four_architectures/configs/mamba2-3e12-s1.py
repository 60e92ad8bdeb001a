# 2L-Mamba2-64D-NoPos-RMS-PreNorm: a budget of 3e+12 FLOPs, 102,860 parameters.
# 2,500,608 tokens x 1,199,616 FLOPs (training, full attention, with logits) = 2.9998e+12,
#   99.99 % of the budget

arch_preset = "mamba2"
n_layer = 2
n_embd = 64
weight_tying = True
vocab_size = 256
block_size = 256

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 4 x 256 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 4
max_iters = 2442

learning_rate = 0.016
min_lr = 0.0016  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 128 x 4 = 512 windows: the same for every run
eval_iters = 128
eval_interval = 489
log_interval = 24
keep_best = False

predicted_flops = 2500608 * 1199616
predicted_seconds = 156.313
