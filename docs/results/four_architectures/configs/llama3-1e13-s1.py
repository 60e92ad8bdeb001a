# 2L-5H-80D-RoPE-RMS-SwiGLU-PreNorm: a budget of 1e+13 FLOPs, 226,960 parameters.
# 5,783,552 tokens x 1,728,000 FLOPs (training, full attention, with logits) = 9.9940e+12,
#   99.94 % of the budget

arch_preset = "llama3"
n_layer = 2
n_head = 5
num_key_value_heads = 5
n_embd = 80
d_ff = 280
weight_tying = False
vocab_size = 256
block_size = 256

dataset = "python_stdlib"
seed = 1
device = "auto"

# 1 x 16 x 256 = 4,096 tokens
gradient_accumulation_steps = 1
batch_size = 16
max_iters = 1412

learning_rate = 0.0075
min_lr = 0.00075  # a tenth
lr_schedule = "cosine"
warmup_iters = 70
beta2 = 0.99  # a step has few tokens

# 32 x 16 = 512 windows: the same for every run
eval_iters = 32
eval_interval = 283
log_interval = 14
keep_best = False

predicted_flops = 5783552 * 1728000
predicted_seconds = 17.2096
