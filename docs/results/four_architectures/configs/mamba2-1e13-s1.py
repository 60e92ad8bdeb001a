# 2L-Mamba2-96D-NoPos-RMS-PreNorm: a budget of 1e+13 FLOPs, 190,066 parameters.
# 5,083,136 tokens x 1,966,464 FLOPs (training, full attention, with logits) = 9.9958e+12,
#   99.96 % of the budget

arch_preset = "mamba2"
n_layer = 2
n_embd = 96
weight_tying = True
vocab_size = 256
block_size = 256

dataset = "python_stdlib"
seed = 1
device = "auto"

# 1 x 16 x 256 = 4,096 tokens
gradient_accumulation_steps = 1
batch_size = 16
max_iters = 1241

learning_rate = 0.0075
min_lr = 0.00075  # a tenth
lr_schedule = "cosine"
warmup_iters = 62
beta2 = 0.99  # a step has few tokens

# 32 x 16 = 512 windows: the same for every run
eval_iters = 32
eval_interval = 249
log_interval = 12
keep_best = False

predicted_flops = 5083136 * 1966464
predicted_seconds = 30.4335
