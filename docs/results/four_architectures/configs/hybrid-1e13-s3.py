# 2L-1A1M-6H-96D-RoPE-RMS-SwiGLU-PreNorm: a budget of 1e+13 FLOPs, 291,977 parameters.
# 4,067,328 tokens x 2,457,792 FLOPs (training, full attention, with logits) = 9.9966e+12,
#   99.97 % of the budget

arch_preset = "hybrid"
n_layer = 2
n_head = 6
num_key_value_heads = 6
n_embd = 96
d_ff = 256
weight_tying = True
vocab_size = 256
block_size = 256

dataset = "python_stdlib"
seed = 3
device = "auto"

# 1 x 16 x 256 = 4,096 tokens
gradient_accumulation_steps = 1
batch_size = 16
max_iters = 993

learning_rate = 0.0075
min_lr = 0.00075  # a tenth
lr_schedule = "cosine"
warmup_iters = 49
beta2 = 0.99  # a step has few tokens

# 32 x 16 = 512 windows: the same for every run
eval_iters = 32
eval_interval = 199
log_interval = 9
keep_best = False

predicted_flops = 4067328 * 2457792
predicted_seconds = 18.9527
