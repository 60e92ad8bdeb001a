# 2L-5H-80D-AbsPos-LN-GELUtanh-PreNorm: a budget of 1e+13 FLOPs, 196,800 parameters.
# 6,508,544 tokens x 1,536,000 FLOPs (training, full attention, with logits) = 9.9971e+12,
#   99.97 % of the budget

arch_preset = "gpt2"
n_layer = 2
n_head = 5
num_key_value_heads = 5
n_embd = 80
d_ff = 320
weight_tying = True
vocab_size = 256
block_size = 256

dataset = "python_stdlib"
seed = 3
device = "auto"

# 1 x 16 x 256 = 4,096 tokens
gradient_accumulation_steps = 1
batch_size = 16
max_iters = 1589

learning_rate = 0.0075
min_lr = 0.00075  # a tenth
lr_schedule = "cosine"
warmup_iters = 79
beta2 = 0.99  # a step has few tokens

# 32 x 16 = 512 windows: the same for every run
eval_iters = 32
eval_interval = 318
log_interval = 15
keep_best = False

predicted_flops = 6508544 * 1536000
predicted_seconds = 16.9899
