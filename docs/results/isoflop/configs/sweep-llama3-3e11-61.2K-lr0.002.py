# 3L-2H-32D-RoPE-RMS-SwiGLU-PreNorm: a run of the sweep of learning rates, 61,152 parameters.
# 161,792 tokens x 463,872 FLOPs (training, full attention, with logits) = 7.5051e+10,
#   25.02 % of the budget

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
max_iters = 158

learning_rate = 0.002
min_lr = 0.0002  # a tenth
lr_schedule = "cosine"
warmup_iters = 39

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 32
log_interval = 1
keep_best = False

predicted_flops = 161792 * 463872
predicted_seconds = 5.37138
