# 3L-2H-32D-RoPE-RMS-SwiGLU-PreNorm: a budget of 7.54e+11 FLOPs, 61,152 parameters.
# 1,625,088 tokens x 463,872 FLOPs (training, full attention, with logits) = 7.5383e+11,
#   99.98 % of the budget

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
max_iters = 1587

learning_rate = 0.00667
min_lr = 0.000667  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 318
log_interval = 15
keep_best = False

predicted_flops = 1625088 * 463872
predicted_seconds = 53.9518
