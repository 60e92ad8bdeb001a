# 3L-7H-112D-RoPE-RMS-SwiGLU-PreNorm: a budget of 4.75e+12 FLOPs, 603,792 parameters.
# 1,198,080 tokens x 3,962,112 FLOPs (training, full attention, with logits) = 4.7469e+12,
#   99.94 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 7
num_key_value_heads = 7
n_embd = 112
d_ff = 392
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 1170

learning_rate = 0.00547
min_lr = 0.000547  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 234
log_interval = 11
keep_best = False

predicted_flops = 1198080 * 3962112
predicted_seconds = 114.925
