# 3L-4H-64D-RoPE-RMS-SwiGLU-PreNorm: a budget of 3e+11 FLOPs, 211,392 parameters.
# 204,800 tokens x 1,462,272 FLOPs (training, full attention, with logits) = 2.9947e+11,
#   99.82 % of the budget

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
max_iters = 200

learning_rate = 0.008
min_lr = 0.0008  # a tenth
lr_schedule = "cosine"
warmup_iters = 50

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 40
log_interval = 2
keep_best = False

predicted_flops = 204800 * 1462272
predicted_seconds = 11.9982
