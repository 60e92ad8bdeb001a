# 2L-1A1M-4H-64D-RoPE-RMS-SwiGLU-PreNorm: a run of the sweep of learning rates, 141,510 parameters.
# 561,152 tokens x 1,335,552 FLOPs (training, full attention, with logits) = 7.4945e+11,
#   24.98 % of the budget

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
seed = 1
device = "cpu"

# 1 x 4 x 256 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 4
max_iters = 548

learning_rate = 0.016
min_lr = 0.0016  # a tenth
lr_schedule = "cosine"
warmup_iters = 137

# 128 x 4 = 512 windows: the same for every run
eval_iters = 128
eval_interval = 110
log_interval = 5
keep_best = False

predicted_flops = 561152 * 1335552
predicted_seconds = 32.4921
