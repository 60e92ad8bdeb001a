# 3L-5H-80D-RoPE-RMS-SwiGLU-PreNorm: a budget of 1.89e+12 FLOPs, 319,920 parameters.
# 873,472 tokens x 2,161,920 FLOPs (training, full attention, with logits) = 1.8884e+12,
#   99.91 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 5
num_key_value_heads = 5
n_embd = 80
d_ff = 280
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 853

learning_rate = 0.00613
min_lr = 0.000613  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 171
log_interval = 8
keep_best = False

predicted_flops = 873472 * 2161920
predicted_seconds = 62.0919
