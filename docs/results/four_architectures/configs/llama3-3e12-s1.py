# 2L-4H-64D-RoPE-RMS-SwiGLU-PreNorm: a budget of 3e+12 FLOPs, 151,872 parameters.
# 2,490,368 tokens x 1,204,224 FLOPs (training, full attention, with logits) = 2.9990e+12,
#   99.97 % of the budget

arch_preset = "llama3"
n_layer = 2
n_head = 4
num_key_value_heads = 4
n_embd = 64
d_ff = 224
weight_tying = False
vocab_size = 256
block_size = 256

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 4 x 256 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 4
max_iters = 2432

learning_rate = 0.004
min_lr = 0.0004  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 128 x 4 = 512 windows: the same for every run
eval_iters = 128
eval_interval = 487
log_interval = 24
keep_best = False

predicted_flops = 2490368 * 1204224
predicted_seconds = 114.16
