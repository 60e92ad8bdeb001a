# 3L-2H-32D-RoPE-RMS-SwiGLU-PreNorm: a budget of 4.75e+12 FLOPs, 61,152 parameters.
# 10,238,976 tokens x 463,872 FLOPs (training, full attention, with logits) = 4.7496e+12,
#   99.99 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 2
num_key_value_heads = 2
n_embd = 32
d_ff = 112
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 9999

learning_rate = 0.00547
min_lr = 0.000547  # a tenth
lr_schedule = "cosine"
warmup_iters = 499

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 2000
log_interval = 99
keep_best = False

predicted_flops = 10238976 * 463872
predicted_seconds = 339.927
