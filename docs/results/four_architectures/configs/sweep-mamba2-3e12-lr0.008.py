# 2L-Mamba2-64D-NoPos-RMS-PreNorm: a run of the sweep of learning rates, 102,860 parameters.
# 624,640 tokens x 1,199,616 FLOPs (training, full attention, with logits) = 7.4933e+11,
#   24.98 % of the budget

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
max_iters = 610

learning_rate = 0.008
min_lr = 0.0008  # a tenth
lr_schedule = "cosine"
warmup_iters = 152

# 128 x 4 = 512 windows: the same for every run
eval_iters = 128
eval_interval = 122
log_interval = 6
keep_best = False

predicted_flops = 624640 * 1199616
predicted_seconds = 39.0461
