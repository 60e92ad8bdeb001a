# 3L-9H-144D-RoPE-RMS-SwiGLU-PreNorm: a budget of 1.19e+13 FLOPs, 976,752 parameters.
# 1,889,280 tokens x 6,296,832 FLOPs (training, full attention, with logits) = 1.1896e+13,
#   99.97 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 9
num_key_value_heads = 9
n_embd = 144
d_ff = 504
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 1845

learning_rate = 0.00487
min_lr = 0.000487  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 369
log_interval = 18
keep_best = False

predicted_flops = 1889280 * 6296832
predicted_seconds = 227.902
