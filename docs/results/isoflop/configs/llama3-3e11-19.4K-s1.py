# 3L-1H-16D-RoPE-RMS-SwiGLU-PreNorm: a budget of 3e+11 FLOPs, 19,440 parameters.
# 1,816,576 tokens x 165,120 FLOPs (training, full attention, with logits) = 2.9995e+11,
#   99.98 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 1
num_key_value_heads = 1
n_embd = 16
d_ff = 56
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 1774

learning_rate = 0.008
min_lr = 0.0008  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 355
log_interval = 17
keep_best = False

predicted_flops = 1816576 * 165120
predicted_seconds = 36.1806
